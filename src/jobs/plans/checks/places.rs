//! Checks of the directories that `pgbackrest restore` and recovery work in, beside PGDATA.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::super::super::context::Context;
use crate::domain::StanzaName;
use crate::domain::plan::check::{Check, CheckId};
use crate::pgbackrest::conf::DEFAULT_LOCK_PATH;

/// Where `archive-push` and `archive-get` keep their queues when nobody says otherwise (manual, "Spool
/// Path Option").
const DEFAULT_SPOOL_PATH: &str = "/var/spool/pgbackrest";
/// Where the log files are when nobody says otherwise (manual, "Log Path Option").
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
    let spool = directory(context, stanza, "spool-path", DEFAULT_SPOOL_PATH);
    let is_async = option(context, stanza, "archive-get", "archive-async");
    let is_async = is_async.is_some_and(|value| value == "y");
    // A restore empties the queue of archive-get before it does anything else.
    if let Some(problem) = unusable(&spool.join("archive").join(stanza.as_str()), is_async) {
        return Check::fail(
            id,
            format!(
                "the spool directory {problem}: the restore, or archive-get after it, would fail. Give \
                 it to the user PostgreSQL runs as, or set spool-path to another directory"
            ),
        );
    }
    let lock = directory(context, stanza, "lock-path", DEFAULT_LOCK_PATH);
    let locks = unusable(&lock, true).or_else(|| foreign_lock(&lock, stanza));
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
    if let Some(problem) = unusable(&log, true).filter(|_| !is_off) {
        let text =
            format!("pgBackRest cannot write its own log files: the log directory {problem}");
        return Check::warn(id, text);
    }
    Check::pass(id, "pgBackRest's spool, lock and log directories can be used")
}

/// What keeps us from using a directory; one that is not there is made by pgBackRest, where it `must`
/// be.
fn unusable(directory: &Path, must: bool) -> Option<String> {
    let shown = directory.display();
    match fs::read_dir(directory) {
        Ok(_) if access(directory, Access::WRITE_OK | Access::EXEC_OK).is_err() => {
            Some(format!("{shown} cannot be written to"))
        }
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let there = directory.ancestors().skip(1).find(|path| path.exists())?;
            let can_make = access(there, Access::WRITE_OK | Access::EXEC_OK).is_ok();
            let shown_there = there.display();
            (must && !can_make)
                .then(|| format!("{shown} is not there and cannot be made in {shown_there}"))
        }
        Err(error) => Some(format!("{shown} cannot be read ({error})")),
    }
}

/// A lock file of this stanza that we may not open.
fn foreign_lock(directory: &Path, stanza: &StanzaName) -> Option<String> {
    let prefix = format!("{stanza}-");
    let entries = fs::read_dir(directory).ok()?.flatten();
    let locks = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&prefix) && name.ends_with(".lock")
    });
    let closed = |path: &PathBuf| access(path, Access::WRITE_OK).is_err() && path.exists();
    locks.into_iter().find(closed).map(|path| format!("has {}, which is not ours", path.display()))
}

/// Whether somebody stopped pgBackRest: then recovery gets no WAL.
pub(super) fn stop_file(context: &Context, stanza: &StanzaName) -> Check {
    let id = CheckId::StopFile;
    let lock = directory(context, stanza, "lock-path", DEFAULT_LOCK_PATH);
    let names = [format!("{stanza}.stop"), "all.stop".to_owned()];
    let there = names.iter().map(|name| lock.join(name)).find(|path| path.exists());
    match there {
        None => Check::pass(id, "pgBackRest was not stopped"),
        Some(path) => Check::warn(
            id,
            format!(
                "pgBackRest was stopped ({}): recovery would wait for WAL until somebody runs \
                 `pgbackrest start`",
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
    fn directories_are_used_or_made() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().join("here");
        fs::create_dir(&here).unwrap();
        assert_eq!(unusable(&here, true), None);
        assert_eq!(unusable(&here.join("a/b"), true), None);
        assert_eq!(unusable(Path::new("/proc/1/none"), false), None);
        let file = here.join("file");
        fs::write(&file, "").unwrap();
        assert!(unusable(&file, false).unwrap().contains("cannot be read"));
        if !rustix::process::geteuid().is_root() {
            fs::set_permissions(&here, fs::Permissions::from_mode(0o500)).unwrap();
            assert!(unusable(&here, false).unwrap().contains("cannot be written to"));
        }
        let stanza: StanzaName = "main".parse().unwrap();
        assert_eq!(foreign_lock(&here, &stanza), None);
    }
}
