//! The first start: a cluster where there is none.
//!
//! On a machine that is initdb and a rule for the local socket. In a container it is the contract
//! of the official `postgres` image ([`Contract`]): initdb as it was asked for, the rule for
//! connections over TCP, and, when there is more to make, a temporary server on the socket alone for
//! the database and the scripts. A first start that was cut short is never mistaken for a finished one:
//! a mark is written before initdb, and another one into PGDATA, which goes where the volume goes,
//! before the scripts.

mod layout;
mod rules;
mod scripts;
mod temporary;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::time::sleep;

use self::layout::former_layout;
use self::rules::{allow_hosts, allow_identities, listen_everywhere};
use self::scripts::Scripts;
use self::temporary::TemporaryServer;
use super::durable::write_durably;
use super::install::Binaries;
use super::pgdata::{self, Content};
use crate::config::Contract;
use crate::process::{CaptureError, End, Program, capture};

const MARK_TEXT: &str = "a first start was begun here and has not ended\n";
const PATIENCE: Duration = Duration::from_mins(10);
/// In PGDATA from the first moments of initdb to the end of a first start. No restore happens
/// meanwhile, so it may.
const MARK_IN_PGDATA: &str = "headrest-first-start-unfinished";
/// Files in the state directory while they are needed.
const PASSWORD: &str = "initdb-password";
const NO_SETTINGS: &str = "first-start.conf";
/// How often is looked whether initdb has begun to write.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What the first start needs to know.
#[derive(Debug, Clone)]
pub struct FirstStart {
    /// PGDATA.
    pub data_dir: PathBuf,
    /// The superuser to make.
    pub superuser: String,
    /// The operating-system user that the server and Headrest run as.
    pub os_user: String,
    /// Whether that user has an entry in the user database; a number given to a container has not.
    pub os_user_has_entry: bool,
    /// Headrest's own directory: the mark of an unfinished initdb lives there.
    pub state_dir: PathBuf,
    /// Arguments that the server will get.
    pub server_args: Vec<String>,
    /// What a container was told.
    pub contract: Option<Contract>,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// PGDATA holds something else.
    #[error(
        "{} is not empty and holds no PostgreSQL cluster (no PG_VERSION); point postgres.data_dir \
         to another directory", data_dir.display()
    )]
    Foreign {
        /// PGDATA.
        data_dir: PathBuf,
    },
    /// An earlier first start was cut short.
    #[error(
        "an earlier first start in {} was cut short, so the cluster there is not whole: empty that \
         directory and start again. If it holds another, whole cluster by now, remove {} instead",
        data_dir.display(), mark.display()
    )]
    CutShort {
        /// PGDATA.
        data_dir: PathBuf,
        /// What says so.
        mark: PathBuf,
    },
    /// Nobody said who may connect.
    #[error(
        "there is no database yet, and no password for its superuser: set POSTGRES_PASSWORD (or \
         POSTGRES_PASSWORD_FILE) to something that is not empty, for example \"-e \
         POSTGRES_PASSWORD=password\" on \"docker run\". POSTGRES_HOST_AUTH_METHOD=trust does \
         without, and lets everybody in who can reach the port; that is not recommended. See \
         https://www.postgresql.org/docs/current/auth-trust.html"
    )]
    NoPassword,
    /// A cluster of the layout before PostgreSQL 18 is mounted where nobody looks for it.
    #[error(
        "PGDATA {} is empty, but {} is there: since PostgreSQL 18 data is in a directory of its \
         version, and the volume is mounted one above (/var/lib/postgresql). Upgrade that cluster \
         with pg_upgrade, or move it, or set PGDATA to where it is", data_dir.display(),
        found.display()
    )]
    FormerLayout {
        /// PGDATA.
        data_dir: PathBuf,
        /// What was found.
        found: PathBuf,
    },
    /// A program could not be run.
    #[error(transparent)]
    Run(#[from] CaptureError),
    /// initdb failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// The server would not start with its arguments.
    #[error("postgres does not take its arguments: {0}")]
    Arguments(String),
    /// The temporary server did not start or stop.
    #[error("the temporary server of the first start {0}")]
    Server(String),
    /// The database could not be made.
    #[error("psql, which was to make the database {name:?}, {end}")]
    Database {
        /// Its name.
        name: String,
        /// How psql ended.
        end: End,
    },
    /// The superuser could not be given its name.
    #[error("psql, which was to name the superuser {name:?}, {end}")]
    Rename {
        /// Its name.
        name: String,
        /// How psql ended.
        end: End,
    },
    /// A script failed.
    #[error(
        "{} of the first start {end}; correct it, empty PGDATA and start again", path.display()
    )]
    Script {
        /// The script.
        path: PathBuf,
        /// How it ended.
        end: End,
    },
    /// A file could not be read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// The mark that says that PGDATA is what an unfinished first start left.
pub fn unfinished(data_dir: &Path, state_dir: &Path) -> Option<PathBuf> {
    [mark_in_state(state_dir), data_dir.join(MARK_IN_PGDATA)].into_iter().find(|mark| mark.exists())
}

/// An empty PGDATA, or one that is being restored, is not what an earlier first start left.
pub fn forget_unfinished(state_dir: &Path) {
    let mark = mark_in_state(state_dir);
    if let Err(error) = fs::remove_file(&mark)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", mark.display());
    }
}

/// Removes what a first start that was killed left in the state directory: there are secrets in it.
pub fn remove_leftovers(state_dir: &Path) {
    for name in [PASSWORD, "passwd", "group", scripts::STATEMENTS, scripts::EXPORTED, NO_SETTINGS] {
        let path = state_dir.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn mark_in_state(state_dir: &Path) -> PathBuf {
    state_dir.join("initdb-unfinished")
}

/// Makes a cluster if PGDATA is empty.
pub async fn ensure_cluster(
    first: &FirstStart,
    binaries: &Binaries,
    env: &BTreeMap<String, String>,
) -> Result<(), BootstrapError> {
    let data_dir = &first.data_dir;
    let content = pgdata::content(data_dir).map_err(file("read", data_dir))?;
    if content != Content::Empty
        && let Some(mark) = unfinished(data_dir, &first.state_dir)
    {
        return Err(BootstrapError::CutShort { data_dir: data_dir.clone(), mark });
    }
    match content {
        Content::Cluster(_) | Content::HalfRestored(_) => return Ok(()),
        Content::Foreign => {
            return Err(BootstrapError::Foreign { data_dir: data_dir.clone() });
        }
        Content::Empty => {}
    }
    if let Some(contract) = &first.contract {
        make_as_agreed(first, contract, binaries, env).await?;
    } else {
        begin(first)?;
        initdb(first, binaries, env, initdb_arguments(first, env)).await?;
        allow_identities(first)?;
    }
    for mark in [mark_in_state(&first.state_dir), data_dir.join(MARK_IN_PGDATA)] {
        fs::remove_file(&mark).map_err(file("remove", &mark))?;
    }
    Ok(())
}

/// On disk before initdb begins: after a power failure it is all that tells a torso apart.
fn begin(first: &FirstStart) -> Result<(), BootstrapError> {
    let mark = mark_in_state(&first.state_dir);
    write_durably(&mark, MARK_TEXT).map_err(file("write", &mark))?;
    tracing::info!(pgdata = %first.data_dir.display(), "making a new cluster with initdb");
    Ok(())
}

/// initdb wants an empty directory when it begins, and no longer. From then on the mark goes where
/// the volume goes.
async fn mark_pgdata(first: &FirstStart) -> Result<(), BootstrapError> {
    while pgdata::major_version(&first.data_dir).is_none() {
        sleep(LOOK_EVERY).await;
    }
    let mark = first.data_dir.join(MARK_IN_PGDATA);
    write_durably(&mark, MARK_TEXT).map_err(file("write", &mark))
}

/// The first start of a container.
async fn make_as_agreed(
    first: &FirstStart,
    contract: &Contract,
    binaries: &Binaries,
    env: &BTreeMap<String, String>,
) -> Result<(), BootstrapError> {
    let trusting = contract.host_auth_method.as_deref() == Some("trust");
    if contract.password.is_none() && !trusting {
        return Err(BootstrapError::NoPassword);
    }
    if let Some(found) = former_layout(&first.data_dir) {
        return Err(BootstrapError::FormerLayout { data_dir: first.data_dir.clone(), found });
    }
    let mut scripts = Scripts::new(first, contract, binaries, env);
    // Before anything is made: a directory that cannot be read is found now or too late.
    let files = scripts.list().await?;
    // With arguments that no server takes none is made. Of a configuration file in PGDATA that can
    // only be told afterwards.
    let own_file = first.server_args.iter().any(|arg| arg.contains("config_file"));
    let early =
        if own_file { None } else { Some(password_encryption(first, binaries, env, false).await?) };
    if trusting {
        tracing::warn!(
            "POSTGRES_HOST_AUTH_METHOD is trust: everybody who can reach the port may connect, as \
             every user, without a password"
        );
    }
    begin(first)?;
    let password = first.state_dir.join(PASSWORD);
    // initdb writes the name into SQL as it is, so one with a quote in it is given afterwards.
    let rename = contract.user.contains('"');
    let user = if rename { "postgres" } else { &contract.user };
    let mut args = vec![
        format!("--pgdata={}", first.data_dir.display()),
        format!("--username={user}"),
        // The default since 18. pgBackRest looks at them in every backup.
        "--data-checksums".to_owned(),
    ];
    if let Some(secret) = &contract.password {
        write_durably(&password, &format!("{}\n", secret.expose_secret()))
            .map_err(file("write", &password))?;
        args.push(format!("--pwfile={}", password.display()));
    }
    if let Some(directory) = &contract.wal_dir {
        args.push(format!("--waldir={}", directory.display()));
    }
    args.extend(contract.initdb_args.iter().cloned());
    let made = initdb(first, binaries, env, args).await;
    if contract.password.is_some() {
        fs::remove_file(&password).map_err(file("remove", &password))?;
    }
    made?;
    listen_everywhere(&first.data_dir)?;
    let method = match &contract.host_auth_method {
        Some(method) => method.clone(),
        None => match early {
            Some(encryption) => method_of(first, encryption)?,
            None => password_encryption(first, binaries, env, true).await?,
        },
    };
    allow_hosts(&first.data_dir, &method)?;

    if !files.is_empty() || contract.database != "postgres" || rename {
        let server = TemporaryServer::start(first, contract, binaries, env).await?;
        let done = run_scripts(&mut scripts, contract, &files, rename).await;
        server.stop().await?;
        done?;
    }
    tracing::info!("first start: PostgreSQL init process complete; ready for start up");
    Ok(())
}

async fn run_scripts(
    scripts: &mut Scripts<'_>,
    contract: &Contract,
    files: &[PathBuf],
    rename: bool,
) -> Result<(), BootstrapError> {
    if rename {
        scripts.rename_superuser().await?;
    }
    if !["postgres", "template0", "template1"].contains(&contract.database.as_str()) {
        scripts.create_database().await?;
    }
    for path in files {
        scripts.run(path).await?;
    }
    Ok(())
}

/// Runs initdb. With an error nothing is left, unless initdb could not tidy up.
async fn initdb(
    first: &FirstStart,
    binaries: &Binaries,
    env: &BTreeMap<String, String>,
    args: Vec<String>,
) -> Result<(), BootstrapError> {
    let mut program = Program::new(binaries.program("initdb"));
    program.args = args;
    program.env.clone_from(env);
    let invented = if first.os_user_has_entry { None } else { invent_user(first, &mut program)? };
    let work = capture(program, PATIENCE);
    tokio::pin!(work);
    let captured = tokio::select! {
        captured = &mut work => captured?,
        marked = mark_pgdata(first) => {
            let captured = work.await?;
            if captured.end.is_success() {
                marked?;
            }
            captured
        }
    };
    for path in invented.into_iter().flatten() {
        fs::remove_file(&path).map_err(file("remove", &path))?;
    }
    if captured.end.is_success() {
        // Quicker than we have looked.
        return mark_pgdata(first).await;
    }
    // initdb removes what it made when it fails by itself.
    if pgdata::content(&first.data_dir).is_ok_and(|content| content == Content::Empty) {
        forget_unfinished(&first.state_dir);
    }
    Err(BootstrapError::Initdb(captured.stderr.replace('\n', " ")))
}

fn initdb_arguments(first: &FirstStart, env: &BTreeMap<String, String>) -> Vec<String> {
    let mut args = vec![
        format!("--pgdata={}", first.data_dir.display()),
        format!("--username={}", first.superuser),
        "--encoding=UTF8".to_owned(),
        "--auth-local=peer".to_owned(),
        "--auth-host=scram-sha-256".to_owned(),
        "--data-checksums".to_owned(),
    ];
    // A server without a locale in its environment would otherwise get C with SQL_ASCII's sorting.
    if !env.contains_key("LANG") && !env.contains_key("LC_ALL") {
        args.push("--locale=C.UTF-8".to_owned());
    }
    args
}

/// initdb refuses a user without an entry in the user database, so it is shown one by nss_wrapper,
/// the library made for that. Answers the files that are to be removed afterwards.
fn invent_user(
    first: &FirstStart,
    program: &mut Program,
) -> Result<Option<[PathBuf; 2]>, BootstrapError> {
    let libraries = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let directories = libraries.map(|entry| entry.path()).chain(["/usr/lib".into()]);
    let library = directories.map(|dir| dir.join("libnss_wrapper.so")).find(|path| path.exists());
    let Some(library) = library else {
        tracing::warn!(
            "user {} has no entry in the user database; initdb needs one",
            first.os_user
        );
        return Ok(None);
    };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let lines = [
        ("passwd", format!("postgres:x:{uid}:{gid}:PostgreSQL:/:/bin/false\n")),
        ("group", format!("postgres:x:{gid}:\n")),
    ];
    let mut paths = lines.map(|(name, text)| (first.state_dir.join(name), name, text));
    for (path, name, text) in &mut paths {
        write_durably(path, text).map_err(file("write", path))?;
        let variable = format!("NSS_WRAPPER_{}", name.to_ascii_uppercase());
        program.env.insert(variable, path.display().to_string());
    }
    program.env.insert("LD_PRELOAD".to_owned(), library.display().to_string());
    Ok(Some(paths.map(|(path, ..)| path)))
}

/// The server's `password_encryption`, and whether it takes its arguments at all: asked with the
/// cluster's own configuration, or with none.
async fn password_encryption(
    first: &FirstStart,
    binaries: &Binaries,
    env: &BTreeMap<String, String>,
    of_cluster: bool,
) -> Result<String, BootstrapError> {
    let nothing = first.state_dir.join(NO_SETTINGS);
    let directory = if of_cluster { &first.data_dir } else { &first.state_dir };
    let mut program = Program::new(binaries.program("postgres"));
    let directory = directory.display().to_string();
    program.args = ["-D", &directory, "-C", "password_encryption"].map(str::to_owned).to_vec();
    if !of_cluster {
        write_durably(&nothing, "").map_err(file("write", &nothing))?;
        program.args.extend(["-c".to_owned(), format!("config_file={}", nothing.display())]);
    }
    program.args.extend(first.server_args.iter().cloned());
    program.env.clone_from(env);
    let captured = capture(program, PATIENCE).await?;
    if !of_cluster {
        fs::remove_file(&nothing).map_err(file("remove", &nothing))?;
    }
    if !captured.end.is_success() {
        return Err(BootstrapError::Arguments(captured.stderr.replace('\n', " ")));
    }
    Ok(String::from_utf8_lossy(&captured.stdout).trim().to_owned())
}

/// The method for connections over TCP when nobody names one: the arguments' `password_encryption`,
/// or the one that initdb wrote.
fn method_of(first: &FirstStart, of_arguments: String) -> Result<String, BootstrapError> {
    let name = "password_encryption";
    if first.server_args.iter().any(|arg| arg.contains(name)) {
        return Ok(of_arguments);
    }
    let path = first.data_dir.join("postgresql.conf");
    let text = fs::read_to_string(&path).map_err(file("read", &path))?;
    let set =
        text.lines().rev().find_map(|line| line.strip_prefix(name)?.split_whitespace().nth(1));
    Ok(set.map_or(of_arguments, |value| value.trim_matches('\'').to_owned()))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootstrapError {
    let path = path.to_owned();
    move |source| BootstrapError::File { operation, path, source }
}
