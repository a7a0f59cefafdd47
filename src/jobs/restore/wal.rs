//! The WAL that the archive does not have: found, kept aside, and put back. `drain` pushes it.
//!
//! A delta restore empties `pg_wal`, and with it commits that nobody else has. What cannot be
//! pushed (above all the unfinished last segment of a server that crashed) is kept in the state
//! directory and put back before recovery, which reads it after the archive's end (PostgreSQL
//! manual, 26.3.5 "Recovering Using a Continuous Archive Backup", step 7).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use super::super::heartbeat;
use super::super::journal::sync_directory;
use super::Run;
use crate::domain::restore::UndoPoint;
use crate::domain::timeline::Timelines;
use crate::domain::{SegmentSize, Timeline, WalSegment};
use crate::pgbackrest::listing;
use crate::pgbackrest::log::Level;
use crate::postgres::control::ControlData;
use crate::postgres::pg_wal::{self, history_name, segment_of};
use crate::postgres::state::ServerState;
use crate::postgres::wal_links;

/// How long the last commit may take to reach the archive while the server still runs. Draining
/// takes care of what does not.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(10);

impl Run<'_> {
    /// Commits, names the moment and has it archived, so that an undo can go back to it. The data
    /// does not depend on it.
    pub(super) async fn safe_point(&mut self) {
        let control = self.control().await;
        if self.is_of_another(control.as_ref()) {
            let text = "PGDATA is of another cluster: no restore point is made";
            return self.recorder.say(Level::Warn, text).await;
        }
        let status = self.context.postgres.status();
        if status.state != ServerState::Ready {
            let text = format!("PostgreSQL is {}: no restore point is made", status.state);
            return self.recorder.say(Level::Warn, text).await;
        }
        let Some(connection) = self.connect().await else {
            return self.recorder.say(Level::Warn, "cannot connect: no restore point").await;
        };
        let Ok(name) = format!("headrest_{}", self.journal.id).parse() else { return };
        let made = match connection.safe_point(&name).await {
            Ok(made) => made,
            Err(error) => {
                return self.recorder.say(Level::Warn, format!("no restore point: {error}")).await;
            }
        };
        let (commit, lsn) = (made.commit, made.lsn);
        self.journal.undo_point = Some(UndoPoint {
            timeline: commit.timeline,
            lsn,
            name: name.to_string(),
            at: commit.at,
        });
        if let Err(error) = heartbeat::note(self.context, self.side, commit).await {
            let text = format!("the last commit was not noted: {error}");
            self.recorder.say(Level::Warn, text).await;
        }
        if status.archiver.is_some_and(|archiver| archiver.is_failing()) {
            let text = "archiving fails at present; the WAL is saved after the stop";
            return self.recorder.say(Level::Warn, text).await;
        }
        let deadline = tokio::time::Instant::now() + ARCHIVE_PATIENCE;
        while tokio::time::Instant::now() < deadline && !self.cancel.is_cancelled() {
            match connection.last_archived_wal().await {
                Ok(Some(last)) if last.get(8..24) >= made.segment.get(8..24) => return,
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
        let text = format!("WAL segment {} did not reach the archive in time", made.segment);
        self.recorder.say(Level::Warn, text).await;
    }

    /// Whether PGDATA is of another cluster than the backups are. It is replaced, as accepted; nothing
    /// that it says is about the one that is restored.
    pub(super) fn is_of_another(&self, control: Option<&ControlData>) -> bool {
        let ours = self.journal.system_id.as_ref();
        control.zip(ours).is_some_and(|(control, ours)| control.system_id != *ours)
    }

    pub(super) fn histories_dir(&self) -> PathBuf {
        let journal = &self.journal;
        self.context.journals.histories_dir(&journal.stanza, journal.system_id.as_deref())
    }

    /// Keeps the history of every timeline that `pg_wal` knows.
    pub(super) fn keep_histories(&self) -> io::Result<()> {
        let pg_wal = self.side.data_dir.join("pg_wal");
        copy_missing_histories(&pg_wal, &self.histories_dir())
    }

    /// Puts the kept histories into `pg_wal`. Can be done again.
    pub(super) fn place_histories(&self) -> Result<(), String> {
        let histories = self.histories_dir();
        copy_missing_histories(&histories, &self.side.data_dir.join("pg_wal")).map_err(|error| {
            format!("cannot put the histories of {} into pg_wal: {error}", histories.display())
        })
    }

    /// Puts the kept histories and segments into the restored `pg_wal`. Can be done again.
    pub(super) fn place_kept_wal(&self) -> Result<(), String> {
        self.place_histories()?;
        let Some(kept) = &self.journal.kept_wal else { return Ok(()) };
        // What was placed before stays; after an accepted end nothing more is wanted.
        if self.journal.accepted_end.is_some() {
            return Ok(());
        }
        let (pg_wal, size) = (self.side.data_dir.join("pg_wal"), self.segment_size());
        let place = || -> io::Result<()> {
            let entries = fs::read_dir(kept)?.collect::<io::Result<Vec<_>>>()?;
            let segments: Vec<WalSegment> =
                entries.iter().filter_map(|entry| segment_of(&entry.path(), size)).collect();
            for entry in entries {
                let name = entry.file_name().display().to_string();
                if self.journal.left_in.contains_key(&name) {
                    continue;
                }
                let to = pg_wal.join(entry.file_name());
                if let Some(segment) = segment_of(&to, size) {
                    // After a whole one others were written. The new server archives it; it would take an
                    // unfinished one for whole.
                    let later = |other: &WalSegment| {
                        other.timeline() == segment.timeline() && other.number() > segment.number()
                    };
                    let is_whole =
                        self.journal.unarchived.contains(&name) || segments.iter().any(later);
                    pg_wal::set_status(&pg_wal, &name, is_whole)?;
                }
                let length = entry.metadata()?.len();
                // A copy, never a link: the server will write to its own.
                if !fs::metadata(&to).is_ok_and(|there| there.len() == length) {
                    copy_durably(&entry.path(), &to)?;
                }
            }
            sync_directory(&pg_wal)
        };
        place().map_err(|error| {
            format!("cannot put the kept WAL of {} into pg_wal: {error}", kept.display())
        })
    }

    /// The last segment that was kept.
    pub(super) fn kept_until(&self) -> Option<WalSegment> {
        let size = self.segment_size();
        let entries = fs::read_dir(self.journal.kept_wal.as_ref()?).ok()?.flatten();
        let segments = entries.filter_map(|entry| segment_of(&entry.path(), size));
        let ours = self.journal.timeline;
        segments.filter(|s| ours.is_none_or(|t| s.timeline() == t)).max_by_key(WalSegment::number)
    }

    /// Whether the history of a timeline is only in what was kept.
    pub(super) fn keeps_history(&self, timeline: Timeline) -> bool {
        let name = history_name(timeline);
        self.journal.kept_wal.as_ref().is_some_and(|kept| kept.join(name).exists())
    }

    /// The kept segments are not needed any more.
    pub(super) fn forget_kept_wal(&mut self) {
        if let Some(kept) = self.journal.kept_wal.take()
            && let Err(error) = fs::remove_dir_all(&kept)
        {
            tracing::warn!("cannot remove {}: {error}", kept.display());
        }
    }

    pub(super) fn segment_size(&self) -> SegmentSize {
        let bytes = self.journal.segment_bytes;
        bytes.and_then(|bytes| SegmentSize::try_from(bytes).ok()).unwrap_or_default()
    }
}

/// Gives back to `pg_wal` what a restore that changes nothing has saved of it: the segments of the
/// server's own timeline that its shutdown took for archived and removed. The server archives them once
/// more. Can be done again.
pub(in crate::jobs) fn give_back(
    pg_wal: &Path,
    kept: Option<&Path>,
    own: Option<Timeline>,
    size: SegmentSize,
) -> io::Result<()> {
    if !pg_wal.exists() {
        return Ok(());
    }
    let is_missing = |path: &PathBuf| {
        let segment = segment_of(path, size);
        segment.is_some_and(|segment| {
            Some(segment.timeline()) == own && !pg_wal.join(segment.to_string()).exists()
        })
    };
    for path in wal_links::left(pg_wal, size)?.into_iter().filter(is_missing) {
        let Some(name) = name_of(&path) else { continue };
        fs::rename(&path, pg_wal.join(&name))?;
        pg_wal::set_status(pg_wal, &name, true)?;
    }
    let kept = kept.into_iter().flat_map(|kept| fs::read_dir(kept).into_iter().flatten().flatten());
    for path in kept.map(|entry| entry.path()).filter(is_missing) {
        let Some(name) = name_of(&path) else { continue };
        copy_durably(&path, &pg_wal.join(&name))?;
        pg_wal::set_status(pg_wal, &name, true)?;
    }
    sync_directory(pg_wal)?;
    wal_links::remove(pg_wal)
}

/// Copies a file so that it is there whole or not at all, also after a power failure.
pub(super) fn copy_durably(from: &Path, to: &Path) -> io::Result<()> {
    let mut temporary = to.as_os_str().to_owned();
    temporary.push(".headrest-tmp");
    let temporary = PathBuf::from(temporary);
    fs::copy(from, &temporary)?;
    File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, to)
}

/// Copies the files of a directory, durably.
pub(super) fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_durably(&entry.path(), &to.join(entry.file_name()))?;
    }
    sync_directory(to)
}

/// Copies the timeline histories of one directory that another does not have, durably.
fn copy_missing_histories(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    match fs::DirBuilder::new().mode(0o700).create(to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for entry in entries {
        let path = entry?.path();
        let Some(name) = name_of(&path).filter(|name| listing::history(name).is_some()) else {
            continue;
        };
        if !to.join(&name).exists() {
            copy_durably(&path, &to.join(name))?;
        }
    }
    sync_directory(to)
}

/// Keeps the histories that the archive has and that are not kept yet, durably.
pub(super) fn note_histories(timelines: &Timelines, directory: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for timeline in timelines.known() {
        let Some(history) = timelines.history(timeline) else { continue };
        let path = directory.join(history_name(timeline));
        if !path.exists() {
            let temporary = path.with_extension("headrest-tmp");
            fs::write(&temporary, history.to_text())?;
            File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, &path)?;
        }
    }
    sync_directory(directory)
}

pub(super) fn name_of(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&from, "data").unwrap();
        copy_durably(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"data");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
