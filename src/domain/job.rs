//! Jobs: what can be asked for, the states a job goes through, and which jobs exclude each other.
//!
//! ```text
//!            start                finish(outcome)
//!  queued ---------> running ----------------------> succeeded | warned | failed
//!    |                 |  \                          | interrupted
//!    | cancel          |   \ cancel
//!    v                 |    v        finish(outcome)
//!  cancelled <---------|-- cancelling --------------> any outcome
//!                      `-------- finish(cancelled) -> cancelled
//! ```
//! A final state never changes again. Must not know how a job is carried out.

mod result;
mod spec;
mod upkeep;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::restore::Phase;
use super::words::{UnknownWord, words};

pub use result::{BackupResult, RestoreResult};
pub use spec::{BackupOptions, BackupSpec, JobSpec, RestoreSpec};
pub use upkeep::{AnnotateSpec, ExpireResult, ExpireSpec, Removed, VerifyResult, VerifySpec};

/// A job's identifier: a UUID of version 7, so that ids sort by time of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    /// A new id for a job created at `now`.
    pub fn new(now: Timestamp) -> Self {
        let millis = u64::try_from(now.as_millisecond()).unwrap_or_default();
        let nanos = u32::try_from((now.as_microsecond() % 1_000_000) * 1000).unwrap_or_default();
        let at = uuid::Timestamp::from_unix(uuid::NoContext, millis / 1000, nanos);
        Self(Uuid::new_v7(at))
    }

    /// A text that sorts before the ids of all jobs created since a moment, and after those of earlier
    /// jobs.
    pub fn first_text_of(moment: Timestamp) -> String {
        let millis = u64::try_from(moment.as_millisecond()).unwrap_or_default();
        // The first 48 bits are the milliseconds (RFC 9562, 5.7).
        format!("{:08x}-{:04x}", millis >> 16, millis & 0xffff)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

words! {
    /// What a job does.
    JobKind {
        /// `pgbackrest backup`
        Backup = "backup",
        /// An in-place restore.
        Restore = "restore",
        /// `pgbackrest check`
        Check = "check",
        /// `pgbackrest stanza-create`
        StanzaCreate = "stanza-create",
        /// `pgbackrest verify`, and a look for gaps in the WAL.
        Verify = "verify",
        /// What retention says, by `pgbackrest expire`.
        Expire = "expire",
        /// `pgbackrest annotate`
        Annotate = "annotate",
    }
}

words! {
    /// Where a job stands.
    JobState {
        /// Waiting for its stanza's lane.
        Queued = "queued",
        /// At work.
        Running = "running",
        /// Asked to end; its processes are being ended.
        Cancelling = "cancelling",
        /// Done.
        Succeeded = "succeeded",
        /// Done, with something to look at.
        Warned = "warned",
        /// Not done; `error` says why.
        Failed = "failed",
        /// Ended because somebody asked for it.
        Cancelled = "cancelled",
        /// Headrest stopped while it ran.
        Interrupted = "interrupted",
    }
}

words! {
    /// How a job ended.
    Outcome {
        /// Done.
        Succeeded = "succeeded",
        /// Done, with something to look at.
        Warned = "warned",
        /// Not done.
        Failed = "failed",
        /// Ended on request.
        Cancelled = "cancelled",
        /// Headrest stopped while it ran.
        Interrupted = "interrupted",
    }
}

words! {
    /// What a submission wants when its stanza's lane is taken.
    OnConflict {
        /// Be refused with the running job's id.
        Refuse = "refuse",
        /// Wait for the lane.
        Queue = "queue",
        /// Cancel what runs, if it may be, and follow it. What a restore does by default.
        Cancel = "cancel",
    }
}

/// What moves a job from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEvent {
    /// Its lane is free and work begins.
    Start,
    /// Somebody asked for its end.
    Cancel,
    /// It ended.
    Finish(Outcome),
}

/// A change of state that must not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {state} cannot take {event:?}")]
pub struct RefusedTransition {
    /// The state the job is in.
    pub state: JobState,
    /// What was tried.
    pub event: JobEvent,
}

impl JobState {
    /// The state after `event`, or a refusal.
    pub fn transition(self, event: JobEvent) -> Result<Self, RefusedTransition> {
        let refused = Err(RefusedTransition { state: self, event });
        match (self, event) {
            (Self::Queued, JobEvent::Start) => Ok(Self::Running),
            (Self::Queued, JobEvent::Cancel) => Ok(Self::Cancelled),
            (Self::Queued, JobEvent::Finish(Outcome::Interrupted)) => Ok(Self::Interrupted),
            (Self::Running, JobEvent::Cancel) => Ok(Self::Cancelling),
            (Self::Running | Self::Cancelling, JobEvent::Finish(outcome)) => Ok(outcome.into()),
            (Self::Queued, JobEvent::Finish(_))
            | (Self::Running, JobEvent::Start)
            | (Self::Cancelling, JobEvent::Start | JobEvent::Cancel)
            | (
                Self::Succeeded | Self::Warned | Self::Failed | Self::Cancelled | Self::Interrupted,
                _,
            ) => refused,
        }
    }

    /// The outcome, once there is one.
    pub fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Queued | Self::Running | Self::Cancelling => None,
            Self::Succeeded => Some(Outcome::Succeeded),
            Self::Warned => Some(Outcome::Warned),
            Self::Failed => Some(Outcome::Failed),
            Self::Cancelled => Some(Outcome::Cancelled),
            Self::Interrupted => Some(Outcome::Interrupted),
        }
    }

    /// Whether the job has ended.
    pub fn is_final(self) -> bool {
        self.outcome().is_some()
    }
}

impl From<Outcome> for JobState {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Succeeded => Self::Succeeded,
            Outcome::Warned => Self::Warned,
            Outcome::Failed => Self::Failed,
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Interrupted => Self::Interrupted,
        }
    }
}

/// Who or what asked for a job. Written `api`, `dashboard`, `short-route`,
/// `schedule:NAME` or `event:NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Trigger {
    /// A request to `/api/v1`.
    Api,
    /// A button of the dashboard.
    Dashboard,
    /// A request to one of the short routes.
    ShortRoute,
    /// The schedule of that name.
    Schedule(String),
    /// Headrest itself, because of the named event, e.g. `first-start`.
    Event(String),
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api => f.write_str("api"),
            Self::Dashboard => f.write_str("dashboard"),
            Self::ShortRoute => f.write_str("short-route"),
            Self::Schedule(name) => write!(f, "schedule:{name}"),
            Self::Event(name) => write!(f, "event:{name}"),
        }
    }
}

impl From<Trigger> for String {
    fn from(trigger: Trigger) -> Self {
        trigger.to_string()
    }
}

impl TryFrom<String> for Trigger {
    type Error = UnknownWord;
    fn try_from(text: String) -> Result<Self, UnknownWord> {
        match text.as_str() {
            "api" => Ok(Self::Api),
            "dashboard" => Ok(Self::Dashboard),
            "short-route" => Ok(Self::ShortRoute),
            other => match other.split_once(':') {
                Some(("schedule", name)) => Ok(Self::Schedule(name.to_owned())),
                Some(("event", name)) => Ok(Self::Event(name.to_owned())),
                _ => {
                    let known = "api, dashboard, short-route, schedule:NAME, event:NAME";
                    Err(UnknownWord::new(other, known))
                }
            },
        }
    }
}

/// What happens to a submission whose lane is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is refused.
    Refuse,
    /// It waits.
    Wait,
    /// It waits, and what runs is cancelled.
    CancelAndWait,
}

/// Decides about a submission of `new` while `running` has the lane.
///
/// Every two jobs of a stanza exclude each other: pgBackRest's `expire` is not blocked during a
/// restore and has been seen to kill one, and a backup that reads while PostgreSQL is stopped
/// fails at its end. A restore never gives way to anything.
pub fn admit(new: &JobSpec, running: JobKind, on_conflict: OnConflict) -> Admission {
    match (on_conflict, new.kind(), running) {
        (OnConflict::Refuse, _, _) => Admission::Refuse,
        (OnConflict::Queue, _, _) => Admission::Wait,
        (OnConflict::Cancel, _, JobKind::Restore) => Admission::Refuse,
        (OnConflict::Cancel, JobKind::Restore, _) => Admission::CancelAndWait,
        (
            OnConflict::Cancel,
            JobKind::Backup
            | JobKind::Check
            | JobKind::StanzaCreate
            | JobKind::Verify
            | JobKind::Expire
            | JobKind::Annotate,
            _,
        ) => Admission::Refuse,
    }
}

/// How far a job has come. What is not known is absent, never zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes copied so far.
    pub bytes_done: Option<u64>,
    /// Bytes to copy in all.
    pub bytes_total: Option<u64>,
    /// Hundredths of a percent, 0 to 10,000.
    pub percent_hundredths: Option<u32>,
    /// Seconds left at the pace so far.
    pub eta_s: Option<u64>,
    /// What it is doing, in one word or a short phrase.
    pub phase: Option<String>,
}

/// What a finished job has to show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobResult {
    /// A backup.
    Backup(BackupResult),
    /// A restore.
    Restore(RestoreResult),
    /// A verification.
    Verify(VerifyResult),
    /// An expire.
    Expire(ExpireResult),
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A word of the problem list, e.g. `lock-held`.
    pub code: String,
    /// pgBackRest's exit code, when it exited.
    pub exit_code: Option<i32>,
    /// pgBackRest's name for it, e.g. `LockAcquireError`.
    pub exit_name: Option<String>,
    /// What happened.
    pub message: String,
    /// What to do next.
    pub hints: Vec<String>,
    /// Whether the same job may succeed when tried again later.
    pub retryable: bool,
}

/// A job as it is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub spec: JobSpec,
    /// What asked for it.
    pub trigger: Trigger,
    /// Who asked for it.
    pub by: String,
    /// Where it stands.
    pub state: JobState,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When work began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// How far it is.
    pub progress: Progress,
    /// The phase of a restore.
    pub restore_phase: Option<Phase>,
    /// What it has to show.
    pub result: Option<JobResult>,
    /// Why it failed, or what to look at when it warned.
    pub error: Option<JobError>,
    /// If it fails, its schedule tries it again.
    pub tried_again: bool,
}

impl Job {
    /// A job that was just accepted.
    pub fn queued(id: JobId, spec: JobSpec, trigger: Trigger, by: String, now: Timestamp) -> Self {
        Self {
            id,
            spec,
            trigger,
            by,
            state: JobState::Queued,
            created_at: now,
            started_at: None,
            finished_at: None,
            progress: Progress::default(),
            restore_phase: None,
            result: None,
            error: None,
            tried_again: false,
        }
    }

    /// Applies an event at `now`, or refuses it and stays as it is.
    pub fn apply(&mut self, event: JobEvent, now: Timestamp) -> Result<(), RefusedTransition> {
        let next = self.state.transition(event)?;
        if self.state == JobState::Queued && next == JobState::Running {
            self.started_at = Some(now);
        }
        if next.is_final() {
            self.finished_at = Some(now);
        }
        self.state = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::StanzaName;
    use super::super::recovery::RecoveryTarget;
    use super::*;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = JobEvent> {
        prop_oneof![
            Just(JobEvent::Start),
            Just(JobEvent::Cancel),
            proptest::sample::select(Outcome::ALL.to_vec()).prop_map(JobEvent::Finish),
        ]
    }

    #[test]
    fn ids_sort_by_the_moment_of_their_job() {
        let at = |millis: i64| Timestamp::from_millisecond(1_764_460_800_000 + millis).unwrap();
        let first = JobId::first_text_of(at(0));
        for millis in [0i64, 1, 70_000, 5_000_000_000] {
            assert!(JobId::new(at(millis)).to_string() > first, "{millis}");
        }
        for millis in [-1, -70_000, -5_000_000_000] {
            assert!(JobId::new(at(millis)).to_string() < first, "{millis}");
        }
    }

    proptest! {
        #[test]
        fn a_job_starts_at_most_once_and_ends_at_most_once(
            events in proptest::collection::vec(any_event(), 0..12)
        ) {
            let spec = JobSpec::Check { stanza: "main".parse().unwrap() };
            let at = Timestamp::from_second(1_700_000_000).unwrap();
            let mut job = Job::queued(JobId::new(at), spec, Trigger::Api, "t".into(), at);
            let (mut starts, mut ends) = (0, 0);
            for event in events {
                let before = job.clone();
                if job.apply(event, at).is_ok() {
                    prop_assert!(!before.state.is_final());
                    starts += usize::from(event == JobEvent::Start);
                    ends += usize::from(job.state.is_final());
                } else {
                    prop_assert_eq!(&before, &job);
                }
                prop_assert_eq!(job.finished_at.is_some(), job.state.is_final());
            }
            prop_assert!(starts <= 1 && ends <= 1);
        }
    }

    #[test]
    fn words_round_trip() {
        for state in JobState::ALL {
            assert_eq!(state.as_str().parse::<JobState>().unwrap(), *state);
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        let error = "--force".parse::<JobState>().unwrap_err().to_string();
        assert!(error.starts_with("\"--force\" is not one of queued, running"), "{error}");
    }

    #[test]
    fn only_a_restore_may_cancel_and_nothing_cancels_a_restore() {
        let stanza: StanzaName = "main".parse().unwrap();
        let check = JobSpec::Check { stanza: stanza.clone() };
        let restore = JobSpec::Restore(RestoreSpec::new(stanza, RecoveryTarget::Latest));
        let cases = [
            (&check, JobKind::Backup, OnConflict::Refuse, Admission::Refuse),
            (&check, JobKind::Backup, OnConflict::Queue, Admission::Wait),
            (&check, JobKind::Backup, OnConflict::Cancel, Admission::Refuse),
            (&restore, JobKind::Backup, OnConflict::Cancel, Admission::CancelAndWait),
            (&restore, JobKind::Restore, OnConflict::Cancel, Admission::Refuse),
            (&restore, JobKind::Backup, OnConflict::Queue, Admission::Wait),
        ];
        for (new, running, on_conflict, expect) in cases {
            assert_eq!(admit(new, running, on_conflict), expect, "{new:?} over {running}");
        }
    }

    #[test]
    fn ids_sort_by_time() {
        let early = JobId::new(Timestamp::from_second(1_700_000_000).unwrap());
        let late = JobId::new(Timestamp::from_second(1_700_000_001).unwrap());
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.to_string().parse::<JobId>().unwrap(), early);
    }
}
