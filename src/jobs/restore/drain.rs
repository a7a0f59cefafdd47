//! Saving what only `pg_wal` has, before a delta restore empties it: pushed to the archive, or kept in
//! the state directory. What counts is what a repository has, never what PostgreSQL, or a push, says.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::archive::{Anew, Archive};
use super::super::catalog::{Freshness, Observation, Unavailable};
use super::super::journal::sync_directory;
use super::super::worker::problem;
use super::wal::{copy_durably, name_of};
use super::{Run, Stop, prepare};
use crate::domain::plan::check::CheckId;
use crate::domain::{RepoKey, SegmentSize, WalSegment};
use crate::pgbackrest::command::ArchivePush;
use crate::pgbackrest::log::Level;
use crate::postgres::pg_wal::{PgWal, segment_of};
use crate::postgres::{pgdata, wal_links};

/// How often an archive that cannot be listed is listed once more.
const LIST_TRIES: u32 = 2;
/// How often a server that is being stopped is asked for new WAL.
const LINK_EVERY: Duration = Duration::from_millis(50);

impl Run<'_> {
    /// Saves what only `pg_wal` has. The server is down.
    pub(super) async fn drain(&mut self) -> Result<(), Stop> {
        // Once more, because the server is down and PGDATA does not change any more.
        prepare::refuse_foreign_entries(self.side.data_dir.clone()).await.map_err(Stop::Aborted)?;
        let control = self.control().await;
        if self.is_of_another(control.as_ref()) {
            let text =
                "PGDATA is of another cluster and is replaced, as accepted: its WAL is not kept";
            self.recorder.say(Level::Warn, text).await;
            return Ok(());
        }
        self.note_tablespaces()?;
        self.journal.control_file = pgdata::control_file(&self.side.data_dir);
        // What PGDATA says of itself while it recovers is the backup's, not the cluster's.
        let recovers = pgdata::recovers(&self.side.data_dir);
        let control = control.filter(|control| {
            self.journal.inherited_from.is_none() && !recovers && control.facts().out_of_recovery
        });
        if let Some(control) = &control {
            self.journal.timeline_before = Some(control.timeline);
            self.journal.shut_down = control.state == "shut down";
            self.journal.complete_until = pgdata::last_written(&self.side.data_dir);
            self.journal.segment_bytes = Some(control.segment_size.get());
            self.journal.setting_floors.clone_from(&control.setting_floors);
        }
        let size = self.segment_size();
        let pg_wal = self.side.data_dir.join("pg_wal");
        let wal = PgWal::read(&pg_wal, size).and_then(|mut wal| {
            // What was removed at the shutdown was taken for archived as well.
            wal.done.extend(wal_links::left(&pg_wal, size)?);
            Ok(wal)
        });
        let wal = match wal {
            Ok(wal) => wal,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.recorder.say(Level::Warn, "there is no pg_wal: nothing can be saved").await;
                PgWal::default()
            }
            Err(error) => return Err(unsaved(format!("cannot read pg_wal: {error}"))),
        };
        self.keep_histories()
            .map_err(|error| unsaved(format!("cannot keep the timelines' histories: {error}")))?;
        let dropped = self.dropped(&wal, size).await;
        let (to_push, mut keep) = self.to_push(dropped, size);
        let (pushed, unpushed) = self.push_all([to_push, wal.ready].concat(), size).await;
        // For a timeline other than the server's the plan has set the end.
        if self.journal.timeline == self.journal.timeline_before
            || self.journal.timeline_before.is_none()
        {
            let end =
                prepare::archive_end(self.context, control.as_ref(), &self.journal, size).await;
            let pushed_end = pushed.iter().filter_map(|path| segment_of(path, size));
            let end = end.into_iter().chain(pushed_end).max_by_key(WalSegment::number);
            let first_unpushed = unpushed.iter().filter_map(|path| segment_of(path, size)).min();
            let end = match first_unpushed {
                // What could not be pushed is certainly not in the archive.
                Some(first) => {
                    end.into_iter().chain(first.previous()).min_by_key(WalSegment::number)
                }
                None => end,
            };
            self.journal.archived_until = end.map(|segment| segment.to_string());
        }
        self.note_unarchived(&unpushed);
        keep.extend(wal.without_status);
        keep.extend(unpushed);
        self.keep_or_refuse(&keep).await?;
        // The delta restore empties pg_wal in any case.
        if let Err(error) = wal_links::remove(&pg_wal) {
            let text = format!("cannot remove the links to WAL in {}: {error}", pg_wal.display());
            self.recorder.say(Level::Warn, text).await;
        }
        Ok(())
    }

    /// Stops the server that is to be replaced. Whatever WAL it has keeps a link meanwhile: its last
    /// checkpoint removes what it takes for archived.
    pub(super) async fn stop_and_keep_wal(&mut self) -> Result<(), Stop> {
        let (pg_wal, size) = (self.side.data_dir.join("pg_wal"), self.segment_size());
        if !pg_wal.exists() {
            return self.stop_server().await;
        }
        if let Err(error) = wal_links::add(&pg_wal, size) {
            let text = format!("cannot link the WAL in {}: {error}", pg_wal.display());
            self.recorder.say(Level::Warn, text).await;
            return self.stop_server().await;
        }
        let stopped = CancellationToken::new();
        let linking = {
            let (stopped, pg_wal) = (stopped.clone(), pg_wal.clone());
            tokio::spawn(async move {
                while stopped.run_until_cancelled(sleep(LINK_EVERY)).await.is_some() {
                    if let Err(error) = wal_links::add(&pg_wal, size) {
                        tracing::debug!("cannot link the WAL in {}: {error}", pg_wal.display());
                    }
                }
            })
        };
        let result = self.stop_server().await;
        stopped.cancel();
        let _ = linking.await;
        result
    }

    /// Pushes segments in their order. Answers those that the archive has then, and the others.
    async fn push_all(
        &mut self,
        mut segments: Vec<PathBuf>,
        size: SegmentSize,
    ) -> (Vec<PathBuf>, Vec<PathBuf>) {
        segments.sort_by_key(|path| path.file_name().map(std::ffi::OsStr::to_owned));
        let (mut pushed, mut unpushed) = (Vec::new(), Vec::new());
        for path in segments {
            if unpushed.is_empty() && self.push(&path).await {
                pushed.push(path);
            } else {
                // Later ones would only fail the same way.
                unpushed.push(path);
            }
        }
        let absent = self.absent(&pushed, size).await;
        pushed.retain(|path| !absent.contains(path));
        unpushed.extend(absent);
        unpushed.sort();
        (pushed, unpushed)
    }

    /// Notes what is to be archived once the restore is over.
    fn note_unarchived(&mut self, unpushed: &[PathBuf]) {
        let names = unpushed.iter().filter_map(|path| name_of(path));
        self.journal.unarchived.extend(names);
        self.journal.unarchived.sort();
        self.journal.unarchived.dedup();
    }

    async fn keep_or_refuse(&mut self, keep: &[PathBuf]) -> Result<(), Stop> {
        if keep.is_empty() {
            return Ok(());
        }
        match self.keep(keep) {
            Ok(()) => {
                let count = keep.len();
                let text = format!("kept {count} files of WAL that the archive does not have");
                self.recorder.say(Level::Info, text).await;
            }
            Err(error) if self.journal.accept.contains(&CheckId::WalLoss) => {
                let text = format!("WAL that is not in the archive is lost, as accepted: {error}");
                self.recorder.say(Level::Warn, text).await;
            }
            Err(error) => {
                let text = format!("cannot keep WAL that is not in the archive: {error}");
                return Err(unsaved(text));
            }
        }
        Ok(())
    }

    /// The segments that PostgreSQL takes for archived and that no repository has.
    async fn dropped(&mut self, wal: &PgWal, size: SegmentSize) -> Vec<PathBuf> {
        // Those that are there because a restore has put them there are kept already.
        let kept = self.journal.kept_wal.clone();
        let is_kept = |path: &PathBuf| {
            let name = path.file_name();
            kept.as_ref().zip(name).is_some_and(|(kept, name)| kept.join(name).exists())
        };
        let done: Vec<PathBuf> = wal.done.iter().filter(|path| !is_kept(path)).cloned().collect();
        let absent = self.absent(&done, size).await;
        if !absent.is_empty() {
            let text = format!(
                "{} WAL segments that PostgreSQL takes for archived are in no repository, as far as is \
                 known",
                absent.len()
            );
            self.recorder.say(Level::Warn, text).await;
        }
        absent
    }

    /// Which of the dropped segments are pushed, and which are only kept: a segment of another timeline may
    /// be unfinished, and must not be archived as a whole one.
    fn to_push(&self, dropped: Vec<PathBuf>, size: SegmentSize) -> (Vec<PathBuf>, Vec<PathBuf>) {
        let before = self.journal.timeline_before.filter(|_| self.journal.inherited_from.is_none());
        let is_own = |path: &PathBuf| {
            segment_of(path, size).is_some_and(|segment| Some(segment.timeline()) == before)
        };
        dropped.into_iter().partition(is_own)
    }

    /// Those of some segments that no repository has, and that a backup there could need. All of them when
    /// the repositories cannot be listed.
    async fn absent(&mut self, files: &[PathBuf], size: SegmentSize) -> Vec<PathBuf> {
        if files.is_empty() {
            return Vec::new();
        }
        let directory = |segment: WalSegment| segment.to_string().get(..16).map(str::to_owned);
        let these = files.iter().filter_map(|path| segment_of(path, size).and_then(directory));
        let anew = Anew::These(these.collect());
        let mut tries = 0;
        let (seen, archives) = loop {
            match self.list_archives(size, &anew).await {
                Ok(listed) => break listed,
                Err(error) if tries >= LIST_TRIES => {
                    let text = format!(
                        "cannot list the WAL archive: {error}; what only pg_wal may have is kept"
                    );
                    self.recorder.say(Level::Warn, text).await;
                    return files.to_vec();
                }
                Err(_) => {
                    tries += 1;
                    sleep(Duration::from_secs(2)).await;
                }
            }
        };
        let archive = Archive::union(archives.values(), size);
        let starts =
            seen.stanza.backups.iter().filter_map(|backup| backup.archive_start.as_deref());
        let starts = starts.filter_map(|name| WalSegment::parse(name, size).ok());
        let first = starts.map(|segment| segment.number()).min().unwrap_or(0);
        let is_absent = |path: &&PathBuf| match segment_of(path, size) {
            Some(segment) => segment.number() >= first && !archive.segments.has(segment),
            // The history of a timeline, or the end of one.
            None => false,
        };
        files.iter().filter(is_absent).cloned().collect()
    }

    async fn list_archives(
        &self,
        size: SegmentSize,
        anew: &Anew,
    ) -> Result<(Arc<Observation>, BTreeMap<RepoKey, Archive>), Unavailable> {
        let stanza = &self.journal.stanza;
        let seen = self.context.catalog.observe(stanza, Freshness::New).await?;
        let system_id = self.journal.system_id.as_deref();
        let look = self.context.archives.look(stanza, &seen.stanza, system_id, size, anew);
        let archives = look.await?;
        Ok((seen, archives))
    }

    /// Pushes one file to the archive.
    pub(super) async fn push(&mut self, segment: &Path) -> bool {
        let shown = segment.display().to_string();
        let invocation = ArchivePush { stanza: &self.journal.stanza, segment: &shown }.invocation();
        let env = self.context.server_env(&self.journal.stanza);
        let said = match self.context.tool.capture(&invocation, &env).await {
            Ok(captured) if captured.end.is_success() => {
                let name = segment.file_name().unwrap_or_default().display();
                self.recorder.say(Level::Info, format!("archived {name}")).await;
                return true;
            }
            Ok(captured) => {
                let said = String::from_utf8_lossy(&captured.stdout).trim().to_owned();
                format!("{}: {said} {}", captured.end, captured.stderr)
            }
            Err(error) => crate::telemetry::chain(&error),
        };
        self.recorder.say(Level::Warn, format!("cannot archive {shown}: {said}")).await;
        false
    }

    /// Keeps segments in the state directory, durably.
    fn keep(&mut self, segments: &[PathBuf]) -> io::Result<()> {
        let directory = match &self.journal.kept_wal {
            Some(directory) => directory.clone(),
            None => self.context.journals.kept_wal_dir(&self.journal),
        };
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for segment in segments {
            let Some(name) = segment.file_name() else { continue };
            copy_durably(segment, &directory.join(name))?;
        }
        sync_directory(&directory)?;
        self.journal.kept_wal = Some(directory);
        Ok(())
    }
}

fn unsaved(message: String) -> Stop {
    Stop::Aborted(problem(
        "wal-not-saved",
        message,
        &["Going on would lose commits. Free space in the state directory, or make archiving \
             work, then restore again."],
    ))
}
