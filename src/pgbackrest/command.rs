//! One type per pgBackRest subcommand; each becomes an [`Invocation`], which is a value.
//!
//! Pure: this is where every command line is built, nothing is run here. Only options that the
//! subcommand knows stand on its command line (an unknown one is an error there); what all share
//! goes by the environment, see [`super::conf`].

mod upkeep;

use std::path::Path;

use crate::domain::backup::{BackupLabel, BackupType};
use crate::domain::job::BackupOptions;
use crate::domain::{Annotations, DatabaseName, RepoKey, StanzaName, Timeline};

pub use upkeep::{Annotate, Expire, Limits, Verify};

/// A pgBackRest command line: arguments without the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The subcommand, for messages.
    pub subcommand: &'static str,
    /// Every argument, the subcommand last but for its parameters.
    pub args: Vec<String>,
}

/// How much a command writes to its standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Console {
    /// Every file, which is where progress comes from; a job's log keeps less.
    Detail,
    /// Nothing but the answer itself, so that JSON is not mixed with log lines.
    Answer,
}

impl Console {
    fn options(self) -> [&'static str; 3] {
        // The default of log-level-stderr changed at 2.53: always said (pgbackrest.md, Traps).
        match self {
            Self::Detail => {
                ["--log-level-console=detail", "--log-level-stderr=off", "--log-timestamp"]
            }
            Self::Answer => {
                ["--log-level-console=off", "--log-level-stderr=warn", "--no-log-timestamp"]
            }
        }
    }
}

fn build(
    subcommand: &'static str,
    stanza: &StanzaName,
    console: Console,
    options: impl IntoIterator<Item = String>,
) -> Invocation {
    let mut args = vec![format!("--stanza={stanza}")];
    args.extend(options);
    args.extend(console.options().map(str::to_owned));
    args.push(subcommand.to_owned());
    Invocation { subcommand, args }
}

fn switch(name: &str, on: bool) -> String {
    if on { format!("--{name}") } else { format!("--no-{name}") }
}

/// `backup` (pgBackRest command reference, "Backup Command").
#[derive(Debug, Clone)]
pub struct Backup<'a> {
    /// What to back up.
    pub stanza: &'a StanzaName,
    /// Where to; pgBackRest takes the first repository when not given.
    pub repo: Option<RepoKey>,
    /// The wanted type.
    pub backup_type: BackupType,
    /// Notes kept with the backup.
    pub annotations: &'a Annotations,
    /// Options of this run.
    pub options: &'a BackupOptions,
}

impl Backup<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        // What goes is decided by the job itself, which knows of pins (domain::retention).
        let mut options =
            vec![format!("--type={}", self.backup_type), switch("expire-auto", false)];
        options.extend(self.repo.map(|repo| format!("--repo={repo}")));
        options.extend(self.options.process_max.map(|n| format!("--process-max={n}")));
        options.extend(self.options.start_fast.map(|on| switch("start-fast", on)));
        options.extend(self.options.checksum_page.map(|on| switch("checksum-page", on)));
        // One argument each: whatever the value holds, it cannot become an option of its own.
        options.extend(
            self.annotations.iter().map(|(key, value)| format!("--annotation={key}={value}")),
        );
        build("backup", self.stanza, Console::Detail, options)
    }
}

/// `restore` in place, into a server that recovers in standby mode.
///
/// Standby mode, because only there PostgreSQL waits at a missing WAL segment instead of taking
/// it for the end of the archive and promoting (PostgreSQL manual, 27.2 "Log-Shipping Standby").
#[derive(Debug, Clone)]
pub struct RestoreInPlace<'a> {
    /// What to restore.
    pub stanza: &'a StanzaName,
    /// From where.
    pub repo: RepoKey,
    /// The backup set, pinned.
    pub set: &'a BackupLabel,
    /// The timeline that recovery will follow. From 2.55 on pgBackRest refuses a set that is not
    /// on it, before it touches anything; left out it would look at the newest timeline.
    pub timeline: Option<Timeline>,
    /// Only these databases; the others become empty files that must be dropped.
    pub databases: &'a [DatabaseName],
    /// PGDATA, where it is reached through a link: pgBackRest refuses a link that is not its user's only
    /// when `pg_control` is gone (exit 88, seen with 2.45).
    pub data_dir: Option<&'a Path>,
    /// Leave `postgresql.auto.conf` as it is in the set, and make no signal file: pgBackRest cannot
    /// write to one that is read-only there (exit 41, seen with 2.45).
    pub preserve: bool,
}

impl RestoreInPlace<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        let mut options = vec![
            format!("--repo={}", self.repo),
            format!("--set={}", self.set),
            "--delta".to_owned(),
            format!("--type={}", if self.preserve { "preserve" } else { "standby" }),
            // Links are part of the layout: without this a linked pg_wal becomes a directory.
            "--link-all".to_owned(),
        ];
        // There is none without recovery.
        let timeline = self.timeline.filter(|_| !self.preserve);
        options.extend(timeline.map(|timeline| format!("--target-timeline={timeline}")));
        options.extend(self.databases.iter().map(|name| format!("--db-include={name}")));
        options.extend(self.data_dir.map(|path| format!("--pg1-path={}", path.display())));
        build("restore", self.stanza, Console::Detail, options)
    }
}

/// `repo-ls` of a directory of one repository, as JSON. A directory that is not there is an empty
/// answer (seen with 2.45).
#[derive(Debug, Clone)]
pub struct RepoLs<'a> {
    /// The stanza, for its settings.
    pub stanza: &'a StanzaName,
    /// The repository.
    pub repo: RepoKey,
    /// The directory, relative to the repository.
    pub path: &'a str,
}

impl RepoLs<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        let options = vec![format!("--repo={}", self.repo), "--output=json".to_owned()];
        let mut invocation = build("repo-ls", self.stanza, Console::Answer, options);
        invocation.args.push(self.path.to_owned());
        invocation
    }
}

/// `repo-get` of one file, decrypted, to standard output.
#[derive(Debug, Clone)]
pub struct RepoGet<'a> {
    /// The stanza, for its settings.
    pub stanza: &'a StanzaName,
    /// The repository.
    pub repo: RepoKey,
    /// The file, relative to the repository.
    pub path: &'a str,
}

impl RepoGet<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        let options = vec![format!("--repo={}", self.repo)];
        let mut invocation = build("repo-get", self.stanza, Console::Answer, options);
        invocation.args.push(self.path.to_owned());
        invocation
    }
}

/// `check`.
#[derive(Debug, Clone)]
pub struct Check<'a> {
    /// The stanza.
    pub stanza: &'a StanzaName,
}

impl Check<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        build("check", self.stanza, Console::Detail, None)
    }
}

/// `stanza-create`.
#[derive(Debug, Clone)]
pub struct StanzaCreate<'a> {
    /// The stanza.
    pub stanza: &'a StanzaName,
}

impl StanzaCreate<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        build("stanza-create", self.stanza, Console::Detail, None)
    }
}

/// `info`, as JSON or as text.
#[derive(Debug, Clone)]
pub struct Info<'a> {
    /// The stanza. Always given: without it a missing repository answers an empty list.
    pub stanza: &'a StanzaName,
    /// Only this set, with its databases, tablespaces and links.
    pub set: Option<&'a BackupLabel>,
    /// Only this repository.
    pub repo: Option<RepoKey>,
    /// JSON for programs, text for people.
    pub json: bool,
}

impl Info<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        let mut options = vec![format!("--output={}", if self.json { "json" } else { "text" })];
        options.extend(self.set.map(|label| format!("--set={label}")));
        options.extend(self.repo.map(|repo| format!("--repo={repo}")));
        build("info", self.stanza, Console::Answer, options)
    }
}

/// `archive-push` of one WAL segment, as the server's archiver would do it.
#[derive(Debug, Clone)]
pub struct ArchivePush<'a> {
    /// The stanza.
    pub stanza: &'a StanzaName,
    /// The segment's absolute path.
    pub segment: &'a str,
}

impl ArchivePush<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        // Synchronous, and without a limit of the queue, whatever is configured: the answer must mean
        // "it is in the archive".
        let options = vec![
            "--no-archive-async".to_owned(),
            // With one it looks for the queue beside the segment, too, wherever that is.
            "--reset-archive-push-queue-max".to_owned(),
        ];
        let mut invocation = build("archive-push", self.stanza, Console::Detail, options);
        invocation.args.push(self.segment.to_owned());
        invocation
    }
}

/// The `archive_command` of a supervised server, as PostgreSQL's shell will see it.
pub fn archive_command(binary: &str, stanza: &StanzaName) -> String {
    format!("{} --stanza={stanza} archive-push %p", in_shell(binary))
}

/// The `restore_command` of a server that recovers for a restore: Headrest's own, which runs
/// `pgbackrest archive-get` and notes what came of it ([`super::archive_get`]).
#[derive(Debug, Clone)]
pub struct RestoreCommand<'a> {
    /// Headrest's executable.
    pub headrest: &'a str,
    /// pgBackRest's.
    pub pgbackrest: &'a str,
    /// The stanza.
    pub stanza: &'a StanzaName,
    /// The file for the notes.
    pub notes: &'a str,
    /// The run of the server, for the notes.
    pub run: &'a str,
    /// Files that recovery must not get.
    pub withheld: Vec<&'a str>,
    /// Whether it gets none at all: what is in `pg_wal` is all there is.
    pub withhold_all: bool,
}

impl RestoreCommand<'_> {
    /// The command, as PostgreSQL's shell will see it.
    pub fn in_shell(&self) -> String {
        let withheld = self.withheld.iter().map(|file| format!(" --withhold={file}"));
        let withheld: String = withheld.collect();
        let all = if self.withhold_all { " --withhold-all" } else { "" };
        format!(
            "{} archive-get --notes={} --run={}{withheld}{all} %f \"%p\" -- {} --stanza={} archive-get",
            in_shell(self.headrest),
            in_shell(self.notes),
            in_shell(self.run),
            in_shell(self.pgbackrest),
            self.stanza,
        )
    }
}

/// A program's path in a command that PostgreSQL runs: it replaces %p and %f, so a % of the path itself
/// is doubled (manual, 20.5.3).
fn in_shell(binary: &str) -> String {
    let quoted =
        shlex::try_quote(binary).map_or_else(|_| binary.into(), std::borrow::Cow::into_owned);
    quoted.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn main_stanza() -> StanzaName {
        "main".parse().unwrap()
    }

    #[test]
    fn backup_with_everything() {
        let annotations = Annotations::parse(BTreeMap::from([
            ("note".to_owned(), "--force".to_owned()),
            ("ticket".to_owned(), "A=B; rm -rf /".to_owned()),
        ]))
        .unwrap();
        let options = BackupOptions {
            process_max: Some(4),
            start_fast: Some(true),
            checksum_page: Some(false),
        };
        let invocation = Backup {
            stanza: &main_stanza(),
            repo: Some(RepoKey::try_from(2).unwrap()),
            backup_type: BackupType::Diff,
            annotations: &annotations,
            options: &options,
        }
        .invocation();
        insta::assert_snapshot!(invocation.args.join("\n"), @r"
        --stanza=main
        --type=diff
        --no-expire-auto
        --repo=2
        --process-max=4
        --start-fast
        --no-checksum-page
        --annotation=note=--force
        --annotation=ticket=A=B; rm -rf /
        --log-level-console=detail
        --log-level-stderr=off
        --log-timestamp
        backup
        ");
    }

    #[test]
    fn restore_pins_set_and_repository() {
        let invocation = RestoreInPlace {
            stanza: &main_stanza(),
            repo: RepoKey::try_from(1).unwrap(),
            set: &"20261120-101500F_20261120-111500I".parse().unwrap(),
            timeline: Some(Timeline::FIRST),
            databases: &["shop".parse().unwrap(), "a b".parse().unwrap()],
            data_dir: Some(Path::new("/real")),
            preserve: false,
        }
        .invocation();
        insta::assert_snapshot!(invocation.args.join("\n"), @r"
        --stanza=main
        --repo=1
        --set=20261120-101500F_20261120-111500I
        --delta
        --type=standby
        --link-all
        --target-timeline=1
        --db-include=shop
        --db-include=a b
        --pg1-path=/real
        --log-level-console=detail
        --log-level-stderr=off
        --log-timestamp
        restore
        ");
    }

    #[test]
    fn the_others() {
        let stanza = main_stanza();
        let lines = [
            Check { stanza: &stanza }.invocation(),
            StanzaCreate { stanza: &stanza }.invocation(),
            Info { stanza: &stanza, set: None, repo: None, json: true }.invocation(),
            ArchivePush { stanza: &stanza, segment: "/d/pg_wal/000000010000000000000001" }
                .invocation(),
            RepoLs { stanza: &stanza, repo: RepoKey::FIRST, path: "archive/main/15-1" }
                .invocation(),
            RepoGet {
                stanza: &stanza,
                repo: RepoKey::FIRST,
                path: "archive/main/15-1/00000002.history",
            }
            .invocation(),
        ]
        .map(|invocation| invocation.args.join(" "))
        .join("\n");
        insta::assert_snapshot!(lines, @r"
        --stanza=main --log-level-console=detail --log-level-stderr=off --log-timestamp check
        --stanza=main --log-level-console=detail --log-level-stderr=off --log-timestamp stanza-create
        --stanza=main --output=json --log-level-console=off --log-level-stderr=warn --no-log-timestamp info
        --stanza=main --no-archive-async --reset-archive-push-queue-max --log-level-console=detail --log-level-stderr=off --log-timestamp archive-push /d/pg_wal/000000010000000000000001
        --stanza=main --repo=1 --output=json --log-level-console=off --log-level-stderr=warn --no-log-timestamp repo-ls archive/main/15-1
        --stanza=main --repo=1 --log-level-console=off --log-level-stderr=warn --no-log-timestamp repo-get archive/main/15-1/00000002.history
        ");
    }

    #[test]
    fn the_restore_command_is_headrests_own() {
        let plain = RestoreCommand {
            headrest: "/usr/bin/headrest",
            pgbackrest: "/usr/bin/pgbackrest",
            stanza: &main_stanza(),
            notes: "/s/restore/main.attempts",
            run: "01a2",
            withheld: Vec::new(),
            withhold_all: false,
        };
        let odd = RestoreCommand {
            headrest: "/opt/100% ok/headrest",
            pgbackrest: "/opt/it's/pgbackrest",
            withheld: vec!["000000010000000000000004", "000000020000000000000006"],
            withhold_all: true,
            ..plain.clone()
        };
        let lines = [plain.in_shell(), odd.in_shell()].join("\n");
        insta::assert_snapshot!(lines, @r#"
        /usr/bin/headrest archive-get --notes=/s/restore/main.attempts --run=01a2 %f "%p" -- /usr/bin/pgbackrest --stanza=main archive-get
        '/opt/100%% ok/headrest' archive-get --notes=/s/restore/main.attempts --run=01a2 --withhold=000000010000000000000004 --withhold=000000020000000000000006 --withhold-all %f "%p" -- "/opt/it's/pgbackrest" --stanza=main archive-get
        "#);
    }

    #[test]
    fn archive_command_survives_odd_paths() {
        let cases = [
            ("/usr/bin/pgbackrest", "/usr/bin/pgbackrest --stanza=main archive-push %p"),
            ("/opt/100% ok/pgbackrest", "'/opt/100%% ok/pgbackrest' --stanza=main archive-push %p"),
        ];
        for (binary, expect) in cases {
            assert_eq!(archive_command(binary, &main_stanza()), expect);
        }
    }
}
