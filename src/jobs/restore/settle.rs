//! After a restore: what it left is put in order while clients write again. None of it decides
//! about the data; what does not work is said.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::catalog::Freshness;
use super::super::heartbeat;
use super::super::plans::add_histories;
use super::Run;
use super::wal::name_of;
use crate::clock;
use crate::domain::restore::{Journal, Phase};
use crate::domain::retention::Hold;
use crate::domain::timeline::Timelines;
use crate::pgbackrest::log::Level;
use crate::postgres::client::Connection;
use crate::postgres::pg_wal::segment_of;

/// For how many restores of the past kept WAL stays for an undo.
const KEPT_FOR: u32 = 5;
/// How many restores of the past are looked at for what they kept.
const ALL_JOURNALS: u32 = 100;

impl Run<'_> {
    /// Clients write again; the rest.
    pub(super) async fn settle(&mut self) {
        let now = clock::now();
        let downtime = self.journal.stopped_at.map(|stopped| now.duration_since(stopped));
        self.result.downtime_ms = downtime.and_then(|span| u64::try_from(span.as_millis()).ok());
        let seen = self.context.catalog.last(&self.journal.stanza).and_then(Result::ok);
        let set = seen.and_then(|seen| {
            let mut backups = seen.stanza.backups.iter();
            backups.find(|backup| backup.label == self.journal.set)?.size_bytes
        });
        self.result.size_bytes = set;
        if let Some(connection) = self.connect().await {
            self.tidy_settings(&connection).await;
            self.unmark_databases(&connection).await;
            if let Err(error) = heartbeat::beat(self.context, self.side, &connection).await {
                let text = format!("the first commit of the new timeline was not noted: {error}");
                self.recorder.say(Level::Warn, text).await;
            }
        }
        self.archive_kept_wal().await;
        self.remove_old_kept_wal().await;
        // What the repository holds is another story now.
        let _ = self.context.catalog.observe(&self.journal.stanza, Freshness::New).await;
    }

    pub(super) async fn tidy_settings(&mut self, connection: &Connection) {
        match connection.reset_recovery_settings().await {
            Ok(names) if !names.is_empty() => {
                let text = format!("took {} out of postgresql.auto.conf", names.join(", "));
                self.recorder.say(Level::Info, text).await;
            }
            Ok(_) => {}
            Err(error) => {
                let text = format!("recovery settings stay in postgresql.auto.conf: {error}");
                self.recorder.say(Level::Warn, text).await;
            }
        }
    }

    /// Kept WAL that could not be archived before is archived now if it can be, so that the old
    /// timeline is whole; what only an undo needs stays.
    async fn archive_kept_wal(&mut self) {
        let Some(kept) = self.journal.kept_wal.clone() else { return };
        self.note_whole_segments(&kept);
        let mut left = Vec::new();
        for name in std::mem::take(&mut self.journal.unarchived) {
            let file = kept.join(&name);
            if !file.exists() {
                continue;
            }
            // Later ones would only fail the same way.
            if left.is_empty() && self.push(&file).await {
                let _ = fs::remove_file(&file);
            } else {
                left.push(name);
            }
        }
        self.journal.unarchived = left;
        let size = self.segment_size();
        let others = |path: PathBuf| {
            segment_of(&path, size).map(|segment| segment.timeline())
                != self.journal.timeline_before
        };
        let files: Vec<PathBuf> = fs::read_dir(&kept)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        let empty = files.is_empty();
        let only_the_end_of_a_shutdown = self.journal.unarchived.is_empty()
            && self.journal.shut_down
            && !files.into_iter().any(others);
        // Also what was replayed to its end stays: on the old timeline nobody else has it.
        if empty || only_the_end_of_a_shutdown {
            return self.forget_kept_wal();
        }
        let text = format!(
            "WAL that is not in the archive stays in {}: an undo of this restore needs it",
            kept.display()
        );
        self.recorder.say(Level::Warn, text).await;
    }

    /// The new timeline begins after these: they are whole, and its own restores need them.
    fn note_whole_segments(&mut self, kept: &Path) {
        let Some(tip) = self.result.timeline else { return };
        let mut timelines = Timelines::default();
        let pg_wal = self.side.data_dir.join("pg_wal");
        add_histories(&[&pg_wal, &self.histories_dir()], &mut timelines);
        let (branch, size) = (timelines.branch(tip), self.segment_size());
        let entries = fs::read_dir(kept).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            if let Some(segment) = segment_of(&path, size)
                && segment.timeline() != tip
                && branch.holds(segment.timeline(), segment.end())
                && let Some(name) = name_of(&path)
                && !self.journal.unarchived.contains(&name)
            {
                self.journal.unarchived.push(name);
            }
        }
        self.journal.unarchived.sort();
    }

    async fn remove_old_kept_wal(&mut self) {
        let stanza = self.journal.stanza.clone();
        let store = &self.context.store;
        let Ok(all) = store.kept_journals(stanza.clone(), ALL_JOURNALS).await else { return };
        let Ok(released) = store.released_restores(stanza).await else { return };
        self.remove_old_asides(&all, KEPT_FOR as usize).await;
        // As long as the backups for the undo stay, and of the last restores anyway.
        let (after, now) = (self.context.retention.config.after_restore, clock::now());
        let is_held = |journal: &Journal| {
            // One that changed nothing keeps what it could not give back.
            let gave_up =
                journal.phase == Phase::Aborted && now.duration_since(journal.written_at) < after;
            !released.contains(&journal.id) && (gave_up || Hold::of(journal, after, now).is_some())
        };
        let changed = all.iter().filter(|journal| !journal.phase.data_is_intact());
        let recent = changed.take(KEPT_FOR as usize);
        let held = all.iter().filter(|journal| is_held(journal));
        let wanted: Vec<PathBuf> = recent.chain(held).filter_map(|j| j.kept_wal.clone()).collect();
        let directories = self.context.journals.kept_wal_dirs(&self.journal.stanza);
        for old in directories.into_iter().filter(|directory| !wanted.contains(directory)) {
            if self.journal.kept_wal.as_ref() == Some(&old) {
                continue;
            }
            if let Err(error) = fs::remove_dir_all(&old) {
                tracing::warn!("cannot remove {}: {error}", old.display());
            }
        }
    }
}
