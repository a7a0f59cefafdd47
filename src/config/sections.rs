//! One struct per concern, and how each is read.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use secrecy::SecretString;

use super::reader::Reader;
use crate::domain::StanzaName;
use crate::domain::recovery::{InvalidTarget, RecoveryTarget};
use crate::domain::words::words;

words! {
    /// Whether requests need a token.
    Auth {
        /// They do.
        Token = "token",
        /// Everybody may do everything.
        Off = "off",
    }
}

words! {
    /// What the short routes allow.
    ShortRoutes {
        /// A destructive GET must carry `?confirm=STANZA`.
        On = "on",
        /// They do not exist.
        Off = "off",
        /// A destructive GET needs no confirmation.
        Trusting = "trusting",
    }
}

words! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text = "text",
        /// For machines.
        Json = "json",
    }
}

words! {
    /// Something that is on or off.
    Switch {
        /// It is.
        On = "on",
        /// It is not.
        Off = "off",
    }
}

/// Whether this server is backed up, and where its data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupsConfig {
    /// Off: Headrest only supervises.
    pub backups: Switch,
    /// An empty PGDATA is restored from the repository to this target, and not made by initdb.
    pub bootstrap_from: Option<RecoveryTarget>,
    /// Whether what was made that way archives to the repository that it came from.
    pub bootstrap_archive: Switch,
}

/// The HTTP side.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Whether requests need a token.
    pub auth: Auth,
    /// A token given by configuration; otherwise one is generated.
    pub admin_token: Option<SecretString>,
    /// What a browser may write in `Host`, without port.
    pub allowed_hosts: Vec<String>,
    /// What the short routes allow.
    pub short_routes: ShortRoutes,
}

/// The supervised PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// PGDATA.
    pub data_dir: PathBuf,
    /// Where `postgres` is; found when not given.
    pub bin_dir: Option<PathBuf>,
    /// The database superuser that Headrest connects as.
    pub superuser: String,
    /// The port; PostgreSQL's own configuration decides when not given.
    pub port: Option<u16>,
    /// The socket directory; PostgreSQL's own configuration decides when not given.
    pub socket_dir: Option<PathBuf>,
    /// More arguments for `postgres`.
    pub args: Vec<String>,
    /// How long a fast stop may take before an immediate one.
    pub stop_timeout: Duration,
    /// How often a commit is made of which time and place are noted; zero for never.
    pub heartbeat: Duration,
}

/// The tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgbackrestConfig {
    /// The executable; looked for in `PATH` when it has no slash.
    pub bin: PathBuf,
}

/// A stanza.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StanzaConfig {
    /// Its name.
    pub name: StanzaName,
}

pub(super) fn server(reader: &mut Reader<'_>) -> ServerConfig {
    let fallback = SocketAddr::from(([127, 0, 0, 1], 8433));
    let listen = reader.parse("listen", "127.0.0.1:8433").unwrap_or(fallback);
    let auth = reader.parse("auth", "token").unwrap_or(Auth::Token);
    let fine = reader.get("auth_off_is_fine_here", false);
    if auth == Auth::Off && !listen.ip().is_loopback() && !fine {
        reader.error(
            "auth",
            &format!(
                "off while listening on {listen} lets everybody on the network restore your \
                 database; set auth_off_is_fine_here = true if that is what you want"
            ),
        );
    }
    let admin_token = reader.secret("admin_token");
    let hosts = ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec();
    let allowed_hosts = reader.get("allowed_hosts", hosts);
    let short_routes = reader.parse("short_routes", "on").unwrap_or(ShortRoutes::On);
    ServerConfig { listen, auth, admin_token, allowed_hosts, short_routes }
}

pub(super) fn backups(reader: &mut Reader<'_>) -> BackupsConfig {
    let backups = reader.parse("backups", "on").unwrap_or(Switch::On);
    let from = reader.get_if_any::<String>("bootstrap_from").filter(|text| !text.is_empty());
    let bootstrap_from = from.and_then(|text| match text.parse() {
        Ok(target) => Some(target),
        Err(error) => {
            let error: InvalidTarget = error;
            reader.error("bootstrap_from", &error.to_string());
            None
        }
    });
    let bootstrap_archive = reader.parse("bootstrap_archive", "off").unwrap_or(Switch::Off);
    BackupsConfig { backups, bootstrap_from, bootstrap_archive }
}

pub(super) fn state_dir(reader: &mut Reader<'_>) -> PathBuf {
    absolute(reader, "state_dir", "/var/lib/headrest")
}

pub(super) fn log_format(reader: &mut Reader<'_>) -> LogFormat {
    reader.parse("log_format", "text").unwrap_or(LogFormat::Text)
}

/// The section's absence means "beside an existing server", but with no file at all the product
/// works out of the box, so then it means its defaults.
pub(super) fn postgres(reader: &mut Reader<'_>) -> (String, Option<PostgresConfig>) {
    let expected = !reader.has_file() || reader.has_section("postgres");
    let supervise = reader.get("postgres.supervise", expected);
    let os_user = reader.get("postgres.os_user", "postgres".to_owned());
    let data_default =
        reader.postgres_variable("PGDATA").unwrap_or_else(|| "/var/lib/postgresql/data".to_owned());
    let config = PostgresConfig {
        data_dir: absolute(reader, "postgres.data_dir", &data_default),
        bin_dir: Some(reader.get("postgres.bin_dir", String::new()))
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from),
        superuser: reader.get("postgres.superuser", "postgres".to_owned()),
        port: reader.get_if_any("postgres.port"),
        socket_dir: reader.get_if_any::<String>("postgres.socket_dir").map(PathBuf::from),
        args: reader.get("postgres.args", Vec::new()),
        stop_timeout: duration(reader, "postgres.stop_timeout", "120s"),
        heartbeat: duration(reader, "postgres.heartbeat", "60s"),
    };
    if config.port == Some(0) {
        reader.error("postgres.port", "0 is not a port");
    }
    (os_user, supervise.then_some(config))
}

pub(super) fn pgbackrest(reader: &mut Reader<'_>) -> PgbackrestConfig {
    PgbackrestConfig { bin: reader.get("pgbackrest.bin", "pgbackrest".to_owned()).into() }
}

pub(super) fn stanzas(reader: &mut Reader<'_>) -> Vec<StanzaConfig> {
    let mut stanzas: Vec<StanzaConfig> = Vec::new();
    let count = reader.tables("stanza");
    for index in 0..count.max(1) {
        let key = format!("stanza[{index}].name");
        let Some(name) = reader.parse::<StanzaName>(&key, "main") else { continue };
        if stanzas.iter().any(|known| known.name == name) {
            reader.error(&key, &format!("{name} is named twice"));
        }
        stanzas.push(StanzaConfig { name });
    }
    stanzas
}

/// Nothing of ours may live inside PGDATA: a delta restore deletes what it does not know.
pub(super) fn check_places(
    reader: &mut Reader<'_>,
    state_dir: &Path,
    postgres: Option<&PostgresConfig>,
) {
    let Some(postgres) = postgres else { return };
    let (state, data) = (resolved(state_dir), resolved(&postgres.data_dir));
    if state.starts_with(&data) {
        reader.error(
            "state_dir",
            &format!(
                "{} is inside PGDATA {}, where a restore deletes what it does not know; choose a \
                 directory outside",
                state_dir.display(),
                postgres.data_dir.display()
            ),
        );
    }
    if data.starts_with(state.join("restore")) {
        reader.error("postgres.data_dir", "is inside the directory that restores work in");
    }
}

fn absolute(reader: &mut Reader<'_>, key: &str, default: &str) -> PathBuf {
    let path = PathBuf::from(reader.get(key, default.to_owned()));
    if !path.is_absolute() {
        reader.error(key, &format!("{} is not an absolute path", path.display()));
    }
    path
}

/// A length of time: a number with `ms`, `s`, `m`, `min`, `h` or `d`.
pub(super) fn duration(reader: &mut Reader<'_>, key: &str, default: &str) -> Duration {
    let text = reader.get(key, default.to_owned());
    // A day is 24 hours here, which jiff does not take for granted.
    let days = text.strip_suffix('d').and_then(|days| days.trim().parse::<u16>().ok());
    let parsed = days.map(|days| Duration::from_hours(24 * u64::from(days))).or_else(|| {
        let signed = text.parse::<jiff::SignedDuration>().ok()?;
        Duration::try_from(signed).ok()
    });
    parsed.unwrap_or_else(|| {
        reader.error(key, &format!("{text:?} is not a length of time such as \"120s\" or \"5m\""));
        Duration::ZERO
    })
}

/// The same as a span of time.
pub(super) fn span(reader: &mut Reader<'_>, key: &str, default: &str) -> SignedDuration {
    SignedDuration::try_from(duration(reader, key, default)).unwrap_or(SignedDuration::MAX)
}

/// The path with links followed as far as it exists and dots taken out of the rest.
fn resolved(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    for ancestor in plain.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return plain.strip_prefix(ancestor).map_or(real.clone(), |rest| real.join(rest));
        }
    }
    plain
}
