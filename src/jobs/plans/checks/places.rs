//! Checks of the directories that `pgbackrest restore` and recovery work in, beside PGDATA.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::super::super::context::Context;
use crate::domain::StanzaName;
use crate::domain::plan::check::{Check, CheckId};
use crate::pgbackrest::conf::DEFAULT_LOCK_PATH;

/// Where `archive-push` and `archive-get` keep their queues by default (manual, "Spool
/// Path Option").
const DEFAULT_SPOOL_PATH: &str = "/var/spool/pgbackrest";
/// Where the log files are by default (manual, "Log Path Option").
const DEFAULT_LOG_PATH: &str = "/var/log/pgbackrest";

/// The value of an option of a command, as the user or Headrest has set it.
fn option(context: &Context, stanza: &StanzaName, command: &str, name: &str) -> Option<String> {
    let user = context.retention.options.get(stanza);
    let set = user.and_then(|options| options.get_for(command, name)).map(str::to_owned);
    let variable = format!("PGBACKREST_{}", name.to_uppercase().replace('-', "_"));
    set.or_else(|| context.server_env(stanza).get(&variable).cloned())
}

fn directory(context: &Context, stanza: &StanzaName, name: &str, default: &str) -> PathBuf {
    option(context, stanza, "restore", name).unwrap_or_else(|| default.to_owned()).into()
}

/// Whether the spool, lock and log directories can be used.
pub(super) fn directories(context: &Context, stanza: &StanzaName) -> Check {
    let id = CheckId::PgbackrestDirectories;
    // A restore removes the queues before it does anything else.
    let spool = directory(context, stanza, "spool-path", DEFAULT_SPOOL_PATH);
    let mut problem = unremovable(&spool.join("archive").join(stanza.as_str()));
    let is_async = option(context, stanza, "archive-get", "archive-async");
    let is_async = is_async.is_some_and(|value| value == "y");
    if is_async {
        let spool = option(context, stanza, "archive-get", "spool-path");
        let spool: PathBuf = spool.unwrap_or_else(|| DEFAULT_SPOOL_PATH.to_owned()).into();
        let queue = spool.join("archive").join(stanza.as_str());
        problem = problem.or_else(|| unusable(&queue));
    }
    if let Some(problem) = problem {
        return Check::fail(
            id,
            format!(
                "the spool directory {problem}: the restore, or archive-get after it, would fail. Give \
                 it to the user PostgreSQL runs as, or set spool-path to another directory"
            ),
        );
    }
    let lock = directory(context, stanza, "lock-path", DEFAULT_LOCK_PATH);
    let locks = unusable(&lock).or_else(|| foreign_lock(&lock, stanza, is_async));
    if let Some(problem) = locks {
        let text = format!(
            "the lock directory {problem}: give it to the user PostgreSQL runs as, or set lock-path to \
             another directory"
        );
        // Earlier ones take no lock for a restore.
        let locks = context.version.as_ref().is_none_or(|version| version.locks_restore());
        return if locks { Check::fail(id, text) } else { Check::warn(id, text) };
    }
    let log = directory(context, stanza, "log-path", DEFAULT_LOG_PATH);
    let is_off = option(context, stanza, "restore", "log-level-file").is_some_and(|v| v == "off");
    if let Some(problem) = unusable(&log).filter(|_| !is_off) {
        let text =
            format!("pgBackRest cannot write its own log files: the log directory {problem}");
        return Check::warn(id, text);
    }
    Check::pass(id, "pgBackRest's spool, lock and log directories can be used")
}

/// What keeps us from using a directory, which pgBackRest makes when it is not there.
fn unusable(directory: &Path) -> Option<String> {
    let shown = directory.display();
    match fs::read_dir(directory) {
        Ok(_) => (!can_change(directory)).then(|| format!("{shown} cannot be written to")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let there = directory.ancestors().skip(1).find(|path| path.exists())?;
            let shown_there = there.display();
            (!can_change(there))
                .then(|| format!("{shown} is not there and cannot be made in {shown_there}"))
        }
        Err(error) => Some(format!("{shown} cannot be read ({error})")),
    }
}

fn can_change(directory: &Path) -> bool {
    access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// What keeps us from removing a directory with everything in it. One that is not there needs no removal.
fn unremovable(directory: &Path) -> Option<String> {
    let shown = directory.display();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(format!("{shown} cannot be read ({error})")),
        Ok(entries) => entries,
    };
    let inside = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let parent = directory.parent().map(Path::to_owned);
    let all = parent.into_iter().chain([directory.to_owned()]).chain(inside);
    let mut closed = all.filter(|path| !can_change(path) || fs::read_dir(path).is_err());
    closed.next().map(|path| format!("{shown} cannot be removed ({} is closed)", path.display()))
}

/// A lock file that a restore of this stanza takes, or archive-get, and that we may not open.
fn foreign_lock(directory: &Path, stanza: &StanzaName, is_async: bool) -> Option<String> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let rest = name.strip_prefix(stanza.as_str()).and_then(|name| name.strip_suffix(".lock"));
        let is_restore = |rest: &str| {
            let number = rest.strip_prefix("-restore").map(|rest| rest.trim_start_matches('-'));
            number.is_some_and(|number| number.chars().all(|digit| digit.is_ascii_digit()))
        };
        rest.is_some_and(|rest| is_restore(rest) || is_async && rest == "-archive")
    };
    let closed = |path: &PathBuf| access(path, Access::WRITE_OK).is_err() && path.exists();
    let mut locks = entries.map(|entry| entry.path()).filter(is_wanted);
    locks.find(closed).map(|path| format!("has {}, which is not ours", path.display()))
}

/// Whether pgBackRest has a stop file: archive-get fails then (exit 62), and recovery gets no WAL.
pub(super) fn stop_file(context: &Context, stanza: &StanzaName) -> Check {
    let id = CheckId::StopFile;
    let lock = directory(context, stanza, "lock-path", DEFAULT_LOCK_PATH);
    let names = [format!("{stanza}.stop"), "all.stop".to_owned()];
    let there = names.iter().map(|name| lock.join(name)).find(|path| path.exists());
    match there {
        None => Check::pass(id, "pgBackRest has no stop file"),
        Some(path) => Check::warn(
            id,
            format!(
                "pgBackRest was stopped ({}): recovery would wait for WAL until \
                 `pgbackrest start` is run",
                path.display()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn directories_are_used_made_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().join("here");
        fs::create_dir(&here).unwrap();
        assert_eq!(unusable(&here), None);
        assert_eq!(unusable(&here.join("a/b")), None);
        assert_eq!(unremovable(&here.join("a/b")), None);
        fs::create_dir_all(here.join("queue/in")).unwrap();
        assert_eq!(unremovable(&here.join("queue")), None);
        let file = here.join("file");
        fs::write(&file, "").unwrap();
        assert!(unusable(&file).unwrap().contains("cannot be read"));
        assert!(unremovable(&file).unwrap().contains("cannot be read"));
        // Everything is open to root.
        if !rustix::process::geteuid().is_root() {
            let close = |path: &Path, mode| {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            };
            close(&here.join("queue/in"), 0o500);
            assert!(unremovable(&here.join("queue")).unwrap().contains("queue/in is closed"));
            close(&here.join("queue/in"), 0o700);
            let locks = ["main-restore-1.lock", "main-archive.lock", "main-2-restore.lock"];
            for name in locks.into_iter().chain(["main-backup-1.lock"]) {
                fs::write(here.join(name), "").unwrap();
                close(&here.join(name), 0o400);
            }
            let stanza: StanzaName = "main".parse().unwrap();
            let found = || foreign_lock(&here, &stanza, false);
            assert!(found().unwrap().contains("main-restore-1.lock"));
            close(&here.join("main-restore-1.lock"), 0o600);
            assert_eq!(found(), None);
            assert!(foreign_lock(&here, &stanza, true).unwrap().contains("main-archive.lock"));
            close(&here, 0o500);
            assert!(unusable(&here).unwrap().contains("cannot be written to"));
            close(&here, 0o700);
        }
    }
}
