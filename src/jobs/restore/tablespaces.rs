//! Tablespaces that the set does not have. A delta restore knows nothing of their directories, and
//! replay links them again as they are: with pages of a discarded future, from which rows come back
//! (design/restore.md). So what they hold is renamed before recovery, and what replay needs is made.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::super::journal::sync_directory;
use super::super::worker::problem;
use super::{Next, Run, Stop};
use crate::clock;
use crate::domain::restore::{Awaiting, Journal, MovedAside, Tablespace, Wait};
use crate::pgbackrest::log::Level;
use crate::postgres::client::Catalogue;
use crate::postgres::pgdata;
use crate::postgres::tablespaces;

impl Run<'_> {
    /// Notes the tablespaces of the cluster that is about to be replaced. The server is down.
    pub(super) fn note_tablespaces(&mut self) -> Result<(), Stop> {
        let found = tablespaces::linked(&self.side.data_dir).map_err(|error| {
            let message = format!("cannot read pg_tblspc: {error}");
            Stop::Aborted(problem("storage-read", message, &[]))
        })?;
        for tablespace in found {
            add_tablespace(&mut self.journal, tablespace);
        }
        Ok(())
    }

    /// Renames what is in the locations of tablespaces that the restored set does not have, and makes
    /// locations that are gone. No server has been started on the restored files yet. Can be done again.
    pub(super) async fn clear_tablespaces(&mut self) -> Result<(), Stop> {
        let restored = tablespaces::linked(&self.side.data_dir).map_err(|error| {
            let message = format!("cannot read the restored pg_tblspc: {error}");
            Stop::NeedsOperator(problem("storage-read", message, &[]))
        })?;
        self.journal.set_tablespaces = restored.iter().map(|tablespace| tablespace.oid).collect();
        if let (Some(major), Some(control)) =
            (pgdata::major_version(&self.side.data_dir), self.control().await)
        {
            let name = tablespaces::version_dir(major, control.catalog_version);
            self.journal.version_dir = Some(name);
        }
        let in_set = |tablespace: &Tablespace| {
            restored.iter().any(|own| {
                own.location == tablespace.location
                    || own.real.is_some() && own.real == tablespace.real
            })
        };
        let foreign: Vec<Tablespace> =
            self.journal.tablespaces.iter().filter(|space| !in_set(space)).cloned().collect();
        for tablespace in foreign {
            self.clear(&tablespace).await?;
        }
        Ok(())
    }

    async fn clear(&mut self, tablespace: &Tablespace) -> Result<(), Stop> {
        let failed = |what: &str, path: &Path, error: &io::Error| {
            let message = format!("cannot {what} {}: {error}", path.display());
            let hint = "Rows of the discarded future would come back from there. Correct the cause and \
                        restore again.";
            Stop::NeedsOperator(problem("storage-write", message, &[hint]))
        };
        let Some(name) = self.journal.version_dir.clone() else { return Ok(()) };
        let location = tablespace.real.clone().unwrap_or_else(|| tablespace.location.clone());
        let (from, to) = (location.join(&name), location.join(aside_name(&name, &self.journal)));
        if !from.exists() {
            return self.make_location(&tablespace.location).await;
        }
        if to.exists() {
            // It was renamed before: what is there now is what this restore's replay has made since.
            fs::remove_dir_all(&from).map_err(|error| failed("remove", &from, &error))?;
            return sync_directory(&location).map_err(|error| failed("sync", &location, &error));
        }
        let moved = MovedAside { from: from.clone(), to: to.clone() };
        if !self.journal.moved.contains(&moved) {
            self.journal.moved.push(moved);
            self.write_journal().await.map_err(Stop::NeedsOperator)?;
        }
        fs::rename(&from, &to).map_err(|error| failed("rename", &from, &error))?;
        sync_directory(&location).map_err(|error| failed("sync", &location, &error))?;
        let text = format!(
            "the set does not have the tablespace in {}: what is there is kept as {}",
            location.display(),
            to.display()
        );
        self.recorder.say(Level::Info, text).await;
        Ok(())
    }

    /// Makes the location of a tablespace that replay needs. Whether its parent is there is found out
    /// when replay comes to it: the tablespace may be made after the target.
    async fn make_location(&mut self, location: &Path) -> Result<(), Stop> {
        if location.exists() || !location.parent().is_some_and(Path::is_dir) {
            return Ok(());
        }
        match make_private_directory(location) {
            Ok(()) => {
                let text =
                    format!("made {}, which a tablespace of the WAL needs", location.display());
                self.recorder.say(Level::Info, text).await;
            }
            Err(error) => {
                let text = format!("cannot make {}: {error}", location.display());
                self.recorder.say(Level::Warn, text).await;
            }
        }
        Ok(())
    }

    /// A location without which PostgreSQL has just ended: made, if its parent is there; else what is
    /// waited for.
    pub(super) async fn missing_location(&mut self, reason: &str) -> Option<Option<Wait>> {
        let location = missing_directory(reason)?;
        if location.exists() {
            return None;
        }
        let parent = location.parent().filter(|parent| !parent.is_dir());
        if let Some(parent) = parent {
            let missing = parent.ancestors().take_while(|path| !path.exists()).last();
            let text = format!(
                "a tablespace of the WAL is in {}, and {} is not there",
                location.display(),
                missing.unwrap_or(parent).display()
            );
            return Some(Some(Wait::of(Awaiting::Directory, text)));
        }
        match make_private_directory(&location) {
            Ok(()) => {
                let text =
                    format!("made {}, which a tablespace of the WAL needs", location.display());
                self.recorder.say(Level::Info, text).await;
                Some(None)
            }
            Err(error) => {
                let text = format!("cannot make {}: {error}", location.display());
                Some(Some(Wait::of(Awaiting::Directory, text)))
            }
        }
    }

    /// Looks whether replay has linked a tablespace onto files of before, which nobody knew of. Then they
    /// are known now, and everything is restored again.
    pub(super) async fn find_stale_tablespaces(&mut self) -> Result<Option<Next>, Stop> {
        let (Some(since), Some(name)) =
            (self.journal.recovering_since, self.journal.version_dir.clone())
        else {
            return Ok(None);
        };
        let unreadable = |message: String| {
            Stop::NeedsOperator(problem("recovery-failed", message, &["Restore again."]))
        };
        let linked = tablespaces::linked(&self.side.data_dir)
            .map_err(|error| unreadable(format!("cannot read the recovered pg_tblspc: {error}")))?;
        let mut stale = Vec::new();
        for tablespace in linked {
            if self.journal.set_tablespaces.contains(&tablespace.oid) {
                continue;
            }
            let directory = tablespace.location.join(&name);
            let older = tablespaces::holds_older_than(&directory, since).map_err(|error| {
                unreadable(format!("cannot look at {}: {error}", directory.display()))
            })?;
            if older {
                stale.push(tablespace);
            }
        }
        if stale.is_empty() {
            return Ok(None);
        }
        for tablespace in stale {
            let text = format!(
                "{} held files from before this restore, which would bring rows of the discarded \
                 future back; restoring again without them",
                tablespace.location.display()
            );
            self.recorder.say(Level::Warn, text).await;
            add_tablespace(&mut self.journal, tablespace);
        }
        self.write_journal().await.map_err(Stop::NeedsOperator)?;
        self.stop_server().await?;
        Ok(Some(Next::Restore))
    }

    /// Notes the tablespaces that replay has made and the recovered cluster does not list.
    pub(super) fn note_unborn_tablespaces(&mut self, listed: &Catalogue) -> Result<(), Stop> {
        let linked = tablespaces::linked(&self.side.data_dir).map_err(|error| {
            let message = format!("cannot read the recovered pg_tblspc: {error}");
            Stop::NeedsOperator(problem("recovery-failed", message, &["Restore again."]))
        })?;
        let is_listed = |oid: u32| listed.tablespaces.iter().any(|(known, _)| *known == oid);
        let oids = linked.into_iter().map(|tablespace| tablespace.oid);
        self.journal.unborn = oids.filter(|oid| !is_listed(*oid)).collect();
        Ok(())
    }

    /// Removes the links of tablespaces that were not committed, and what replay has made behind them:
    /// as long as one is there, pgBackRest backs up nothing (exit code 25). The server is down.
    pub(super) async fn remove_unborn_tablespaces(&mut self) {
        if self.journal.unborn.is_empty() {
            return;
        }
        let directory = self.side.data_dir.join("pg_tblspc");
        for oid in self.journal.unborn.clone() {
            let link = directory.join(oid.to_string());
            let text = match remove_link(&link, self.journal.version_dir.as_deref()) {
                Ok(Some(location)) => {
                    let text = format!(
                        "the tablespace in {} was not committed at the target: removed its link",
                        location.display()
                    );
                    self.recorder.say(Level::Info, text).await;
                    continue;
                }
                Ok(None) => continue,
                Err(error) => format!(
                    "cannot remove {}, the link of a tablespace that was not committed: {error}. Remove \
                     it by hand: pgBackRest backs up nothing as long as it is there",
                    link.display()
                ),
            };
            self.recorder.say(Level::Warn, text).await;
        }
        if let Err(error) = sync_directory(&directory) {
            let text = format!("cannot sync {}: {error}", directory.display());
            self.recorder.say(Level::Warn, text).await;
        }
        // Clients may make tablespaces from now on.
        self.journal.unborn.clear();
        if let Err(error) = self.write_journal().await {
            self.recorder.say(Level::Warn, error.message).await;
        }
    }

    /// Removes what earlier restores renamed and no undo needs any more: the undo replays everything
    /// from the set. `wanted` are the restores that can still be undone.
    pub(super) async fn remove_old_asides(&mut self, journals: &[Journal], wanted: usize) {
        let undone = self.journal.undoes;
        let old = journals.iter().enumerate().filter(|(at, journal)| {
            journal.id != self.journal.id && (*at >= wanted || Some(journal.id) == undone)
        });
        for moved in old.flat_map(|(_, journal)| &journal.moved) {
            if !moved.to.exists() || self.journal.moved.iter().any(|own| own.to == moved.to) {
                continue;
            }
            if let Err(error) = fs::remove_dir_all(&moved.to) {
                let text = format!("cannot remove {}: {error}", moved.to.display());
                self.recorder.say(Level::Warn, text).await;
            }
        }
    }

    /// Notes that a server is about to be started on the restored files.
    pub(super) fn note_recovery_begins(&mut self) {
        self.journal.recovering_since.get_or_insert_with(clock::now);
    }
}

fn add_tablespace(journal: &mut Journal, tablespace: Tablespace) {
    let known = |other: &Tablespace| {
        other.location == tablespace.location
            || other.real.is_some() && other.real == tablespace.real
    };
    if !journal.tablespaces.iter().any(known) {
        journal.tablespaces.push(tablespace);
    }
}

/// The name under which this restore keeps a version's directory aside.
fn aside_name(version_dir: &str, journal: &Journal) -> String {
    format!("{version_dir}.before-{}", journal.id)
}

fn make_private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().mode(0o700).create(path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Removes a link in `pg_tblspc` and the version's directory behind it, if that is empty. Answers where
/// it led to; `None` when it is not there.
fn remove_link(link: &Path, version_dir: Option<&str>) -> io::Result<Option<PathBuf>> {
    let location = match fs::read_link(link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        location => location?,
    };
    if let Some(name) = version_dir {
        // Whatever is in it is not of this tablespace, which never existed.
        if fs::remove_dir(location.join(name)).is_ok() {
            sync_directory(&location)?;
        }
    }
    fs::remove_file(link).map(|()| Some(location))
}

/// The directory in PostgreSQL's own words (`create_tablespace_directories`, in the C locale).
fn missing_directory(reason: &str) -> Option<PathBuf> {
    let is_it = reason.contains("Create this directory for the tablespace before restarting");
    let (_, rest) = reason.split_once("directory \"").filter(|_| is_it)?;
    Some(PathBuf::from(rest.split_once("\" does not exist")?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_directory_is_read_from_the_message() {
        let reason = "PostgreSQL exited with code 1; it said: FATAL:  directory \"/a b/ts\" does not \
                      exist\nHINT:  Create this directory for the tablespace before restarting the \
                      server.";
        assert_eq!(missing_directory(reason), Some(PathBuf::from("/a b/ts")));
        assert_eq!(missing_directory("FATAL:  directory \"/a\" does not exist"), None);
    }
}
