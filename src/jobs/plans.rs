//! Restore plans: facts gathered, a decision made (`domain::plan`), checks, and a hash that tells
//! whether anything that matters has changed since.
//!
//! Changes nothing. pgBackRest has no dry run of a restore; this is it.

mod checks;
mod facts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::catalog::{FRESH_ENOUGH, Freshness, Unavailable};
use super::context::Context;
use super::queue::LaneView;
use super::retention;
use super::sets;
use crate::clock;
use crate::domain::job::RestoreSpec;
use crate::domain::plan::check::{Check, CheckId, Verdict, refusing};
use crate::domain::plan::{Decision, Set, Unreachable, Wish, decide};
use crate::domain::recovery::{OnReached, RecoveryTarget};
use crate::domain::restore::Pinned;
use crate::domain::retention::Hold;
use crate::domain::sets::{Judgement, State};
use crate::domain::window::{self, Window};
use crate::domain::{BackupLabel, DatabaseName, JobId, RepoKey, StanzaName, Timeline};
use crate::pgbackrest::command::RestoreInPlace;
use crate::pgbackrest::info::Backup;
use crate::postgres::pgdata;
use crate::store::StoreError;

pub use facts::Ground;
pub(in crate::jobs) use facts::add_histories;

/// How long a plan can be carried out.
const VALID_FOR: SignedDuration = SignedDuration::from_mins(10);
/// Plans kept at most.
const KEPT: usize = 200;

/// What a plan is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRequest {
    /// The target and what restricts the choice.
    pub wish: Wish,
    /// What happens when the target is reached.
    pub on_reached: OnReached,
    /// Only these databases; all when there are none.
    pub databases: Vec<DatabaseName>,
    /// Failed checks that the caller takes upon itself.
    pub accept: Vec<CheckId>,
}

impl PlanRequest {
    /// Everything, to a target.
    pub fn to(target: RecoveryTarget) -> Self {
        let wish = Wish { target, set: None, repo: None, timeline: None };
        Self { wish, on_reached: OnReached::Promote, databases: Vec::new(), accept: Vec::new() }
    }
}

/// What the full backup after a restore lets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullAfterwards {
    /// The backups.
    pub removes: Vec<(RepoKey, BackupLabel)>,
    /// Until when everything that exists now is kept for the undo; `None` when it is not kept.
    pub kept_until: Option<Timestamp>,
}

/// A plan.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its id.
    pub id: JobId,
    /// The stanza.
    pub stanza: StanzaName,
    /// What was asked for.
    pub request: PlanRequest,
    /// What will be done.
    pub decision: Decision,
    /// The checks, in the order in which they were made.
    pub checks: Vec<Check>,
    /// The command line of pgBackRest.
    pub command: Vec<String>,
    /// Bytes that the set takes on the disk once it is restored.
    pub size_bytes: Option<u64>,
    /// Seconds without the database, by the last restore's pace.
    pub downtime_s: Option<u64>,
    /// The replication slots that will be gone.
    pub slots_lost: Vec<String>,
    /// What the full backup afterwards removes; `None` when retention cannot be calculated.
    pub full_afterwards: Option<FullAfterwards>,
    /// The timeline that the server is on now.
    pub timeline_before: Option<Timeline>,
    /// SHA-256 of what was decided, in hexadecimal digits.
    pub hash: String,
    /// When making it began.
    pub created_at: Timestamp,
    /// Until when it can be carried out.
    pub expires_at: Timestamp,
    left_in: BTreeMap<String, String>,
    ended: Option<Timestamp>,
    backups_of: Option<String>,
    pinned_facts: Canonical,
}

impl Plan {
    /// What a job needs to know of it.
    pub fn pinned(&self) -> Pinned {
        Pinned {
            set: self.decision.set.label.clone(),
            repo: self.decision.set.repo,
            timeline: self.decision.timeline,
            wal_end: self.pinned_facts.wal_end.clone(),
            left_in: self.left_in.clone(),
            ended: self.ended,
            system_id: self.backups_of.clone(),
            position: self.decision.position,
            plan: self.hash.clone(),
            planned_at: Some(self.created_at),
        }
    }

    /// The job that carries it out.
    pub fn spec(&self) -> RestoreSpec {
        RestoreSpec {
            pinned: Some(Box::new(self.pinned())),
            on_reached: self.request.on_reached,
            databases: self.request.databases.clone(),
            accept: self.request.accept.clone(),
            ..RestoreSpec::new(self.stanza.clone(), self.request.wish.target.clone())
        }
    }

    /// The failed checks that refuse the restore.
    pub fn refusing(&self) -> Vec<&Check> {
        refusing(&self.checks, &self.request.accept).collect()
    }

    /// What of the decision is different in another plan for the same request.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        self.pinned_facts.differences(&now.pinned_facts)
    }
}

/// What of a plan must not change until it is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Canonical {
    stanza: StanzaName,
    target: String,
    on_reached: OnReached,
    databases: Vec<DatabaseName>,
    set: String,
    repo: RepoKey,
    timeline: Timeline,
    timeline_before: Option<Timeline>,
    system_id: Option<String>,
    pgdata: (u64, u64),
    gaps: Vec<String>,
    failed: Vec<CheckId>,
    /// Grows all the time, so it is no part of the hash.
    #[serde(skip)]
    wal_end: Option<String>,
}

impl Canonical {
    fn hash(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(text).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    fn differences(&self, now: &Self) -> Vec<String> {
        let fields = |of: &Self| match serde_json::to_value(of) {
            Ok(serde_json::Value::Object(fields)) => fields,
            Ok(_) | Err(_) => serde_json::Map::new(),
        };
        let (then, now) = (fields(self), fields(now));
        let changed = then.iter().filter(|(name, value)| now.get(*name) != Some(*value));
        changed
            .map(|(name, value)| {
                let now = now.get(name).map_or_else(|| "nothing".to_owned(), ToString::to_string);
                format!("{name} was {value} and is {now}")
            })
            .collect()
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Restores need a server that Headrest can stop and start.
    #[error("Headrest does not supervise the PostgreSQL server of stanza {0}")]
    NotSupervised(StanzaName),
    /// The repository cannot be read.
    #[error("{0}")]
    Unavailable(String),
    /// The target cannot be reached.
    #[error(transparent)]
    Refused(#[from] Unreachable),
    /// The restore journal cannot be read.
    #[error("{0}")]
    Journal(String),
    /// The history cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a plan cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Stale {
    /// There is no such plan, or not any more.
    #[error("there is no restore plan {0}, or it has expired: make a new one")]
    Expired(String),
    /// Something that matters is different now.
    #[error("since plan {0} was made something has changed: {1}")]
    Changed(JobId, String),
    /// It cannot be made again.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// What a repository has of the chosen set and of the backups that it needs, read for one plan.
#[derive(Debug)]
struct InRepository {
    /// The set's manifest.
    manifest: Result<Arc<Backup>, Unavailable>,
    /// The labels of the backups whose directories are there.
    backups: Result<BTreeSet<BackupLabel>, Unavailable>,
}

/// Makes plans and keeps them for a while; clones share them.
#[derive(Debug, Clone)]
pub struct Planner {
    context: Context,
    plans: Arc<StdMutex<BTreeMap<JobId, Arc<Plan>>>>,
    /// What was seen last of each stanza; held while somebody looks, so that a hundred callers
    /// cost one look.
    looks: Arc<Mutex<BTreeMap<StanzaName, (Instant, Look)>>>,
}

/// What can be restored to, and what that was decided from.
#[derive(Debug, Clone)]
pub struct Look {
    /// The facts.
    pub ground: Arc<Ground>,
    /// The windows, the newest timeline first.
    pub windows: Arc<[Window]>,
}

impl Look {
    fn of(ground: Ground) -> Self {
        let mut windows: Vec<Window> = Vec::new();
        for (repo, archive) in &ground.archives {
            let mut of_repo = ground.catalogue.clone();
            of_repo.sets.retain(|set| set.repo == *repo);
            of_repo.archived = archive.segments.clone();
            windows.extend(window::windows(&of_repo));
        }
        windows.sort_by_key(|window| (std::cmp::Reverse(window.timeline), window.repo));
        Self { ground: Arc::new(ground), windows: windows.into() }
    }
}

/// Looks at everything anew, for a job.
pub(super) async fn look_now(context: &Context, stanza: &StanzaName) -> Result<Look, PlanError> {
    facts::look_anew(context, stanza).await.map(Look::of)
}

impl Planner {
    /// A planner without plans.
    pub fn new(context: Context) -> Self {
        Self { context, plans: Arc::default(), looks: Arc::default() }
    }

    /// Makes a plan. `lane` is what the stanza's lane does at present.
    pub async fn plan(
        &self,
        stanza: &StanzaName,
        request: PlanRequest,
        lane: Option<LaneView>,
    ) -> Result<Plan, PlanError> {
        let now = clock::now();
        let mut ground = facts::gather(&self.context, stanza).await?;
        let (decision, on_disk) = self.decide(&mut ground, &request.wish).await?;
        let context = &self.context;
        let checks = checks::all(context, &ground, &request, &decision, on_disk, lane).await;
        let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail);
        let failed = failed.map(|check| check.id).collect();
        let branch = ground.catalogue.timelines.branch(decision.timeline);
        let size = ground.catalogue.segment_size;
        let archived = &ground.catalogue.archived;
        let archived = branch.last(size, |timeline| archived.last(timeline, size));
        let target = &request.wish.target;
        let pinned_facts = Canonical {
            stanza: stanza.clone(),
            target: target.to_string(),
            on_reached: request.on_reached,
            databases: request.databases.clone(),
            set: decision.set.label.to_string(),
            repo: decision.set.repo,
            timeline: decision.timeline,
            timeline_before: ground.catalogue.current,
            system_id: ground.system_id.clone(),
            pgdata: ground.pgdata_identity,
            gaps: decision.gaps.iter().map(ToString::to_string).collect(),
            failed,
            wal_end: archived.map(|segment| segment.to_string()),
        };
        let command = RestoreInPlace {
            stanza,
            repo: decision.set.repo,
            set: &decision.set.label,
            timeline: Some(decision.timeline),
            databases: &request.databases,
            data_dir: context
                .server
                .as_ref()
                .and_then(|side| pgdata::behind_link(&side.data_dir))
                .as_deref(),
            preserve: false,
        }
        .invocation();
        Ok(Plan {
            id: JobId::new(now),
            stanza: stanza.clone(),
            size_bytes: decision.set.size_bytes,
            downtime_s: checks::downtime(&self.context, stanza, &decision).await,
            slots_lost: facts::slots(context).await,
            full_afterwards: self.full_afterwards(stanza, now).await,
            timeline_before: ground.catalogue.current,
            left_in: branch
                .left_in(size)
                .into_iter()
                .map(|(left, wanted)| (left.to_string(), wanted.to_string()))
                .collect(),
            backups_of: ground.backups_of.clone(),
            ended: ground.catalogue.ended.get(&decision.timeline).copied(),
            hash: pinned_facts.hash(),
            command: [vec!["pgbackrest".to_owned()], command.args].concat(),
            request,
            decision,
            checks,
            created_at: now,
            expires_at: now.saturating_add(VALID_FOR).unwrap_or(now),
            pinned_facts,
        })
    }

    async fn full_afterwards(&self, stanza: &StanzaName, now: Timestamp) -> Option<FullAfterwards> {
        let freshness = Freshness::Within(FRESH_ENOUGH);
        let gathered = retention::gather(&self.context, stanza, freshness).await;
        let ground = gathered
            .inspect_err(|error| {
                let cause = crate::telemetry::chain(error);
                tracing::warn!(
                    "cannot calculate what retention of stanza {stanza} removes: {cause}"
                );
            })
            .ok()?;
        let after = self.context.retention.config.after_restore;
        let until = now.saturating_add(after).ok().filter(|_| !after.is_zero());
        let hold = until.map(|_| Hold { restore: JobId::new(now), before: now, until });
        Some(FullAfterwards { removes: ground.after_full(hold), kept_until: until })
    }

    /// Decides, and reads the manifest of the set. Where that cannot be read another set is chosen, if there
    /// is one.
    async fn decide(
        &self,
        ground: &mut Ground,
        wish: &Wish,
    ) -> Result<(Decision, InRepository), PlanError> {
        loop {
            let decision = decide(&ground.catalogue, wish)?;
            let chosen = &decision.set;
            let read = sets::read_back(&self.context, &ground.stanza, chosen.repo, &chosen.label);
            let list = self.context.archives.backups(&ground.stanza, chosen.repo);
            let (read, backups) = tokio::join!(read, list);
            let with = |manifest| InRepository { manifest, backups };
            let problem = match read {
                Ok(Ok(backup)) => return Ok((decision, with(Ok(backup)))),
                Ok(Err(problem)) => problem,
                Err(error) => return Ok((decision, with(Err(error)))),
            };
            let is_it = |set: &&mut Set| set.label == chosen.label && set.repo == chosen.repo;
            let known = ground.catalogue.sets.iter_mut().find(is_it);
            let Some(known) = known.filter(|set| set.judgement.state != State::Unreadable) else {
                return Ok((decision, with(Err(Unavailable::new(problem)))));
            };
            known.judgement = Judgement::unreadable(clock::now(), &problem);
        }
    }

    /// Keeps a plan so that it can be carried out by its id.
    pub fn keep(&self, plan: Plan) -> Arc<Plan> {
        let plan = Arc::new(plan);
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.retain(|_, kept| kept.expires_at > plan.created_at);
        while plans.len() >= KEPT {
            plans.pop_first();
        }
        plans.insert(plan.id, Arc::clone(&plan));
        plan
    }

    /// A kept plan, made once more: still the same, or stale.
    pub async fn again(
        &self,
        stanza: &StanzaName,
        id: &str,
        lane: Option<LaneView>,
    ) -> Result<Plan, Stale> {
        let kept = id.parse::<JobId>().ok().and_then(|id| {
            let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
            plans.get(&id).cloned()
        });
        let kept = kept.filter(|plan| plan.expires_at > clock::now() && plan.stanza == *stanza);
        let expired = || Stale::Expired(crate::domain::stanza::shown(id));
        let kept = kept.ok_or_else(expired)?;
        let now = self.plan(stanza, kept.request.clone(), lane).await?;
        if now.hash != kept.hash {
            return Err(Stale::Changed(kept.id, kept.differences(&now).join("; ")));
        }
        Ok(now)
    }

    /// What was seen of a stanza does not hold any more.
    pub async fn look_again(&self, stanza: &StanzaName) {
        self.looks.lock().await.remove(stanza);
    }

    /// What can be restored to, per repository and timeline; as old as a page may be.
    pub async fn windows(&self, stanza: &StanzaName) -> Result<Look, PlanError> {
        let mut looks = self.looks.lock().await;
        if let Some((at, look)) = looks.get(stanza)
            && at.elapsed() <= FRESH_ENOUGH
        {
            return Ok(look.clone());
        }
        let at = Instant::now();
        let look = Look::of(facts::look(&self.context, stanza).await?);
        looks.insert(stanza.clone(), (at, look.clone()));
        Ok(look)
    }
}
