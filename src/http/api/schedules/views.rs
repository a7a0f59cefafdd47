//! How schedules are shown.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::schedule::run::{State as Stand, Step};
use crate::http::api::jobs::JobView;
use crate::scheduler::View;
use crate::store::StoredVerdict;

/// A schedule.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Schedule)]
pub(in crate::http) struct ScheduleView {
    /// Its name.
    #[schema(example = "weekly-full")]
    pub(super) name: String,
    /// The stanza.
    #[schema(example = "main")]
    stanza: String,
    /// full, diff, incr, expire, verify or check.
    #[schema(example = "full")]
    r#type: &'static str,
    /// The expression.
    #[schema(example = "0 2 * * SUN")]
    cron: String,
    /// The same in words.
    #[schema(example = "At 02:00, on Sunday")]
    in_words: String,
    /// The IANA zone.
    #[schema(example = "UTC")]
    timezone: String,
    /// run-once or skip.
    missed: &'static str,
    /// Seconds that a missed run may start late.
    within_s: i64,
    /// Seconds by which runs are spread.
    jitter_s: i64,
    /// How often a run that failed is tried again.
    retries: u8,
    /// The repository, when one is named.
    repo: Option<u16>,
    /// file, default or api: only those of the API can be changed here.
    #[schema(example = "file")]
    origin: &'static str,
    /// Whether nothing is started.
    paused: bool,
    /// When the next run is due, its jitter included; null while paused.
    #[schema(value_type = Option<String>, format = DateTime)]
    next_run_at: Option<Timestamp>,
    /// What is under way for its last moment; null when nothing is.
    current: Option<CurrentView>,
    /// What went wrong last, until a run ends well; null when all is well.
    trouble: Option<String>,
    /// Moments that were missed, ever.
    missed_count: u64,
}

/// What is under way.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScheduledRun)]
pub(in crate::http) struct CurrentView {
    /// The moment.
    #[schema(value_type = String, format = DateTime)]
    pub(super) slot: Timestamp,
    /// held (something is in its way), starting, running or retrying.
    #[schema(example = "running")]
    step: &'static str,
    /// What is in its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// Its job.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<String>,
    /// When it is tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    retry_at: Option<Timestamp>,
    /// Tries so far.
    attempts: u8,
}

/// A schedule with its past.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ScheduleDetail {
    #[serde(flatten)]
    pub(super) schedule: ScheduleView,
    /// Its newest job; null when there was none.
    pub(super) last_job: Option<JobView>,
    /// What became of its moments, newest first.
    pub(super) verdicts: Vec<VerdictView>,
}

/// What became of some moments in a row.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ScheduleVerdict)]
pub(in crate::http) struct VerdictView {
    /// run, coalesced (another moment's run counts for it), missed or skipped (on purpose).
    #[schema(example = "run")]
    verdict: &'static str,
    /// The first moment.
    #[schema(value_type = String, format = DateTime)]
    first: Timestamp,
    /// The last moment.
    #[schema(value_type = String, format = DateTime)]
    last: Timestamp,
    /// How many.
    count: u64,
    /// Why.
    reason: String,
    /// When it was decided.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
}

/// All schedules.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Schedules {
    /// By name.
    pub(super) items: Vec<ScheduleView>,
}

/// Coming runs.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SchedulePreview {
    /// The runs, in order.
    pub(super) items: Vec<ComingRun>,
}

/// A coming run.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ComingRun {
    /// The moment.
    #[schema(value_type = String, format = DateTime)]
    pub(super) slot: Timestamp,
    /// When it is due, its jitter included.
    #[schema(value_type = String, format = DateTime)]
    pub(super) due_at: Timestamp,
    /// The same in the schedule's zone.
    #[schema(example = "2026-11-29T03:00:00+01:00[Europe/Berlin]")]
    pub(super) local: String,
}

impl From<&View> for ScheduleView {
    fn from(view: &View) -> Self {
        let schedule = &view.schedule;
        Self {
            name: schedule.name.to_string(),
            stanza: schedule.stanza.to_string(),
            r#type: schedule.kind.as_str(),
            cron: schedule.cron.to_string(),
            in_words: schedule.cron.in_words(),
            timezone: schedule.timezone.to_string(),
            missed: schedule.missed.as_str(),
            within_s: schedule.within.as_secs(),
            jitter_s: schedule.jitter.as_secs(),
            retries: schedule.retries,
            repo: schedule.repo.map(|repo| repo.get()),
            origin: view.origin.as_str(),
            paused: view.state.paused,
            next_run_at: view.next.map(|(_, due)| due),
            current: current(&view.state),
            trouble: view.state.trouble.as_ref().map(|trouble| trouble.text.clone()),
            missed_count: view.missed.total,
        }
    }
}

fn current(state: &Stand) -> Option<CurrentView> {
    let run = state.run.as_ref()?;
    let (step, why, job, retry_at) = match &run.step {
        Step::Held { why } => ("held", Some(why.clone()), None, None),
        Step::Starting => ("starting", None, None, None),
        Step::Running { job } => ("running", None, Some(format!("/api/v1/jobs/{job}")), None),
        Step::Retrying { at } => ("retrying", None, None, Some(*at)),
    };
    Some(CurrentView { slot: run.slot, step, why, job, retry_at, attempts: run.attempts })
}

impl From<StoredVerdict> for VerdictView {
    fn from(stored: StoredVerdict) -> Self {
        let StoredVerdict { told, at } = stored;
        Self {
            verdict: told.verdict.as_str(),
            first: told.slots.first,
            last: told.slots.last,
            count: told.slots.count,
            reason: told.reason,
            at,
        }
    }
}
