//! What is asked of the queue, and why it was not taken.

use std::path::PathBuf;

use crate::domain::StanzaName;
use crate::domain::job::{Job, JobId, JobKind, JobSpec, JobState, OnConflict, Trigger};
use crate::domain::restore::{NotNow, Phase};
use crate::store::StoreError;

/// Jobs that may wait for one lane.
pub(super) const LONGEST_QUEUE: usize = 32;

/// Something that is asked for.
#[derive(Debug, Clone)]
pub struct Submission {
    /// What.
    pub spec: JobSpec,
    /// What asks.
    pub trigger: Trigger,
    /// Who asks.
    pub by: String,
    /// What to do when the lane is taken.
    pub on_conflict: OnConflict,
    /// The idempotency key of the request.
    pub idempotency_key: Option<String>,
    /// If it fails, whoever asks will ask again.
    pub tried_again: bool,
}

impl Submission {
    /// What is asked for once, and refused when the lane is taken.
    pub fn new(spec: JobSpec, trigger: Trigger, by: &str) -> Self {
        Self {
            spec,
            trigger,
            by: by.to_owned(),
            on_conflict: OnConflict::Refuse,
            idempotency_key: None,
            tried_again: false,
        }
    }

    /// What Headrest asks for itself, because of the named event. It waits for the lane.
    pub fn of_event(spec: JobSpec, event: &str) -> Self {
        let trigger = Trigger::Event(event.to_owned());
        Self { on_conflict: OnConflict::Queue, ..Self::new(spec, trigger, "headrest") }
    }
}

/// Why a submission, or a cancellation, was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Denied {
    /// The lane is taken.
    #[error("stanza {stanza} is busy with {kind} job {job}")]
    LaneBusy {
        /// Whose lane.
        stanza: StanzaName,
        /// The job that has it.
        job: JobId,
        /// What that job does.
        kind: JobKind,
    },
    /// Too many wait already.
    #[error("{LONGEST_QUEUE} jobs wait for stanza {0} already")]
    QueueFull(StanzaName),
    /// No such job.
    #[error("there is no job {0}")]
    NoSuchJob(JobId),
    /// It has ended.
    #[error("job {job} has ended: it {state}")]
    Ended {
        /// The job.
        job: JobId,
        /// How.
        state: JobState,
    },
    /// A restore that has begun to change files is not cancelled: it would leave no database.
    #[error(
        "restore {job} is in phase {phase}: PGDATA is being replaced, and stopping now would leave \
         no database at all. Let it end"
    )]
    TooLate {
        /// The job.
        job: JobId,
        /// Its phase.
        phase: Phase,
    },
    /// Restores need a server that Headrest can stop and start.
    #[error("Headrest does not supervise the PostgreSQL server of stanza {0}")]
    NotSupervised(StanzaName),
    /// What was for an empty PGDATA finds something there.
    #[error("PGDATA {} is not empty any more", .0.display())]
    NotEmpty(PathBuf),
    /// Backups are turned off.
    #[error("backups of stanza {0} are turned off (HEADREST_BACKUPS=off)")]
    BackupsOff(StanzaName),
    /// The server is a copy of another one.
    #[error(
        "this server is a copy, made from stanza {0} of another one: it does not archive, so it is \
         not backed up or restored in place"
    )]
    Copy(StanzaName),
    /// The job is no restore, or one that has ended: it cannot be steered.
    #[error("job {0} is no restore that is under way")]
    NoRestore(JobId),
    /// The restore does not wait for that.
    #[error("restore {job}: {why}")]
    NotNow {
        /// The restore.
        job: JobId,
        /// Why.
        why: NotNow,
    },
    /// A decision that could not be made durable is not carried out.
    #[error("the decision could not be written down, so it was not carried out: {0}")]
    NotWritten(String),
    /// Headrest is stopping.
    #[error("Headrest is stopping")]
    ShuttingDown,
    /// The history cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What the audit says of a job that destroys something.
pub(super) fn deed(job: &Job) -> Option<(&'static str, String)> {
    match &job.spec {
        JobSpec::Restore(restore) => {
            let accept: Vec<&str> = restore.accept.iter().map(|id| id.as_str()).collect();
            let accepted = match accept.as_slice() {
                [] => String::new(),
                some => format!(", accepting {}", some.join(", ")),
            };
            let what = match restore.undoes {
                Some(undone) => format!("undo of {undone}"),
                None => format!("to {}", restore.target),
            };
            Some(("restore.begin", format!("job {}, {what}{accepted}", job.id)))
        }
        JobSpec::Expire(expire) => {
            // What goes by the rules is nobody's deed.
            let set = expire.set.as_ref().filter(|_| !expire.dry_run)?;
            Some(("backup.expire", format!("job {}, {set} and what builds upon it", job.id)))
        }
        JobSpec::Backup(_)
        | JobSpec::Check { .. }
        | JobSpec::StanzaCreate { .. }
        | JobSpec::Verify(_)
        | JobSpec::Annotate(_) => None,
    }
}
