//! Configuration: flags over environment over file over defaults, one struct per concern.
//!
//! Reading reports every error at once. A key nobody reads is an unknown key, so the list of
//! known keys cannot differ from what is used. Must not act on anything it reads, apart from
//! reading the files that `..._FILE` variables name.

mod contract;
mod health;
mod layers;
mod metrics;
mod notify;
mod reader;
mod retention;
mod schedules;
mod sections;

use std::fmt;
use std::path::{Path, PathBuf};

pub use contract::Contract;
pub use health::HealthConfig;
pub use layers::{Environment, Flags};
pub use metrics::MetricsConfig;
pub use notify::{Channel, NotifyConfig, SecretUrl, TargetKind};
pub(crate) use reader::is_secret_option;
pub use reader::{Origin, Shown};
pub use retention::RetentionConfig;
pub use schedules::SchedulesConfig;
pub use sections::{
    Auth, BackupsConfig, LogFormat, PgbackrestConfig, PostgresConfig, ServerConfig, ShortRoutes,
    StanzaConfig, Switch,
};

/// Where the file is looked for when none is named.
pub const DEFAULT_FILE: &str = "/etc/headrest/headrest.toml";

/// Everything that is configured.
#[derive(Debug, Clone)]
pub struct Config {
    /// The HTTP side.
    pub server: ServerConfig,
    /// Where Headrest keeps what is its own.
    pub state_dir: PathBuf,
    /// How Headrest writes its log.
    pub log_format: LogFormat,
    /// The operating-system user to become when started as root.
    pub os_user: String,
    /// Whether the server is backed up, and where its data comes from.
    pub backups: BackupsConfig,
    /// The supervised PostgreSQL; `None` when Headrest runs beside an existing server.
    pub postgres: Option<PostgresConfig>,
    /// The tool.
    pub pgbackrest: PgbackrestConfig,
    /// What is measured, and who may see it.
    pub metrics: MetricsConfig,
    /// What the container was told, when this is the container's service.
    pub contract: Option<Contract>,
    /// Which backups stay.
    pub retention: RetentionConfig,
    /// The stanzas, the supervised server's first.
    pub stanzas: Vec<StanzaConfig>,
    /// How health is judged.
    pub health: HealthConfig,
    /// What is done by itself, and when.
    pub schedules: SchedulesConfig,
    /// Who is told what.
    pub notify: Vec<NotifyConfig>,
    /// Every value with its source, for `headrest config print`.
    pub shown: Vec<Shown>,
    /// `PGBACKREST_*` variables of our own environment, passed on to every child; those of
    /// `PGBACKREST_*_FILE` are read already.
    pub pgbackrest_env: Vec<(String, String)>,
}

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads the configuration from all its sources.
    pub fn load(flags: &Flags, environment: &Environment) -> Result<Self, ConfigErrors> {
        let file = layers::read_file(flags.config.as_deref())?;
        Self::from_layers(flags, environment, file)
    }

    /// The same with the file's text given.
    pub fn from_text(
        flags: &Flags,
        environment: &Environment,
        text: &str,
    ) -> Result<Self, ConfigErrors> {
        let file = layers::parse_file(Path::new("headrest.toml"), text)?;
        Self::from_layers(flags, environment, Some(file))
    }

    fn from_layers(
        flags: &Flags,
        environment: &Environment,
        file: Option<layers::FileLayer>,
    ) -> Result<Self, ConfigErrors> {
        let mut reader = reader::Reader::new(flags, environment, file);
        let server = sections::server(&mut reader);
        let state_dir = sections::state_dir(&mut reader);
        let backups = sections::backups(&mut reader);
        let log_format = sections::log_format(&mut reader);
        let (os_user, postgres) = sections::postgres(&mut reader);
        let pgbackrest = sections::pgbackrest(&mut reader);
        let metrics = metrics::metrics(&mut reader);
        let stanzas = sections::stanzas(&mut reader);
        let retention = retention::retention(&mut reader);
        let schedules = schedules::schedules(&mut reader, &stanzas);
        let notify = notify::targets(&mut reader, &stanzas);
        sections::check_places(&mut reader, &state_dir, postgres.as_ref());
        let health = health::health(&mut reader);
        let pgbackrest_env = reader.pgbackrest_variables();
        let shown = reader.finish()?;
        let config = Self {
            server,
            state_dir,
            backups,
            log_format,
            os_user,
            postgres,
            pgbackrest,
            metrics,
            contract: None,
            retention,
            stanzas,
            health,
            schedules,
            notify,
            shown,
            pgbackrest_env,
        };
        Ok(config)
    }
}

impl Config {
    /// The same for a container that was told `contract` and these arguments for `postgres`.
    /// Where Headrest does not supervise a server none of it counts.
    pub fn as_agreed(
        mut self,
        contract: Contract,
        server_args: Vec<String>,
    ) -> Result<Self, ConfigErrors> {
        let Some(postgres) = &mut self.postgres else { return Ok(self) };
        postgres.args.extend(server_args);
        let is_superuser = |shown: &&Shown| shown.key == "postgres.superuser";
        match self.shown.iter_mut().find(|shown| is_superuser(&&**shown)) {
            Some(shown) if shown.origin == Origin::Default => {
                postgres.superuser.clone_from(&contract.user);
                shown.value = format!("{:?}", contract.user);
                shown.origin = Origin::Environment("POSTGRES_USER".to_owned());
            }
            _ => {}
        }
        self.contract = Some(contract);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        Environment::from_pairs(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    fn errors(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
        match Config::from_text(&Flags::default(), &env(pairs), text) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.0,
        }
    }

    #[test]
    fn nothing_configured_supervises() {
        let config = Config::from_layers(&Flags::default(), &env(&[]), None).unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:8433");
        assert_eq!(config.stanzas[0].name.as_str(), "main");
        assert_eq!(config.postgres.unwrap().data_dir, Path::new("/var/lib/postgresql/data"));
    }

    #[test]
    fn a_file_without_the_section_runs_beside() {
        let config =
            Config::from_text(&Flags::default(), &env(&[]), "listen = \"127.0.0.1:1\"").unwrap();
        assert!(config.postgres.is_none());
        let config = Config::from_text(&Flags::default(), &env(&[("PGDATA", "/d")]), "").unwrap();
        assert_eq!(config.postgres.unwrap().data_dir, Path::new("/d"));
    }

    #[test]
    fn flags_over_environment_over_file() {
        let text = "listen = \"127.0.0.1:1\"\nstate_dir = \"/a\"\n[postgres]\nport = 1\n";
        let pairs = [("HEADREST_LISTEN", "127.0.0.1:2"), ("HEADREST_POSTGRES__PORT", "2")];
        let flags = Flags { listen: Some("127.0.0.1:3".into()), ..Flags::default() };
        let config = Config::from_text(&flags, &env(&pairs), text).unwrap();
        assert_eq!(config.server.listen.port(), 3);
        assert_eq!(config.state_dir, Path::new("/a"));
        assert_eq!(config.postgres.unwrap().port, Some(2));
        let origin = |key: &str| {
            config.shown.iter().find(|shown| shown.key == key).unwrap().origin.to_string()
        };
        assert_eq!(origin("listen"), "flag --listen");
        assert_eq!(origin("postgres.port"), "environment HEADREST_POSTGRES__PORT");
        assert_eq!(origin("state_dir"), "file headrest.toml");
        assert_eq!(origin("auth"), "default");
    }

    #[test]
    fn links_to_a_service_called_headrest_are_no_mistakes() {
        let links = [
            ("HEADREST_SERVICE_HOST", "10.0.0.1"),
            ("HEADREST_SERVICE_PORT_HTTP", "8433"),
            ("HEADREST_PORT", "tcp://10.0.0.1:8433"),
            ("HEADREST_PORT_8433_TCP_ADDR", "10.0.0.1"),
        ];
        assert_eq!(errors("", &links), [] as [String; 0]);
        assert_eq!(errors("", &[("HEADREST_PORTS", "1")]).len(), 1);
    }

    #[test]
    fn all_errors_at_once() {
        let text = "listn = \"127.0.0.1:1\"\nauth = \"maybe\"\n[postgres]\nport = \"x\"\n\
                    [[stanza]]\nname = \"--force\"\n";
        let found = errors(text, &[("HEADREST_LISTEM", "1")]);
        assert_eq!(found.len(), 5, "{found:#?}");
        let all = found.join("\n");
        for part in [
            "listn: unknown key; did you mean listen?",
            "auth: \"maybe\" is not one of token, off",
            "postgres.port: ",
            "stanza[0].name: ",
            "HEADREST_LISTEM: unknown variable; did you mean HEADREST_LISTEN?",
        ] {
            assert!(all.contains(part), "{part:?} not in\n{all}");
        }
    }

    #[test]
    fn refused_combinations() {
        let cases = [
            ("state_dir = \"/d/state\"\n[postgres]\ndata_dir = \"/d\"", "inside PGDATA"),
            ("state_dir = \"/d\"\n[postgres]\ndata_dir = \"/d\"", "inside PGDATA"),
            ("state_dir = \"/d/../p/s\"\n[postgres]\ndata_dir = \"/p\"", "inside PGDATA"),
            ("auth = \"off\"\nlisten = \"0.0.0.0:1\"", "auth_off_is_fine_here"),
            ("state_dir = \"relative\"", "absolute"),
            ("[[stanza]]\nname = \"a\"\n[[stanza]]\nname = \"a\"", "twice"),
            ("[postgres]\nstop_timeout = \"5 parsecs\"", "stop_timeout"),
            ("listen = \"nowhere\"", "listen"),
            ("listen = [", "headrest.toml"),
            ("[retention]\ndaily = 1001", "retention.daily: is not from 0 to 1000"),
            ("[retention]\nweekly = \"x\"", "retention.weekly"),
            ("[retention]\ntimezone = \"Mars/Base\"", "retention.timezone"),
            ("[retention]\nhourly = 3", "retention.hourly: unknown key"),
            ("[[schedule]]\nname = \"x\"\ntype = \"full\"", "schedule[0].cron: is missing"),
            ("[[schedule]]\nname = \"x\"\ncorn = \"@daily\"", "schedule[0].corn: unknown key"),
        ];
        for (text, part) in cases {
            let found = errors(text, &[]).join("\n");
            assert!(found.contains(part), "{text:?} gives {found:?}, not {part:?}");
        }
    }

    #[test]
    fn schedules_are_read_and_every_mistake_is_named_with_its_field() {
        let good = "[[schedule]]\nname = \"weekly\"\ntype = \"full\"\ncron = \"0 2 * * SUN\"\n\
                    timezone = \"Europe/Berlin\"\nwithin = \"2d\"\njitter = \"10m\"\nretries = 1\n\
                    repo = 2\nmissed = \"skip\"\n";
        let config = Config::from_text(&Flags::default(), &env(&[]), good).unwrap();
        let [weekly] = config.schedules.written.as_slice() else { panic!("one schedule") };
        assert_eq!((weekly.within.as_hours(), weekly.jitter.as_mins()), (48, 10));
        assert_eq!((weekly.timezone.name(), weekly.stanza.as_str()), ("Europe/Berlin", "main"));
        let bad = "[[schedule]]\nname = \"--x\"\ntype = \"drill\"\ncron = \"0 0 30 2 *\"\n\
                   timezone = \"Mars\"\nwithin = \"soon\"\nstanza = \"other\"\nrepo = 0\n\
                   missed = \"maybe\"\nretries = \"x\"\n";
        let found = errors(bad, &[]);
        for field in
            ["name", "type", "cron", "timezone", "within", "stanza", "repo", "missed", "retries"]
        {
            let key = format!("schedule[0].{field}: ");
            assert!(found.iter().any(|error| error.starts_with(&key)), "{key} not in {found:#?}");
        }
        let twice = format!("{good}{good}");
        assert!(errors(&twice, &[]).join("").contains("weekly is named twice"));
    }

    #[test]
    fn secrets_come_from_files_and_are_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "s3cret-s3cret-s3cret\n").unwrap();
        let path = file.path().to_str().unwrap();
        let pairs =
            [("HEADREST_ADMIN_TOKEN_FILE", path), ("PGBACKREST_REPO1_CIPHER_PASS_FILE", path)];
        let config = Config::from_layers(&Flags::default(), &env(&pairs), None).unwrap();
        assert!(config.server.admin_token.is_some());
        let leaked = config.shown.iter().find(|shown| shown.value.contains("s3cret"));
        assert_eq!(leaked, None);
        assert_eq!(
            config.pgbackrest_env,
            [("PGBACKREST_REPO1_CIPHER_PASS".to_owned(), "s3cret-s3cret-s3cret".to_owned())]
        );
    }

    #[test]
    fn options_of_pgbackrest_that_name_a_file_stay_what_they_are() {
        let names = [
            "PGBACKREST_REPO1_SFTP_PRIVATE_KEY_FILE",
            "PGBACKREST_REPO1_SFTP_PUBLIC_KEY_FILE",
            "PGBACKREST_REPO1_STORAGE_CA_FILE",
            "PGBACKREST_REPO1_HOST_KEY_FILE",
            "PGBACKREST_TLS_SERVER_KEY_FILE",
        ];
        for name in names {
            let pairs = [(name, "/keys/id")];
            let config = Config::from_layers(&Flags::default(), &env(&pairs), None).unwrap();
            assert_eq!(config.pgbackrest_env, [(name.to_owned(), "/keys/id".to_owned())]);
        }
    }

    #[test]
    fn the_documented_default_file_loads_and_names_every_key() {
        let text = include_str!("../docker/headrest.default.toml");
        let config = Config::from_text(&Flags::default(), &env(&[]), text).unwrap();
        let bare = Config::from_layers(&Flags::default(), &env(&[]), None).unwrap();
        assert_eq!(config.postgres, bare.postgres);
        assert_eq!(config.stanzas, bare.stanzas);
        for shown in &bare.shown {
            let key = shown.key.rsplit('.').next().unwrap();
            assert!(
                text.lines().any(|line| {
                    let line = line.trim_start_matches("# ");
                    line.starts_with(&format!("{key} ="))
                }),
                "{} is not documented in docker/headrest.default.toml",
                shown.key
            );
        }
    }
}
