//! The restore's memory on disk: what it is to do, what it has found, where it is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::job::{JobError, RestoreResult};
use super::super::plan::check::CheckId;
use super::super::recovery::{OnReached, RecoveryTarget};
use super::super::{BackupLabel, DatabaseName, JobId, Lsn, RepoKey, StanzaName, Timeline};
use super::{Awaiting, NewTarget, Phase, Pinned, Wait};

/// What a file has that another one at the same place would not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// The device of its file system.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// When it was written, in nanoseconds since 1970.
    pub written_ns: i128,
}

/// A tablespace, as a link in `pg_tblspc` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tablespace {
    /// Its OID.
    pub oid: u32,
    /// Where the link leads.
    pub location: PathBuf,
    /// The same without links, when it is there.
    pub real: Option<PathBuf>,
}

/// A directory that was renamed so that recovery does not find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovedAside {
    /// Where it was.
    pub from: PathBuf,
    /// Where it is.
    pub to: PathBuf,
}

/// A moment on the old timeline to which an undo could go back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoPoint {
    /// The timeline before the restore.
    pub timeline: Timeline,
    /// The position of the restore point.
    pub lsn: Lsn,
    /// The name of the restore point.
    pub name: String,
    /// When it was made.
    pub at: Timestamp,
}

/// The restore's memory on disk, one per stanza.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, written to a file")]
pub struct Journal {
    /// The format of this file.
    pub format: u32,
    /// The job.
    pub id: JobId,
    /// The stanza.
    pub stanza: StanzaName,
    /// The phase that has begun.
    pub phase: Phase,
    /// When this was written.
    pub written_at: Timestamp,
    /// Who asked.
    pub by: String,
    /// Where recovery ends.
    pub target: RecoveryTarget,
    /// Where the named point that is the target ends, when that is known.
    #[serde(default)]
    pub position: Option<Lsn>,
    /// The backup set, pinned: a second run restores the same.
    pub set: BackupLabel,
    /// The repository, pinned.
    pub repo: RepoKey,
    /// PGDATA.
    pub pgdata: PathBuf,
    /// The device and inode of PGDATA: another disk mounted there is another database.
    pub pgdata_identity: (u64, u64),
    /// The cluster's system identifier, when it could be read.
    pub system_id: Option<String>,
    /// The timeline that recovery follows.
    pub timeline: Option<Timeline>,
    /// The timeline the cluster was on before, when it could be read.
    #[serde(default)]
    pub timeline_before: Option<Timeline>,
    /// The segment size in bytes, when it could be read.
    pub segment_bytes: Option<u64>,
    /// What identified `global/pg_control` before pgBackRest began, which removes it first of all: as
    /// long as it is the same, PGDATA is what it was.
    #[serde(default)]
    pub control_file: Option<FileIdentity>,
    /// The tablespaces of the cluster that is replaced, and others that turned out to hold files of
    /// before.
    #[serde(default)]
    pub tablespaces: Vec<Tablespace>,
    /// The OIDs of the tablespaces that the set has.
    #[serde(default)]
    pub set_tablespaces: Vec<u32>,
    /// The directory that a tablespace of this cluster has in its location, such as
    /// `PG_15_202209061`.
    #[serde(default)]
    pub version_dir: Option<String>,
    /// The OIDs of tablespaces that replay has made and whose CREATE TABLESPACE was not committed where
    /// recovery has ended: only their links exist.
    #[serde(default)]
    pub unborn: Vec<u32>,
    /// What was renamed so that recovery does not replay onto it.
    #[serde(default)]
    pub moved: Vec<MovedAside>,
    /// When a server was first started on the restored files: what replay makes is younger.
    #[serde(default)]
    pub recovering_since: Option<Timestamp>,
    /// Settings that a hot standby needs at least at these values (`max_connections` and kin).
    pub setting_floors: BTreeMap<String, u64>,
    /// The newest segment that is in the archive on that timeline. Waiting for this one or an
    /// older one is a gap, waiting for a later one is the end.
    pub archived_until: Option<String>,
    /// Where WAL that is not in the archive was kept.
    pub kept_wal: Option<PathBuf>,
    /// Where an undo could go back to.
    pub undo_point: Option<UndoPoint>,
    /// The half-done restore of the same PGDATA whose knowledge was taken over.
    pub inherited_from: Option<JobId>,
    /// What happens when the target is reached.
    #[serde(default = "promote")]
    pub on_reached: OnReached,
    /// Only these databases are restored; all when there are none.
    #[serde(default)]
    pub databases: Vec<DatabaseName>,
    /// What the caller took upon itself.
    #[serde(default)]
    pub accept: Vec<CheckId>,
    /// The hash of the plan that is carried out.
    #[serde(default)]
    pub plan: Option<String>,
    /// The restore that this one undoes.
    #[serde(default)]
    pub undoes: Option<JobId>,
    /// What it waits for somebody to decide about.
    #[serde(default)]
    pub awaiting: Option<Awaiting>,
    /// The segment that it waits for.
    #[serde(default)]
    pub awaited_segment: Option<String>,
    /// What is known of what it waits for, in words.
    #[serde(default)]
    pub awaited_detail: Option<String>,
    /// Since when it waits for that.
    #[serde(default)]
    pub awaiting_since: Option<Timestamp>,
    /// Whether the recovering server can be looked at, and so be promoted, while it waits.
    #[serde(default)]
    pub consistent: bool,
    /// Where recovery ends, whatever WAL there may be: somebody accepted that the rest is left out, or
    /// there is no more before the target.
    #[serde(default)]
    pub accepted_end: Option<Lsn>,
    /// Recovery ends before the record at this position: the records from there to the target commit
    /// nothing, and remove files of something that exists at the target.
    #[serde(default)]
    pub cut: Option<Lsn>,
    /// What exists at the target and has no files, or only some, in words.
    #[serde(default)]
    pub destroyed: Vec<String>,
    /// Databases that are whole, and that a DROP DATABASE which was not committed has marked as
    /// invalid.
    #[serde(default)]
    pub unmark: Vec<String>,
    /// The accepted end of before the files had to be restored once more: when recovery stands there
    /// again, it holds again.
    #[serde(default)]
    pub accepted_before: Option<Lsn>,
    /// Somebody gave the restore up: what was there before is being brought back.
    #[serde(default)]
    pub abandoned: bool,
    /// WAL that was kept and that the archive still does not have: an undo needs it.
    #[serde(default)]
    pub unarchived: Vec<String>,
    /// Whether the server was shut down in order: then its last, unfinished segment has no commits.
    #[serde(default)]
    pub shut_down: bool,
    /// Until then all WAL of the timeline before is there: what comes last in it was the last commit.
    #[serde(default)]
    pub complete_until: Option<Timestamp>,
    /// Segments of older timelines that recovery must not be given, each with the one that is wanted
    /// instead.
    #[serde(default)]
    pub left_in: BTreeMap<String, String>,
    /// The same of the timeline that is restored, when it is another one that was left before.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// When the server was stopped: from then on there is no database.
    #[serde(default)]
    pub stopped_at: Option<Timestamp>,
    /// Whether the history of every timeline that the archive knows is kept, so that none needs to be
    /// asked for at the promotion.
    #[serde(default)]
    pub histories_known: bool,
    /// Whether the role that Headrest connects as does not exist in the restored data.
    #[serde(default)]
    pub role_missing: bool,
    /// How often a promotion was tried and not found in the control data.
    #[serde(default)]
    pub promotions: u32,
    /// What the restore has to show, once it is done.
    #[serde(default)]
    pub result: Option<RestoreResult>,
    /// What somebody has to look at, although it is done.
    #[serde(default)]
    pub warning: Option<JobError>,
    /// How often `pgbackrest restore` was started.
    pub attempts: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// The format this version writes.
pub const JOURNAL_FORMAT: u32 = 1;

fn promote() -> OnReached {
    OnReached::Promote
}

impl Journal {
    /// The journal of a restore that was just accepted: what is known of it before anybody looked
    /// at PGDATA.
    pub fn accepted(
        id: JobId,
        stanza: StanzaName,
        by: String,
        target: RecoveryTarget,
        pinned: Pinned,
        now: Timestamp,
    ) -> Self {
        Self {
            format: JOURNAL_FORMAT,
            id,
            stanza,
            phase: Phase::Accepted,
            written_at: now,
            by,
            target,
            position: pinned.position,
            set: pinned.set,
            repo: pinned.repo,
            pgdata: PathBuf::new(),
            pgdata_identity: (0, 0),
            system_id: pinned.system_id,
            timeline: Some(pinned.timeline),
            timeline_before: None,
            segment_bytes: None,
            control_file: None,
            tablespaces: Vec::new(),
            set_tablespaces: Vec::new(),
            version_dir: None,
            unborn: Vec::new(),
            moved: Vec::new(),
            recovering_since: None,
            setting_floors: BTreeMap::new(),
            archived_until: pinned.wal_end,
            kept_wal: None,
            undo_point: None,
            inherited_from: None,
            on_reached: OnReached::Promote,
            databases: Vec::new(),
            accept: Vec::new(),
            plan: Some(pinned.plan),
            undoes: None,
            awaiting: None,
            awaited_segment: None,
            awaited_detail: None,
            awaiting_since: None,
            consistent: false,
            accepted_end: None,
            cut: None,
            destroyed: Vec::new(),
            unmark: Vec::new(),
            accepted_before: None,
            abandoned: false,
            unarchived: Vec::new(),
            shut_down: false,
            complete_until: None,
            left_in: pinned.left_in,
            ended: pinned.ended,
            stopped_at: None,
            histories_known: false,
            role_missing: false,
            promotions: 0,
            result: None,
            warning: None,
            attempts: 0,
            last_error: None,
        }
    }

    /// Whether what is in PGDATA is a whole database that this restore has nothing more to do with:
    /// it was not touched yet, or is finished.
    pub fn data_is_whole(&self) -> bool {
        let finished = matches!(self.phase, Phase::Unfencing | Phase::Done);
        finished || self.phase.data_is_intact()
    }

    /// PostgreSQL's settings for the target.
    pub fn target_settings(&self) -> Vec<(&'static str, String)> {
        match self.cut {
            Some(value) => RecoveryTarget::Lsn { value, exclusive: true }.settings(None),
            None => self.target.settings(self.position),
        }
    }

    /// Whether everything before the position that is the target was replayed, and nothing after it.
    pub fn is_at_its_position(&self, replayed: Option<Lsn>) -> bool {
        let position = match &self.target {
            _ if self.cut.is_some() => self.cut,
            RecoveryTarget::Name { .. } => self.position,
            RecoveryTarget::Lsn { value, exclusive: true } => Some(*value),
            _ => None,
        };
        position.is_some() && replayed == position && self.accepted_end.is_none()
    }

    /// Points the restore at another target.
    pub fn retarget(&mut self, new: NewTarget) {
        let NewTarget { target, pinned, on_reached } = new;
        self.target = target;
        self.on_reached = on_reached;
        (self.set, self.repo) = (pinned.set, pinned.repo);
        self.timeline = Some(pinned.timeline);
        self.position = pinned.position;
        self.archived_until = pinned.wal_end;
        (self.left_in, self.ended) = (pinned.left_in, pinned.ended);
        self.plan = Some(pinned.plan);
        self.wait_for(None, self.written_at);
        (self.accepted_end, self.accepted_before) = (None, None);
        self.cut = None;
    }

    /// What it waits for, in words for a person; empty when it waits for nothing.
    pub fn waiting_text(&self) -> String {
        let Some(awaiting) = self.awaiting else { return String::new() };
        let what = match (awaiting, &self.awaited_segment) {
            (Awaiting::Target, _) => format!("paused at {}", self.target),
            (Awaiting::Gap, Some(segment)) => format!("waiting for WAL {segment}"),
            (Awaiting::Gap, None) => "waiting for WAL that is missing".to_owned(),
            (Awaiting::End, _) => format!("the WAL ends before {}", self.target),
            (Awaiting::Repository, _) => "waiting for the repository".to_owned(),
            (Awaiting::StopFile, _) => "waiting until pgBackRest is started again".to_owned(),
            (Awaiting::Disk, _) => "waiting for room on the disk".to_owned(),
            (Awaiting::Directory, _) => "waiting for a directory".to_owned(),
            (Awaiting::Role, _) => "Headrest cannot connect to PostgreSQL".to_owned(),
            (Awaiting::Destroyed, _) => "a database or tablespace would be destroyed".to_owned(),
            (Awaiting::Standstill, _) => "nothing moves".to_owned(),
        };
        match &self.awaited_detail {
            Some(detail) => format!("{what}: {detail}"),
            None => what,
        }
    }

    /// Notes what it waits for, and since when; `None` for nothing. Answers whether that changed.
    pub fn wait_for(&mut self, wait: Option<&Wait>, now: Timestamp) -> bool {
        let reason = wait.map(|wait| wait.reason);
        let segment = wait.and_then(|wait| wait.segment.clone());
        let detail = wait.map(|wait| wait.detail.clone()).filter(|detail| !detail.is_empty());
        if (reason, &segment, &detail)
            == (self.awaiting, &self.awaited_segment, &self.awaited_detail)
        {
            return false;
        }
        if reason != self.awaiting {
            self.awaiting_since = reason.map(|_| now);
        }
        (self.awaiting, self.awaited_segment, self.awaited_detail) = (reason, segment, detail);
        true
    }

    /// Whether the end of the WAL is where the target is: the server lived on past it without
    /// committing anything more.
    pub fn ends_at_the_target(&self) -> bool {
        let RecoveryTarget::Time { value, .. } = &self.target else { return false };
        let until = if self.timeline == self.timeline_before {
            self.complete_until.max(self.ended)
        } else {
            self.ended
        };
        until.is_some_and(|until| *value <= until)
    }

    /// Whether the new target can be reached from here by replaying on, without copying: it is
    /// certainly later on the same branch.
    pub fn is_forward(&self, new: &NewTarget, replayed: Option<Lsn>) -> bool {
        use RecoveryTarget as T;
        if self.timeline != Some(new.pinned.timeline) || self.accepted_end.is_some() {
            return false;
        }
        match (&self.target, &new.target) {
            (_, T::Latest) => true,
            (
                T::Time { value: old, exclusive: before },
                T::Time { value, exclusive: before_new },
            ) => value > old || value == old && (*before || !before_new),
            // The end of the set is before every other target that a plan takes.
            (T::Immediate, T::Time { .. } | T::Lsn { .. } | T::Xid { .. } | T::Name { .. }) => {
                new.pinned.set == self.set
            }
            (_, T::Lsn { value, .. }) => replayed.is_some_and(|replayed| *value >= replayed),
            // Where the others are is not known for certain.
            (_, _) => false,
        }
    }

    /// Takes over what only an earlier, half-done restore of the same PGDATA still knows: its
    /// pg_control is gone or half recovered, and the WAL it kept exists nowhere else. A restore
    /// that was unfencing had its data complete: nothing is taken over from it.
    pub fn inherit(&mut self, earlier: &Self) {
        if earlier.data_is_whole() {
            return;
        }
        self.inherited_from = Some(earlier.id);
        self.stopped_at = earlier.stopped_at.or(self.stopped_at);
        self.system_id = earlier.system_id.clone().or_else(|| self.system_id.take());
        self.timeline = self.timeline.or(earlier.timeline);
        self.timeline_before = earlier.timeline_before.or(self.timeline_before);
        self.segment_bytes = earlier.segment_bytes.or(self.segment_bytes);
        if !earlier.setting_floors.is_empty() {
            self.setting_floors.clone_from(&earlier.setting_floors);
        }
        if self.timeline == earlier.timeline {
            self.archived_until.clone_from(&earlier.archived_until);
        }
        (self.complete_until, self.shut_down) = (earlier.complete_until, earlier.shut_down);
        self.unarchived.clone_from(&earlier.unarchived);
        self.kept_wal.clone_from(&earlier.kept_wal);
        self.undo_point.clone_from(&earlier.undo_point);
        self.tablespaces.clone_from(&earlier.tablespaces);
        self.version_dir = earlier.version_dir.clone().or_else(|| self.version_dir.take());
        self.moved.clone_from(&earlier.moved);
    }
}
