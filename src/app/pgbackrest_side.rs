//! pgBackRest as it is installed and configured here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Misconfigured;
use super::identity::User;
use crate::config::{Config, Environment};
use crate::domain::StanzaName;
use crate::pgbackrest::conf::{self, ALL_FULLS, Defaults, TWO_FULLS, UserOptions};
use crate::pgbackrest::runner::Tool;
use crate::pgbackrest::version::Version;
use crate::postgres::install::is_executable;
use crate::process::{Program, capture};
use crate::telemetry;

/// The tool and what it is told.
pub(super) struct Side {
    /// The tool.
    pub(super) tool: Tool,
    /// What the user configured for the stanza.
    pub(super) options: UserOptions,
    /// The same for every stanza.
    pub(super) options_by_stanza: BTreeMap<StanzaName, UserOptions>,
    /// What it is told about the server.
    pub(super) defaults: Option<Defaults>,
    /// What PostgreSQL must have in its environment, so that its archive_command means the same.
    pub(super) postgres_env: BTreeMap<String, String>,
}

/// Finds the tool and reads its configuration.
pub(super) fn find(
    config: &Config,
    environment: &Environment,
    user: &User,
    stanza: &StanzaName,
) -> anyhow::Result<Side> {
    let path = environment.get("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
    let binary = resolve(&config.pgbackrest.bin, path);
    let files = configuration_files(environment);
    let files: Vec<(&str, &str)> =
        files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let ours = config.pgbackrest_env.iter().cloned();
    let options = UserOptions::parse(&files, ours, stanza);
    let of_stanza = |name: &StanzaName| {
        (name.clone(), UserOptions::parse(&files, config.pgbackrest_env.iter().cloned(), name))
    };
    let options_by_stanza = config.stanzas.iter().map(|stanza| of_stanza(&stanza.name)).collect();
    let (mut added, mut defaults) = (BTreeMap::new(), None);
    if let Some(postgres) = &config.postgres {
        if let Some(pg_path) = options.get("pg1-path")
            && !same_directory(Path::new(pg_path), &postgres.data_dir)
        {
            return Err(Misconfigured(format!(
                "pgBackRest's pg1-path is {pg_path}, but postgres.data_dir is {}: they must be \
                 the same",
                postgres.data_dir.display()
            ))
            .into());
        }
        let about = Defaults {
            pg_path: postgres.data_dir.display().to_string(),
            pg_port: postgres.port,
            pg_socket_dir: postgres.socket_dir.as_ref().map(|dir| dir.display().to_string()),
            pg_user: Some(postgres.superuser.clone()),
            retention_full: if config.retention.policy.is_set() { ALL_FULLS } else { TWO_FULLS },
        };
        added = conf::environment(&about, &options);
        defaults = Some(about);
    }
    let mut postgres_env: BTreeMap<String, String> =
        config.pgbackrest_env.iter().cloned().collect();
    postgres_env.extend(added);
    let mut env = user.environment(environment);
    // Only what the user set: what we add is one stanza's and goes with that stanza's commands.
    env.extend(config.pgbackrest_env.iter().cloned());
    // Log lines are read as UTC.
    env.insert("TZ".to_owned(), "UTC".to_owned());
    Ok(Side { tool: Tool { binary, env }, options, options_by_stanza, defaults, postgres_env })
}

/// Asks the tool for its version. Without an answer everything else still runs, and says why
/// nothing works as soon as somebody asks for something.
pub(super) async fn version(tool: &Tool) -> Option<Version> {
    let mut program = Program::new(&tool.binary);
    program.args = vec!["version".to_owned()];
    program.env.clone_from(&tool.env);
    let shown = tool.binary.display();
    match capture(program, Duration::from_secs(10)).await {
        Ok(captured) if captured.end.is_success() => {
            let text = String::from_utf8_lossy(&captured.stdout).trim().to_owned();
            match text.parse::<Version>() {
                Ok(version) => {
                    tracing::info!("{shown} is {version}");
                    Some(version)
                }
                Err(error) => {
                    tracing::warn!("{shown}: {error}");
                    None
                }
            }
        }
        Ok(captured) => {
            tracing::error!("{shown} version {}: {}", captured.end, captured.stderr);
            None
        }
        Err(error) => {
            tracing::error!(
                "{}; install pgBackRest, or set pgbackrest.bin",
                telemetry::chain(&error)
            );
            None
        }
    }
}

fn resolve(configured: &Path, path: &str) -> PathBuf {
    if configured.components().count() > 1 {
        return configured.to_owned();
    }
    let found =
        path.split(':').map(|dir| Path::new(dir).join(configured)).find(|p| is_executable(p));
    found.unwrap_or_else(|| configured.to_owned())
}

/// The files pgBackRest itself reads, in its order (user guide, "Configuration").
fn configuration_files(environment: &Environment) -> Vec<(String, String)> {
    let main = match environment.get("PGBACKREST_CONFIG") {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            ["/etc/pgbackrest/pgbackrest.conf", "/etc/pgbackrest.conf"].map(PathBuf::from).into()
        }
    };
    let include = environment.get("PGBACKREST_CONFIG_INCLUDE_PATH");
    let include = include.unwrap_or("/etc/pgbackrest/conf.d");
    let mut included: Vec<PathBuf> = fs::read_dir(include)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "conf"))
        .collect();
    included.sort();
    // The second default is read only where the first is not there.
    let main = main.into_iter().find(|path| path.exists());
    main.into_iter()
        .chain(included)
        .filter_map(|path| match fs::read_to_string(&path) {
            Ok(text) => Some((path.display().to_string(), text)),
            Err(error) => {
                // pgbackrest itself will refuse to run; this says why before it does.
                tracing::warn!("cannot read pgBackRest's {}: {error}", path.display());
                None
            }
        })
        .collect()
}

fn same_directory(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(a) == real(b)
}
