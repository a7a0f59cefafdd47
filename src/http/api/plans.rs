//! Restore plans: what a restore would do, before anything is touched.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::upkeep::RemovedView;
use super::wal::GapView;
use crate::domain::job::Removed;
use crate::domain::plan::Wish;
use crate::domain::recovery::{OnReached, RecoveryTarget};
use crate::domain::{DatabaseName, RepoKey, WalSegment};
use crate::http::extract::{Json as Body, Stanza};
use crate::http::problem::{CheckView, Outcome, Problem, ProblemBody};
use crate::http::state::AppState;
use crate::jobs::plans::{FullAfterwards, Plan, PlanRequest};

/// Where recovery ends.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct TargetRequest {
    /// latest: everything that was ever committed; immediate: the end of the backup set; time, lsn,
    /// xid, name: that moment.
    #[schema(example = "time")]
    r#type: String,
    /// The moment: an RFC 3339 time with offset, an LSN such as 0/16B6C50, a transaction id, a
    /// restore point's name.
    #[schema(value_type = Option<String>, example = "2026-11-20T10:00:00Z")]
    value: Option<Value>,
    /// Whether what is exactly there is left out; for time, lsn and xid.
    exclusive: Option<bool>,
}

impl TargetRequest {
    /// Parses it; nothing of it goes further as text.
    pub(in crate::http) fn parse(&self) -> Outcome<RecoveryTarget> {
        let exclusive = self.exclusive.unwrap_or(false);
        let kind = self.r#type.as_str();
        let without_value = |target| match (&self.value, self.exclusive) {
            (None, None) => Ok(target),
            (Some(_), _) => Err(Problem::field("target.value", format!("{kind} takes no value"))),
            (None, Some(_)) => {
                Err(Problem::field("target.exclusive", format!("{kind} cannot be exclusive")))
            }
        };
        match kind {
            "latest" => without_value(RecoveryTarget::Latest),
            "immediate" => without_value(RecoveryTarget::Immediate),
            "time" => Ok(RecoveryTarget::Time { value: self.value("a time")?, exclusive }),
            "lsn" => Ok(RecoveryTarget::Lsn { value: self.value("an LSN")?, exclusive }),
            "xid" => Ok(RecoveryTarget::Xid { value: self.value("a transaction id")?, exclusive }),
            "name" if self.exclusive.is_some() => {
                Err(Problem::field("target.exclusive", "a name cannot be exclusive"))
            }
            "name" => Ok(RecoveryTarget::Name { value: self.value("a restore point's name")? }),
            other => {
                let shown = crate::domain::stanza::shown(other);
                let known = "latest, immediate, time, lsn, xid, name";
                Err(Problem::field("target.type", format!("\"{shown}\" is not one of {known}")))
            }
        }
    }

    fn value<T: std::str::FromStr>(&self, what: &str) -> Outcome<T>
    where
        T::Err: std::fmt::Display,
    {
        let text = match &self.value {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(_) => return Err(Problem::field("target.value", format!("must be {what}"))),
            None => return Err(Problem::field("target.value", format!("is missing: {what}"))),
        };
        text.parse().map_err(|error: T::Err| {
            let shown = crate::domain::stanza::shown(&text);
            let problem =
                Problem::field("target.value", format!("\"{shown}\" is not {what}: {error}"));
            if what == "a time" {
                return problem.hint("RFC 3339 with an offset, e.g. 2026-11-20T10:00:00Z.");
            }
            problem
        })
    }
}

/// What a plan, or a restore without one, is asked for.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct PlanBody {
    /// Where recovery ends.
    pub(super) target: Option<TargetRequest>,
    /// The backup set; when not given the newest that ended before the target and is not known to be
    /// damaged.
    #[schema(example = "20261120-101500F")]
    pub(super) set: Option<String>,
    /// The repository.
    #[schema(example = 1)]
    pub(super) repo: Option<u32>,
    /// The timeline to follow: current, latest or a number. When not given, the one that the
    /// server was on at the target's time.
    #[schema(value_type = Option<String>, example = "current")]
    pub(super) timeline: Option<Value>,
    /// in-place: PGDATA is replaced, by a delta restore.
    #[schema(example = "in-place")]
    pub(super) mode: Option<String>,
    /// Only these databases; the others become unusable and must be dropped.
    #[schema(example = json!([]))]
    pub(super) databases: Option<Vec<String>>,
    /// promote (the default), or pause: look first, then promote, retarget or abandon.
    #[schema(example = "pause")]
    pub(super) on_reached: Option<String>,
    /// Failed checks that you take upon yourself: wal-gap, wal-loss, other-system, damaged-set,
    /// destroyed-database.
    #[schema(example = json!([]))]
    pub(super) accept: Option<Vec<String>>,
}

impl PlanBody {
    /// Parses it.
    pub(super) fn parse(&self) -> Outcome<PlanRequest> {
        let target = self.target.as_ref();
        let target = target.ok_or_else(|| Problem::field("target", "is missing"))?.parse()?;
        if self.mode.as_deref().is_some_and(|mode| mode != "in-place") {
            return Err(Problem::field("mode", "only in-place is there so far"));
        }
        let text =
            |field: &str, error: &dyn std::fmt::Display| Problem::field(field, error.to_string());
        let set = self.set.as_deref().map(str::parse).transpose();
        let repo = self.repo.map(RepoKey::try_from).transpose();
        let timeline = match &self.timeline {
            None => None,
            Some(Value::String(word)) => Some(word.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(_) => return Err(Problem::field("timeline", "must be a word or a number")),
        };
        let timeline = timeline.map(|word| word.parse()).transpose();
        let databases: Result<Vec<DatabaseName>, _> =
            self.databases.iter().flatten().map(|name| name.parse()).collect();
        Ok(PlanRequest {
            wish: Wish {
                target,
                set: set.map_err(|error| text("set", &error))?,
                repo: repo.map_err(|error| text("repo", &error))?,
                timeline: timeline.map_err(|error: crate::domain::recovery::InvalidTarget| {
                    text("timeline", &error)
                })?,
            },
            on_reached: on_reached(self.on_reached.as_deref())?,
            databases: databases.map_err(|error| text("databases", &error))?,
            accept: accept(self.accept.as_deref())?,
        })
    }

    /// Whether it says anything.
    pub(super) fn is_empty(&self) -> bool {
        let Self { target, set, repo, timeline, mode, databases, on_reached, accept } = self;
        let choice = target.is_none() && set.is_none() && repo.is_none() && timeline.is_none();
        choice && mode.is_none() && databases.is_none() && on_reached.is_none() && accept.is_none()
    }
}

/// `on_reached` of a request.
pub(super) fn on_reached(given: Option<&str>) -> Outcome<OnReached> {
    given.map_or(Ok(OnReached::Promote), |word| {
        word.parse().map_err(|error| Problem::field("on_reached", format!("{error}")))
    })
}

/// `accept` of a request.
pub(super) fn accept(
    given: Option<&[String]>,
) -> Outcome<Vec<crate::domain::plan::check::CheckId>> {
    let parsed: Result<Vec<_>, _> =
        given.iter().flat_map(|all| *all).map(|id| id.parse()).collect();
    parsed.map_err(|error: crate::domain::words::UnknownWord| {
        Problem::field("accept", error.to_string())
    })
}

/// A restore plan.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RestorePlan)]
pub(in crate::http) struct PlanView {
    /// Its id: `{"plan": ID, "confirm": STANZA}` carries it out.
    id: String,
    /// The stanza.
    stanza: String,
    /// Where recovery ends, as it was understood.
    target: TargetView,
    /// promote or pause.
    on_reached: &'static str,
    /// The backup set that is restored.
    set: String,
    /// When it ended.
    #[schema(value_type = String, format = DateTime)]
    set_stopped_at: Timestamp,
    /// The repository that it is in.
    repo: u16,
    /// The timeline that recovery follows.
    timeline: u32,
    /// The timeline that the server is on now; null when that is not known.
    timeline_before: Option<u32>,
    /// The WAL that is replayed.
    wal: PlanWal,
    /// The checks.
    checks: Vec<CheckView>,
    /// Whether the restore would be refused as it was asked for.
    refused: bool,
    /// What is on the server now and will not be there afterwards; null when nothing.
    data_lost: Option<LostView>,
    /// What the full backup after the restore does to the older backups; null when retention cannot be calculated.
    full_afterwards: Option<FullAfterwardsView>,
    /// pgBackRest's command line.
    command: Vec<String>,
    /// Bytes of the set.
    size_bytes: Option<u64>,
    /// Seconds without the database, by the last restore's pace; null before the first.
    downtime_estimate_s: Option<u64>,
    /// SHA-256 of what was decided. A plan whose hash would be different now is stale.
    hash: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Until when it can be carried out.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Where recovery ends.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Target)]
pub(in crate::http) struct TargetView {
    /// latest, immediate, time, lsn, xid or name.
    r#type: &'static str,
    /// The moment; null for latest and immediate.
    value: Option<String>,
    /// Whether what is exactly there is left out.
    exclusive: bool,
}

impl From<&RecoveryTarget> for TargetView {
    fn from(target: &RecoveryTarget) -> Self {
        Self { r#type: target.as_str(), value: target.value(), exclusive: target.is_exclusive() }
    }
}

/// The WAL that is replayed.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct PlanWal {
    /// The first segment.
    from: String,
    /// The last segment, as far as it is known.
    to: Option<String>,
    /// How many, as far as it is known.
    segments: Option<u64>,
    /// What is missing.
    gaps: Vec<GapView>,
}

/// What is there now and will not be afterwards. What was committed stays in the archive, and an undo
/// brings it back; replication slots are in no backup.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DataLost)]
pub(in crate::http) struct LostView {
    /// In words.
    text: String,
    /// The segment that holds the target, as far as it is known.
    wal_from: Option<String>,
    /// The last segment there is.
    wal_to: Option<String>,
    /// The replication slots of the server: no restore and no undo brings them back.
    #[schema(example = json!([]))]
    replication_slots: Vec<String>,
}

impl LostView {
    fn of(plan: &Plan) -> Option<Self> {
        let (lost, slots) = (plan.decision.lost.as_ref(), &plan.slots_lost);
        let commits = lost.map(|_| {
            let target = &plan.request.wish.target;
            format!("what was committed after {target}; its WAL stays in the archive")
        });
        let of_slots = (!slots.is_empty()).then(|| {
            format!(
                "the replication slots {}: make them again afterwards, and set up anew the standbys and \
                 subscribers that use them",
                slots.join(", ")
            )
        });
        let parts: Vec<String> = commits.into_iter().chain(of_slots).collect();
        let segment = |segment: Option<WalSegment>| segment.map(|segment| segment.to_string());
        (!parts.is_empty()).then(|| Self {
            text: parts.join("; and "),
            wal_from: segment(lost.and_then(|lost| lost.first)),
            wal_to: segment(lost.and_then(|lost| lost.last)),
            replication_slots: slots.clone(),
        })
    }
}

/// What the full backup after a restore, which is taken unless `backup_after` is false, does to the
/// older backups.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FullAfterwards)]
pub(in crate::http) struct FullAfterwardsView {
    /// In words.
    text: String,
    /// The backups that retention removes then.
    removes: Vec<RemovedView>,
    /// Until when everything that exists now is kept for the undo; null when it is not kept.
    #[schema(value_type = Option<String>, format = DateTime)]
    kept_until: Option<Timestamp>,
}

impl From<&FullAfterwards> for FullAfterwardsView {
    fn from(found: &FullAfterwards) -> Self {
        let removes = match found.removes.as_slice() {
            [] => "the full backup after the restore removes no backup".to_owned(),
            some => {
                let labels: Vec<&str> = some.iter().map(|(_, label)| label.as_str()).collect();
                format!("the full backup after the restore removes {}", labels.join(", "))
            }
        };
        let kept = match found.kept_until {
            Some(until) => format!(
                "everything that exists now is kept for the undo until {}",
                until.strftime("%Y-%m-%d %H:%M UTC")
            ),
            None => "nothing is kept for the undo ([retention] after_restore is 0)".to_owned(),
        };
        let removed =
            found.removes.iter().map(|(repo, label)| Removed { label: label.clone(), repo: *repo });
        Self {
            text: format!("{removes}; {kept}"),
            removes: removed.map(RemovedView::from).collect(),
            kept_until: found.kept_until,
        }
    }
}

impl From<&Plan> for PlanView {
    fn from(plan: &Plan) -> Self {
        let decision = &plan.decision;
        let start = decision.set.archive_start;
        Self {
            id: plan.id.to_string(),
            stanza: plan.stanza.to_string(),
            target: TargetView::from(&plan.request.wish.target),
            on_reached: plan.request.on_reached.as_str(),
            set: decision.set.label.to_string(),
            set_stopped_at: decision.set.stopped_at,
            repo: decision.set.repo.get(),
            timeline: decision.timeline.get(),
            timeline_before: plan.timeline_before.map(|timeline| timeline.get()),
            wal: PlanWal {
                from: start.to_string(),
                to: decision.wal_until.map(|until| until.to_string()),
                segments: decision
                    .wal_until
                    .map(|until| until.number().saturating_sub(start.number()) + 1),
                gaps: decision.gaps.iter().map(GapView::from).collect(),
            },
            checks: plan.checks.iter().map(CheckView::from).collect(),
            refused: !plan.refusing().is_empty(),
            data_lost: LostView::of(plan),
            full_afterwards: plan.full_afterwards.as_ref().map(FullAfterwardsView::from),
            command: plan.command.clone(),
            size_bytes: plan.size_bytes,
            downtime_estimate_s: plan.downtime_s,
            hash: plan.hash.clone(),
            created_at: plan.created_at,
            expires_at: plan.expires_at,
        }
    }
}

/// Plans a restore: which backup, which timeline, which WAL, what is lost, what would go wrong.
/// Changes nothing. The plan can be carried out for ten minutes, as long as nothing that matters
/// changes.
#[utoipa::path(post, path = "/stanzas/{stanza}/restore-plans", tag = "restores", params(("stanza" = String, Path, example = "main")), request_body = PlanBody, responses(
    (status = 201, description = "the plan", body = PlanView),
    (status = "4XX", body = ProblemBody, content_type = "application/problem+json"),
    (status = "5XX", body = ProblemBody, content_type = "application/problem+json"),
))]
pub(in crate::http) async fn create(
    State(state): State<AppState>,
    Stanza(stanza): Stanza,
    Body(request): Body<PlanBody>,
) -> Outcome<Response> {
    let request = request.parse()?;
    let plan = state.planner.plan(&stanza, request, state.jobs.lane(&stanza)).await?;
    let plan = state.planner.keep(plan);
    Ok((StatusCode::CREATED, Json(PlanView::from(plan.as_ref()))).into_response())
}
