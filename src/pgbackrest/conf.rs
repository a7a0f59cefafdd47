//! pgBackRest's own configuration, read: which options the user has set, and where, so that
//! Headrest adds only what is missing.
//!
//! This module must not write configuration, check values (pgBackRest does), override what the
//! user has set, or read files and the environment: both are arguments. Values may be secrets and
//! never reach a log: `Debug` leaves them out.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use crate::domain::stanza::StanzaName;

/// Where the first repository is when nobody says otherwise (manual, "Repository Path Option").
pub const DEFAULT_REPOSITORY: &str = "/var/lib/pgbackrest";
/// Where locks and stop files are when nobody says otherwise (manual, "Lock Path Option").
pub const DEFAULT_LOCK_PATH: &str = "/tmp/pgbackrest";

/// Prefix of pgBackRest's environment variables.
const ENV_PREFIX: &str = "PGBACKREST_";

/// Where an option is set, strongest first: pgBackRest takes the first that it finds
/// (manual, "Command Line Options" and "Configuration"; tested with 2.45).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A `PGBACKREST_` variable.
    Environment,
    /// `[stanza:command]`.
    StanzaCommand,
    /// `[stanza]`.
    Stanza,
    /// `[global:command]`.
    GlobalCommand,
    /// `[global]`.
    Global,
}

/// One option as the user has set it.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// Today's name of the option; a deprecated spelling is translated.
    pub option: String,
    pub place: Place,
    /// The command, in the two places that are for one command only.
    pub command: Option<String>,
    /// The file, or the name of the variable.
    pub source: String,
    value: String,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting")
            .field("option", &self.option)
            .field("place", &self.place)
            .field("command", &self.command)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// What the user has set for one stanza.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserOptions {
    /// In the order of reading.
    settings: Vec<Setting>,
}

impl UserOptions {
    /// Reads the texts of the configuration files, in pgBackRest's order, and the environment.
    ///
    /// As pgBackRest does: sections start afresh in each file, only lines that begin with `#` are
    /// comments, a value reaches to the end of its line. Lines that are no setting are passed
    /// over, as are other stanzas, and pg options in a global section, which pgBackRest ignores.
    pub fn parse(
        files: &[(&str, &str)],
        env: impl Iterator<Item = (String, String)>,
        stanza: &StanzaName,
    ) -> Self {
        let mut settings = Vec::new();
        for (name, value) in env {
            if let Some(option) = name.strip_prefix(ENV_PREFIX) {
                let option = canonical(&option.to_ascii_lowercase().replace('_', "-")).into_owned();
                settings.push(Setting {
                    option,
                    place: Place::Environment,
                    command: None,
                    source: name,
                    value,
                });
            }
        }
        for (file, text) in files {
            read_ini(file, text, stanza, &mut settings);
        }
        Self { settings }
    }

    /// The value that counts, for commands without a section of their own: environment over stanza
    /// over global. Where it is set for some command only, that value, the stanza's first.
    pub fn get(&self, option: &str) -> Option<&str> {
        let option = canonical(option);
        let order = |setting: &&Setting| match setting.place {
            Place::Environment => 0,
            Place::Stanza => 1,
            Place::Global => 2,
            Place::StanzaCommand => 3,
            Place::GlobalCommand => 4,
        };
        let all = self.settings.iter().filter(|s| s.option == option);
        all.min_by_key(order).map(|s| s.value.as_str())
    }

    /// The value that counts for `command`, such as `backup`.
    pub fn get_for(&self, command: &str, option: &str) -> Option<&str> {
        let option = canonical(option);
        let applies =
            |s: &&Setting| s.option == option && s.command.as_deref().is_none_or(|c| c == command);
        self.settings.iter().filter(applies).min_by_key(|s| s.place).map(|s| s.value.as_str())
    }

    /// Whether the user has set the option in any place, for whichever command.
    pub fn is_set(&self, option: &str) -> bool {
        self.get(option).is_some()
    }

    /// Everything that is set, in the order of reading.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Whether some option of repository `key` is set, which is what makes it exist.
    fn has_repo(&self, key: &str) -> bool {
        self.settings.iter().any(|s| indexed(&s.option, "repo").is_some_and(|(n, _)| n == key))
    }

    /// The keys of the repositories that something is set of; the first when there is none.
    pub fn repo_keys(&self) -> Vec<String> {
        let named = self.settings.iter().filter_map(|s| indexed(&s.option, "repo"));
        let mut keys: Vec<String> = named.map(|(key, _)| key.to_owned()).collect();
        if keys.is_empty() {
            keys.push("1".to_owned());
        }
        keys.sort();
        keys.dedup();
        keys
    }

    /// Whether there is another repository than the first.
    pub fn has_other_repos(&self) -> bool {
        self.settings.iter().any(|s| indexed(&s.option, "repo").is_some_and(|(n, _)| n != "1"))
    }

    fn has_any_repo(&self) -> bool {
        self.settings.iter().any(|s| indexed(&s.option, "repo").is_some())
    }
}

fn read_ini(file: &str, text: &str, stanza: &StanzaName, settings: &mut Vec<Setting>) {
    let mut section = None;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            section = name.strip_suffix(']').and_then(|name| place(name, stanza));
            continue;
        }
        let (Some((place, command)), Some((option, value))) = (&section, line.split_once('='))
        else {
            continue;
        };
        let (option, value) = (canonical(option.trim()), value.trim());
        let global = matches!(place, Place::Global | Place::GlobalCommand);
        if option.is_empty() || (global && is_stanza_only(&option)) {
            continue;
        }
        settings.push(Setting {
            option: option.into_owned(),
            place: *place,
            command: command.clone(),
            source: file.to_owned(),
            value: value.to_owned(),
        });
    }
}

/// What a section's name means for this stanza; `None` for other stanzas.
fn place(section: &str, stanza: &StanzaName) -> Option<(Place, Option<String>)> {
    let (name, command) = match section.split_once(':') {
        Some((name, command)) => (name, Some(command.to_owned())),
        None => (section, None),
    };
    let place = match (name, command.is_some()) {
        ("global", false) => Place::Global,
        ("global", true) => Place::GlobalCommand,
        (name, false) if name == stanza.as_str() => Place::Stanza,
        (name, true) if name == stanza.as_str() => Place::StanzaCommand,
        _ => return None,
    };
    Some((place, command))
}

/// Splits `pg1-path` into `1` and `path`.
fn indexed<'a>(option: &'a str, group: &str) -> Option<(&'a str, &'a str)> {
    let (key, rest) = option.strip_prefix(group)?.split_once('-')?;
    (!key.is_empty() && key.bytes().all(|b| b.is_ascii_digit())).then_some((key, rest))
}

/// Options of the pg group that pgBackRest ignores, with a warning, outside a stanza's section.
fn is_stanza_only(option: &str) -> bool {
    indexed(option, "pg")
        .is_some_and(|(_, rest)| matches!(rest, "path" | "port" | "socket-path" | "user"))
}

/// Today's name for a deprecated spelling (pgBackRest's `config.yaml`, `deprecate`), so that
/// `retention-full` counts as `repo1-retention-full` and `db-path` as `pg1-path`.
fn canonical(option: &str) -> Cow<'_, str> {
    let pg = |key: &str, rest: &str| {
        let host = matches!(rest, "cmd" | "config" | "user");
        let rest = if rest == "ssh-port" { "host-port" } else { rest };
        Cow::Owned(format!("pg{key}-{}{rest}", if host { "host-" } else { "" }))
    };
    if let Some((key, rest)) = indexed(option, "db") {
        return pg(key, rest);
    }
    match option {
        "hardlink" => Cow::Borrowed("repo1-hardlink"),
        "backup-host" => Cow::Borrowed("repo1-host"),
        "backup-cmd" => Cow::Borrowed("repo1-host-cmd"),
        "backup-config" => Cow::Borrowed("repo1-host-config"),
        "backup-ssh-port" => Cow::Borrowed("repo1-host-port"),
        "backup-user" => Cow::Borrowed("repo1-host-user"),
        "db-path" | "db-port" | "db-socket-path" | "db-host" | "db-cmd" | "db-config"
        | "db-user" | "db-ssh-port" => pg("1", option.trim_start_matches("db-")),
        _ if option.starts_with("repo-") => Cow::Owned(option.replacen("repo-", "repo1-", 1)),
        _ if option.starts_with("retention-") => Cow::Owned(format!("repo1-{option}")),
        _ => Cow::Borrowed(option),
    }
}

/// What Headrest knows about the cluster that pgBackRest is to work on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// The data directory.
    pub pg_path: String,
    pub pg_port: Option<u16>,
    /// The directory of the Unix socket.
    pub pg_socket_dir: Option<String>,
    pub pg_user: Option<String>,
    /// `repo1-retention-full` where the user has set none.
    pub retention_full: u32,
}

/// `repoN-retention-full` of a new repository.
pub const TWO_FULLS: u32 = 2;
/// The largest count that pgBackRest takes: nothing is removed for being too many.
pub const ALL_FULLS: u32 = 9_999_999;

/// The `PGBACKREST_` variables to add for a pgBackRest process: only for options that the user has
/// set nowhere, because a variable would win over the configuration file.
pub fn environment(defaults: &Defaults, user: &UserOptions) -> BTreeMap<String, String> {
    let mut added = BTreeMap::new();
    let mut add = |option: &str, value: Option<String>, instead: &[&str]| {
        let free = !user.is_set(option) && !instead.iter().any(|other| user.is_set(other));
        if let (true, Some(value)) = (free, value) {
            let name = option.to_ascii_uppercase().replace('-', "_");
            added.insert(format!("{ENV_PREFIX}{name}"), value);
        }
    };
    let yes = |value: &str| Some(value.to_owned());
    add("pg1-path", yes(&defaults.pg_path), &[]);
    add("pg1-port", defaults.pg_port.map(|port| port.to_string()), &[]);
    add("pg1-socket-path", defaults.pg_socket_dir.clone(), &[]);
    add("pg1-user", defaults.pg_user.clone(), &[]);
    // A repo1 option makes a repo1: where the user has only repo2, this one would send the backup
    // to /var/lib/pgbackrest (tested with 2.45).
    if user.has_repo("1") || !user.has_any_repo() {
        let count = defaults.retention_full.to_string();
        add("repo1-retention-full", Some(count), &["repo1-retention-full-type"]);
    }
    add("start-fast", yes("y"), &[]);
    add("compress-type", yes("lz4"), &["compress"]);
    add("log-level-file", yes("off"), &["log-path"]);
    added
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(ini: &str, env: &[(&str, &str)]) -> UserOptions {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        UserOptions::parse(&[("pgbackrest.conf", ini)], env, &"main".parse().unwrap())
    }

    #[test]
    fn precedence() {
        let ini = "[global]\nprocess-max=1\nbuffer-size=1MiB\n[global:backup]\nprocess-max=2\n\
                   start-fast=y\n[main]\nprocess-max=3\n[main:backup]\nprocess-max=4\n[other]\nfoo=1\n";
        let user = options(ini, &[]);
        assert_eq!(user.get("process-max"), Some("3"));
        assert_eq!(user.get_for("backup", "process-max"), Some("4"));
        assert_eq!(user.get_for("restore", "process-max"), Some("3"));
        assert_eq!(user.get_for("restore", "start-fast"), None);
        assert!(user.is_set("start-fast") && !user.is_set("foo"));
        assert_eq!(user.get("buffer-size"), Some("1MiB"));
        let user = options(ini, &[("PGBACKREST_PROCESS_MAX", "9"), ("PROCESS_MAX", "8")]);
        assert_eq!(user.get("process-max"), Some("9"));
        assert_eq!(user.get_for("backup", "process-max"), Some("9"));
        assert_eq!(user.settings()[0].source, "PGBACKREST_PROCESS_MAX");
    }

    #[test]
    fn ini_as_pgbackrest_reads_it() {
        let user = options(
            "orphan=1\n# pg1-port=1\n[main]\r\n  pg1-path = /a b=c # no comment \r\n; semi\n[broken\n\
             spool-path=/s\n=x\n[ main ]\nlock-path=/l\n[global]\npg1-port=5\ndb-port=6\n",
            &[],
        );
        assert_eq!(user.get("pg1-path"), Some("/a b=c # no comment"));
        assert_eq!(user.settings().len(), 1, "{user:?}");
        let env = std::iter::empty();
        let files = [("a.conf", "[main]\npg1-path=/a\n"), ("b.conf", "pg1-port=5\n")];
        let user = UserOptions::parse(&files, env, &"main".parse().unwrap());
        assert!(user.is_set("pg1-path") && !user.is_set("pg1-port"));
    }

    #[test]
    fn deprecated_names() {
        for (old, new) in [
            ("db-path", "pg1-path"),
            ("db2-path", "pg2-path"),
            ("db1-user", "pg1-host-user"),
            ("db-ssh-port", "pg1-host-port"),
            ("repo-path", "repo1-path"),
            ("retention-full", "repo1-retention-full"),
            ("backup-host", "repo1-host"),
            ("db-timeout", "db-timeout"),
            ("db-include", "db-include"),
            ("repo1-path", "repo1-path"),
            ("start-fast", "start-fast"),
        ] {
            assert_eq!(canonical(old), new);
        }
    }

    #[test]
    fn debug_hides_values() {
        let user =
            options("[global]\nrepo1-cipher-pass=hunter2\n", &[("PGBACKREST_REPO1_S3_KEY", "k3y")]);
        let text = format!("{user:?}");
        assert!(text.contains("repo1-cipher-pass") && text.contains("pgbackrest.conf"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("k3y"), "{text}");
    }

    fn added(ini: &str, env: &[(&str, &str)]) -> Vec<String> {
        let defaults = Defaults {
            pg_path: "/pg".to_owned(),
            pg_port: Some(5433),
            pg_socket_dir: Some("/run/pg".to_owned()),
            pg_user: None,
            retention_full: TWO_FULLS,
        };
        let variables = environment(&defaults, &options(ini, env));
        let line = |(k, v): (&String, &String)| format!("{}={v}", &k[ENV_PREFIX.len()..]);
        variables.iter().map(line).collect()
    }

    const ALL: [&str; 7] = [
        "COMPRESS_TYPE=lz4",
        "LOG_LEVEL_FILE=off",
        "PG1_PATH=/pg",
        "PG1_PORT=5433",
        "PG1_SOCKET_PATH=/run/pg",
        "REPO1_RETENTION_FULL=2",
        "START_FAST=y",
    ];

    #[test]
    fn adds_what_is_missing() {
        assert_eq!(added("", &[]), ALL);
        let defaults = Defaults {
            pg_path: "/pg".to_owned(),
            pg_port: None,
            pg_socket_dir: None,
            pg_user: Some("backup".to_owned()),
            retention_full: ALL_FULLS,
        };
        let variables = environment(&defaults, &UserOptions::default());
        assert_eq!(variables.get("PGBACKREST_PG1_USER").map(String::as_str), Some("backup"));
        assert_eq!(variables["PGBACKREST_REPO1_RETENTION_FULL"], "9999999");
        assert!(!variables.contains_key("PGBACKREST_PG1_PORT"));
    }

    #[test]
    fn never_overrides() {
        for (ini, left_out) in [
            ("[main]\npg1-path=/mine\n", "PG1_PATH"),
            ("[main]\ndb-path=/mine\n", "PG1_PATH"),
            ("[main:backup]\npg1-port=1\n", "PG1_PORT"),
            ("[main]\npg1-socket-path=/s\n", "PG1_SOCKET_PATH"),
            ("[global]\nrepo1-retention-full=9\n", "REPO1_RETENTION_FULL"),
            ("[global]\nretention-full=9\n", "REPO1_RETENTION_FULL"),
            ("[global]\nrepo1-retention-full-type=time\n", "REPO1_RETENTION_FULL"),
            ("[global]\nrepo2-path=/r\n", "REPO1_RETENTION_FULL"),
            ("[global:backup]\nstart-fast=n\n", "START_FAST"),
            ("[global]\ncompress=n\n", "COMPRESS_TYPE"),
            ("[global]\ncompress-type=zst\n", "COMPRESS_TYPE"),
            ("[global]\nlog-path=/l\n", "LOG_LEVEL_FILE"),
            ("[global]\nlog-level-file=info\n", "LOG_LEVEL_FILE"),
        ] {
            let expect: Vec<&str> =
                ALL.into_iter().filter(|line| line.split('=').next() != Some(left_out)).collect();
            assert_eq!(added(ini, &[]), expect, "{ini}");
        }
        assert!(!added("", &[("PGBACKREST_START_FAST", "")]).contains(&"START_FAST=y".to_owned()));
        assert_eq!(
            added("[global]\npg1-path=/ignored\nrepo1-path=/r\n[other]\nstart-fast=n\n", &[]),
            ALL
        );
    }
}
