//! Admission, and one lane per stanza: the task that changes the state of jobs.
//!
//! A job's row is in the store before its work begins and its end is there before anybody is told.

mod handle;
mod steer;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::recorder::{Recorder, event};
use super::restore::{self, Begin};
use super::submission::{Denied, LONGEST_QUEUE, Submission, deed};
use super::worker::{self, Ended};
use super::{annotate, bootstrap, expire, verify};
use crate::clock;
use crate::domain::StanzaName;
use crate::domain::job::{
    Admission, Job, JobEvent, JobId, JobKind, JobSpec, JobState, Outcome, Trigger, admit,
};
use crate::domain::restore::{Awaiting, BootAction, Journal, Phase};
use crate::postgres::pgdata::{self, Content};
use crate::postgres::supervisor::Archiving;
use crate::pulse::Pulse;
use crate::store::StoreError;

pub use handle::JobsHandle;
use steer::PhaseTeller;
pub(super) use steer::{Helm, SteerOrder};

const BEAT: Duration = Duration::from_secs(2);
/// How soon the end of a job that could not be written is written again.
const WRITE_AGAIN: Duration = Duration::from_secs(2);

/// What one lane is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    /// The job that has it.
    pub running: Option<(JobId, JobKind)>,
    /// How many wait.
    pub waiting: usize,
}

enum Command {
    Submit(Box<Submission>, oneshot::Sender<Result<Job, Denied>>),
    Resume(Box<(Job, Journal, BootAction)>),
    Cancel(JobId, String, oneshot::Sender<Result<Job, Denied>>),
    /// Handed on to the restore, which answers.
    Steer(JobId, Box<SteerOrder>),
    /// A restore goes into this phase and waits for this; answered when a cancel is judged by it.
    Phase(JobId, Phase, Option<Awaiting>, oneshot::Sender<()>),
}

#[derive(Default)]
struct Lane {
    running: Option<Running>,
    waiting: VecDeque<Job>,
}

struct Running {
    job: Job,
    cancel: CancellationToken,
    /// What a restore waits for.
    awaiting: Option<Awaiting>,
    steer: mpsc::Sender<SteerOrder>,
}

struct Queue {
    context: Context,
    lanes: BTreeMap<StanzaName, Lane>,
    publish: watch::Sender<BTreeMap<StanzaName, LaneView>>,
    work: JoinSet<(StanzaName, JobId, Ended)>,
    own: mpsc::Sender<Command>,
}

impl Queue {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>, pulse: Pulse) {
        let shutdown = self.context.shutdown.clone();
        loop {
            pulse.beat();
            let idle = self.work.is_empty();
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(command) => self.take(command).await,
                    None => return,
                },
                Some(ended) = self.work.join_next() => self.on_end(ended).await,
                () = shutdown.cancelled(), if idle => {
                    self.interrupt_waiting().await;
                    return;
                }
                () = tokio::time::sleep(BEAT) => {}
            }
            self.publish.send_if_modified(|known| {
                let now = views(&self.lanes);
                let changed = *known != now;
                *known = now;
                changed
            });
        }
    }

    async fn take(&mut self, command: Command) {
        match command {
            Command::Submit(submission, reply) => {
                let answer = self.submit(*submission).await;
                // Who asked may have gone; what was accepted is accepted.
                let _ = reply.send(answer);
            }
            Command::Cancel(id, by, reply) => {
                let answer = self.cancel(id, &by).await;
                let _ = reply.send(answer);
            }
            Command::Resume(resumed) => {
                let (job, journal, action) = *resumed;
                self.start(job, Some((journal, action))).await;
            }
            Command::Steer(id, order) => self.steer(id, *order).await,
            Command::Phase(id, phase, awaiting, known) => {
                for lane in self.lanes.values_mut() {
                    if let Some(running) = lane.running.as_mut().filter(|r| r.job.id == id) {
                        running.job.restore_phase = Some(phase);
                        running.awaiting = awaiting;
                    }
                }
                let _ = known.send(());
            }
        }
    }

    async fn submit(&mut self, submission: Submission) -> Result<Job, Denied> {
        let Submission { spec, trigger, by, on_conflict, idempotency_key, tried_again } =
            submission;
        if self.context.shutdown.is_cancelled() {
            return Err(Denied::ShuttingDown);
        }
        let stanza = spec.stanza().clone();
        let supervised = self.context.server.as_ref().is_some_and(|side| side.stanza == stanza);
        if spec.kind() == JobKind::Restore && !supervised {
            return Err(Denied::NotSupervised(stanza));
        }
        self.is_archived(&spec, &trigger)?;
        let lane = self.lanes.entry(stanza.clone()).or_default();
        let mut cancelled = None;
        let restore_waits = lane.waiting.iter().find(|job| job.spec.kind() == JobKind::Restore);
        if spec.kind() == JobKind::Restore
            && let Some(other) = restore_waits
        {
            return Err(Denied::LaneBusy { stanza, job: other.id, kind: JobKind::Restore });
        }
        if let Some(running) = &lane.running {
            match admit(&spec, running.job.spec.kind(), on_conflict) {
                Admission::Refuse => {
                    let (job, kind) = (running.job.id, running.job.spec.kind());
                    return Err(Denied::LaneBusy { stanza, job, kind });
                }
                Admission::Wait => {}
                Admission::CancelAndWait => cancelled = Some(running.job.id),
            }
            if lane.waiting.len() >= LONGEST_QUEUE {
                return Err(Denied::QueueFull(stanza));
            }
        }
        let now = clock::now();
        let job = Job { tried_again, ..Job::queued(JobId::new(now), spec, trigger, by, now) };
        self.context.store.insert_job(job.clone(), idempotency_key).await?;
        tracing::info!(
            job.id = %job.id, job.kind = %job.spec.kind(), stanza.name = %stanza, by = %job.by,
            "accepted {} job {} for stanza {stanza}", job.spec.kind(), job.id
        );
        if let Some((action, detail)) = deed(&job) {
            self.audit(&job.by, action, stanza.to_string(), detail).await?;
        }
        let lane = self.lanes.entry(stanza).or_default();
        if lane.running.is_none() {
            return Ok(self.start(job, None).await);
        }
        match cancelled {
            // A restore goes before whatever else waits.
            Some(_) => lane.waiting.push_front(job.clone()),
            None => lane.waiting.push_back(job.clone()),
        }
        if let Some(id) = cancelled
            && let Err(denied) = self.cancel(id, &format!("restore {}", job.id)).await
        {
            tracing::warn!(job.id = %id, "cannot cancel for a restore: {denied}");
        }
        Ok(job)
    }

    /// Nothing is backed up without archiving, and nothing restored but an empty PGDATA: what the
    /// archive does not have would be lost.
    fn is_archived(&self, spec: &JobSpec, trigger: &Trigger) -> Result<(), Denied> {
        let stanza = spec.stanza();
        let side = self.context.server.as_ref().filter(|side| side.stanza == *stanza);
        let Some(side) = side else { return Ok(()) };
        let content = pgdata::content(&side.data_dir);
        if *trigger == Trigger::Event(bootstrap::TRIGGER.to_owned())
            && !matches!(content, Ok(Content::Empty))
        {
            return Err(Denied::NotEmpty(side.data_dir.clone()));
        }
        // What a restore that is under way leaves will be whole.
        let busy = self.lanes.get(stanza).is_some_and(|lane| lane.running.is_some());
        let whole = busy || matches!(content, Ok(Content::Cluster(_)));
        match side.archiving {
            Archiving::Ours => Ok(()),
            _ if spec.kind() == JobKind::Restore && !whole => Ok(()),
            Archiving::Off => Err(Denied::Copy(stanza.clone())),
            Archiving::NotOurs => Err(Denied::BackupsOff(stanza.clone())),
        }
    }

    async fn cancel(&mut self, id: JobId, by: &str) -> Result<Job, Denied> {
        for lane in self.lanes.values_mut() {
            if let Some(at) = lane.waiting.iter().position(|job| job.id == id)
                && let Some(mut job) = lane.waiting.remove(at)
            {
                advance(&mut job, JobEvent::Cancel);
                save(&self.context, &job).await?;
                return Ok(job);
            }
            let Some(running) = lane.running.as_mut().filter(|r| r.job.id == id) else { continue };
            match running.job.restore_phase {
                Some(phase) if !phase.data_is_intact() => {
                    return Err(Denied::TooLate { job: id, phase });
                }
                _ => {}
            }
            if running.job.state == JobState::Cancelling {
                return Ok(running.job.clone());
            }
            tracing::info!(job.id = %id, by, "cancelling job {id}, asked by {by}");
            advance(&mut running.job, JobEvent::Cancel);
            running.cancel.cancel();
            save(&self.context, &running.job).await?;
            return Ok(running.job.clone());
        }
        match self.context.store.job(id).await? {
            Some(job) => Err(Denied::Ended { job: id, state: job.state }),
            None => Err(Denied::NoSuchJob(id)),
        }
    }

    async fn audit(
        &self,
        by: &str,
        action: &'static str,
        subject: String,
        detail: String,
    ) -> Result<(), StoreError> {
        tracing::info!(by, action, subject, "{action} of {subject} by {by}: {detail}");
        self.context.store.audit(clock::now(), by.to_owned(), action, subject, detail).await
    }

    /// Gives a job its lane. Its row says so before its work begins.
    async fn start(&mut self, mut job: Job, resume: Option<(Journal, BootAction)>) -> Job {
        if job.state == JobState::Queued {
            advance(&mut job, JobEvent::Start);
        }
        let stanza = job.spec.stanza().clone();
        if let Err(error) = save(&self.context, &job).await {
            let error = crate::telemetry::chain(&error);
            tracing::error!(job.id = %job.id, "cannot note that a job starts: {error}");
        }
        let cancel = CancellationToken::new();
        let (steer, steering) = mpsc::channel(1);
        let work = carry_out(
            self.context.clone(),
            job.clone(),
            resume,
            cancel.clone(),
            Helm { phases: PhaseTeller { job: job.id, to: self.own.clone() }, steering },
        );
        let (lane, id) = (stanza.clone(), job.id);
        self.work.spawn(async move {
            // A panic of one job must neither end the queue nor leave the lane taken.
            let ended = match tokio::spawn(work).await {
                Ok(ended) => ended,
                Err(panic) => Ended::failed(worker::problem(
                    "internal",
                    format!("a bug in Headrest ended this job: {panic}"),
                    &["Please report it with Headrest's log."],
                )),
            };
            (lane, id, ended)
        });
        self.lanes.entry(stanza).or_default().running =
            Some(Running { job: job.clone(), cancel, awaiting: None, steer });
        job
    }

    async fn on_end(&mut self, ended: Result<(StanzaName, JobId, Ended), tokio::task::JoinError>) {
        let Ok((stanza, id, ended)) = ended else { return };
        let Some(lane) = self.lanes.get_mut(&stanza) else { return };
        let Some(running) = lane.running.take_if(|r| r.job.id == id) else { return };
        let Some(outcome) = ended.outcome else {
            tracing::info!(job.id = %id, "job {id} goes on at the next start of Headrest");
            return;
        };
        let mut job = running.job.clone();
        (job.result, job.error) = (ended.result.clone(), ended.error.clone());
        advance(&mut job, JobEvent::Finish(outcome));
        if let Err(error) = save(&self.context, &job).await {
            let error = crate::telemetry::chain(&error);
            tracing::error!(job.id = %id, "cannot note that a job ended: {error}");
            if !self.context.shutdown.is_cancelled() {
                // It keeps its lane until that is written: else it would run for ever, for everybody
                // who asks. The next start would close it.
                lane.running = Some(running);
                self.work.spawn(async move {
                    tokio::time::sleep(WRITE_AGAIN).await;
                    (stanza, id, ended)
                });
                return;
            }
        }
        if let Some(error) = &job.error {
            tracing::warn!(job.id = %id, "job {id} {outcome}: {}", error.message);
        } else {
            tracing::info!(job.id = %id, "job {id} {outcome}");
        }
        if let Some(spec) = ended.follow_up {
            let submission =
                Submission { by: job.by.clone(), ..Submission::of_event(spec, "restore") };
            if let Err(denied) = self.submit(submission).await {
                tracing::warn!("cannot queue what follows job {id}: {denied}");
            }
        }
        self.next(&stanza).await;
    }

    async fn next(&mut self, stanza: &StanzaName) {
        let Some(lane) = self.lanes.get_mut(stanza) else { return };
        if lane.running.is_some() || self.context.shutdown.is_cancelled() {
            return;
        }
        if let Some(job) = lane.waiting.pop_front() {
            self.start(job, None).await;
        }
    }

    async fn interrupt_waiting(&mut self) {
        for lane in self.lanes.values_mut() {
            for mut job in lane.waiting.drain(..) {
                job.error = Some(worker::problem("interrupted", "Headrest was stopped", &[]));
                advance(&mut job, JobEvent::Finish(Outcome::Interrupted));
                if let Err(error) = save(&self.context, &job).await {
                    tracing::error!(job.id = %job.id, "cannot close a waiting job: {error}");
                }
            }
        }
    }
}

async fn carry_out(
    context: Context,
    job: Job,
    resume: Option<(Journal, BootAction)>,
    cancel: CancellationToken,
    helm: Helm,
) -> Ended {
    let mut recorder = Recorder::new(job.id, context.store.clone(), context.wake.clone());
    let ended = match &job.spec {
        JobSpec::Backup(spec) => worker::backup(&context, spec, &mut recorder, &cancel).await,
        JobSpec::Check { stanza } => worker::check(&context, stanza, &mut recorder, &cancel).await,
        JobSpec::StanzaCreate { stanza } => {
            worker::stanza_create(&context, stanza, &mut recorder, &cancel).await
        }
        JobSpec::Verify(spec) => verify::run(&context, spec, &mut recorder, &cancel).await,
        JobSpec::Expire(spec) => expire::run(&context, spec, &mut recorder, &cancel).await,
        JobSpec::Annotate(spec) => annotate::run(&context, spec, &mut recorder, &cancel).await,
        JobSpec::Restore(spec) => {
            let begin = match resume {
                Some((journal, action)) => Begin::Resume(Box::new(journal), action),
                None => Begin::Fresh { id: job.id, by: job.by.clone() },
            };
            Box::pin(restore::run(&context, spec, begin, &mut recorder, &cancel, helm)).await
        }
    };
    let done = matches!(ended.outcome, Some(Outcome::Succeeded | Outcome::Warned));
    recorder.finish(done).await;
    ended
}

fn advance(job: &mut Job, step: JobEvent) {
    if let Err(refused) = job.apply(step, clock::now()) {
        tracing::error!(job.id = %job.id, "a bug in the queue: {refused}");
    }
}

/// Stores a job's state and then tells everybody.
async fn save(context: &Context, job: &Job) -> Result<(), StoreError> {
    let data = serde_json::json!({ "state": job.state, "outcome": job.state.outcome() });
    let last =
        context.store.update_state(job.clone(), vec![event("state", data.to_string())]).await?;
    context.wake.stored(last);
    Ok(())
}

fn views(lanes: &BTreeMap<StanzaName, Lane>) -> BTreeMap<StanzaName, LaneView> {
    let view = |lane: &Lane| LaneView {
        running: lane.running.as_ref().map(|running| (running.job.id, running.job.spec.kind())),
        waiting: lane.waiting.len(),
    };
    lanes.iter().map(|(stanza, lane)| (stanza.clone(), view(lane))).collect()
}
