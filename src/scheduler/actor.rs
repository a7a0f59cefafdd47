//! The task that owns the schedules.

mod changes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::{Command, Origin, View, ticker, world};
use crate::clock;
use crate::domain::BackupType;
use crate::domain::JobId;
use crate::domain::job::{
    BackupSpec, ExpireSpec, Job, JobSpec, OnConflict, Outcome, Trigger, VerifySpec,
};
use crate::domain::schedule::run::{Next, Run, State, Step, Told, Verdict};
use crate::domain::schedule::{Schedule, ScheduleKind, ScheduleName};
use crate::jobs::{Context, Denied, JobsHandle, Submission};
use crate::pulse::Pulse;
use crate::store::{Missed, StoreError, StoredSchedule};
use crate::telemetry::chain;

/// How often the loop turns at least.
const BEAT: Duration = Duration::from_secs(2);
/// How soon a job that was not accepted is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Who asks for a schedule's jobs.
const BY: &str = "scheduler";

struct Entry {
    schedule: Schedule,
    origin: Origin,
    version: u32,
    state: State,
    missed: Missed,
    /// A job that somebody runs by hand.
    by_hand: Option<JobId>,
    /// When its job was not accepted last.
    refused_at: Option<Instant>,
}

pub(super) struct Scheduler {
    context: Context,
    jobs: JobsHandle,
    entries: BTreeMap<ScheduleName, Entry>,
    publish: watch::Sender<Arc<Vec<View>>>,
    /// Ends of jobs that serve a moment.
    ends: JoinSet<(ScheduleName, JobId, Option<Outcome>)>,
}

impl Scheduler {
    pub(super) fn new(
        context: Context,
        jobs: JobsHandle,
        publish: watch::Sender<Arc<Vec<View>>>,
    ) -> Self {
        let (entries, ends) = (BTreeMap::new(), JoinSet::new());
        Self { context, jobs, entries, publish, ends }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Command>, pulse: Pulse) {
        let shutdown = self.context.shutdown.clone();
        let (tick, mut ticks) = mpsc::channel(1);
        let ticker = ticker::start(tick).await;
        if let Err(error) = &ticker {
            // The loop turns by itself as well.
            tracing::error!("the minute's ticks do not come: {}", chain(error));
        }
        let mut server = self.context.postgres.watch();
        while !shutdown.is_cancelled() {
            pulse.beat();
            // What cannot be written is tried again with the next beat.
            let nap = if self.look().await { self.nap() } else { BEAT };
            self.publish();
            tokio::select! {
                () = shutdown.cancelled() => {}
                Some(()) = ticks.recv() => {}
                command = inbox.recv() => match command {
                    Some(command) => self.take(command).await,
                    None => break,
                },
                Some(Ok((name, job, outcome))) = self.ends.join_next() => {
                    self.on_end(&name, job, outcome).await;
                }
                Ok(()) = server.changed() => {}
                () = sleep(nap) => {}
            }
        }
        if let Ok(mut ticker) = ticker {
            let _ = ticker.shutdown().await;
        }
    }

    /// Until something may be due.
    fn nap(&self) -> Duration {
        let now = clock::now();
        let open = self.entries.values().filter(|entry| !entry.was_refused());
        let wakes = open.filter_map(|entry| entry.state.wakes_at(&entry.schedule)).min();
        let left = wakes.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        left.unwrap_or(BEAT).clamp(Duration::from_millis(5), BEAT)
    }

    /// Reads what is stored, and finds out what became of runs meanwhile. Answers what is stored and
    /// does not run, with the reason.
    pub(super) async fn load(&mut self, fixed: Vec<(Schedule, Origin)>) -> Vec<(String, String)> {
        let mut all: Vec<(Schedule, Origin, u32)> =
            fixed.into_iter().map(|(schedule, origin)| (schedule, origin, 0)).collect();
        let mut unreadable = Vec::new();
        let stored = self.context.store.schedules().await;
        let is_read = stored.is_ok();
        match stored {
            Ok((stored, bad)) => {
                unreadable = bad;
                for StoredSchedule { schedule, version } in stored {
                    let (name, stanza) = (&schedule.name, &schedule.stanza);
                    if all.iter().any(|(known, ..)| known.name == *name) {
                        tracing::warn!(
                            "schedule {name} of the API gives way to the one that is configured"
                        );
                    } else if self.jobs.lane(stanza).is_none() {
                        let why = format!("stanza {stanza} is not configured");
                        unreadable.push((name.to_string(), why));
                    } else {
                        all.push((schedule, Origin::Api, version));
                    }
                }
            }
            Err(error) => unreadable.push(("all-of-the-api".to_owned(), chain(&error))),
        }
        for (name, why) in &unreadable {
            tracing::error!(schedule = %name, "schedule {name} does not run: {why}");
        }
        // Of what cannot be read now it is kept: it may be read by the next start.
        let mut names: Vec<String> =
            all.iter().map(|(schedule, ..)| schedule.name.to_string()).collect();
        names.extend(unreadable.iter().map(|(name, _)| name.clone()));
        if is_read && let Err(error) = self.context.store.keep_schedule_states(names).await {
            tracing::warn!("old schedules are not forgotten: {}", chain(&error));
        }
        for (schedule, origin, version) in all {
            let name = schedule.name.clone();
            let state = self.stored_state(&schedule).await;
            let missed = self.context.store.missed_moments(name.clone()).await.unwrap_or_default();
            let entry =
                Entry { schedule, origin, version, state, missed, by_hand: None, refused_at: None };
            self.entries.insert(name.clone(), entry);
            if let Err(error) = self.pick_up(&name).await {
                tracing::error!("the run of schedule {name} is not known: {}", chain(&error));
            }
        }
        self.publish();
        unreadable
    }

    /// Where a schedule stands. One with other moments begins anew, but what runs and whether it is
    /// paused stays.
    async fn stored_state(&self, schedule: &Schedule) -> State {
        let (name, now) = (&schedule.name, clock::now());
        match self.context.store.schedule_state(name.clone()).await {
            Ok(Some((state, of))) if of == timing(schedule) => state,
            Ok(Some((state, _))) => State { decided: state.decided.max(now), ..state },
            Ok(None) => State::new(now),
            Err(error) => {
                tracing::error!("where schedule {name} stands is not known: {}", chain(&error));
                State::new(now)
            }
        }
    }

    /// Finds the job of a run that was under way when Headrest ended.
    async fn pick_up(&mut self, name: &ScheduleName) -> Result<(), StoreError> {
        let Some(entry) = self.entries.get(name) else { return Ok(()) };
        let store = &self.context.store;
        let Some(run) = &entry.state.run else { return Ok(()) };
        match run.step {
            Step::Starting => {
                if let Some(job) = store.job_with_key(key(entry)).await? {
                    self.started(name, &job).await;
                }
            }
            Step::Running { job } => match store.job(job).await? {
                Some(job) => self.follow(name, job.id),
                None => self.on_end(name, job, None).await,
            },
            Step::Held { .. } | Step::Retrying { .. } => {}
        }
        Ok(())
    }

    /// Decides for every schedule, and acts. Answers whether all of it could be written down.
    async fn look(&mut self) -> bool {
        let mut written = true;
        let names: Vec<ScheduleName> = self.entries.keys().cloned().collect();
        for name in names {
            let Some(entry) = self.entries.get(&name) else { continue };
            if entry.was_refused() {
                continue;
            }
            let now = clock::now();
            // What somebody runs by hand takes the moments that come meanwhile with it.
            let by_hand = entry.by_hand.filter(|_| entry.state.run.is_none());
            let state = match by_hand {
                Some(job) => State {
                    run: Some(Run {
                        slot: now,
                        due: now,
                        attempts: 1,
                        step: Step::Running { job },
                    }),
                    ..entry.state.clone()
                },
                None => entry.state.clone(),
            };
            let world = world::look(&self.context, &entry.schedule);
            let mut turn = entry.schedule.tick(&state, now, &world);
            if by_hand.is_some() {
                turn.state.run = None;
            }
            let changed = turn.state != entry.state || !turn.told.is_empty();
            // What is not written down is not done.
            if changed && !self.turn(&name, turn.state, turn.told).await {
                written = false;
                continue;
            }
            if turn.start {
                self.start(&name).await;
            }
        }
        written
    }

    /// Writes a turn down, then says it. Answers whether it is written.
    async fn turn(&mut self, name: &ScheduleName, state: State, told: Vec<Told>) -> bool {
        let Some(entry) = self.entries.get_mut(name) else { return false };
        let (store, now) = (&self.context.store, clock::now());
        let write = store.schedule_turn(
            name.clone(),
            timing(&entry.schedule),
            state.clone(),
            told.clone(),
            now,
        );
        if let Err(error) = write.await {
            tracing::error!("where schedule {name} stands is not written: {}", chain(&error));
            return false;
        }
        entry.state = state;
        for Told { verdict, slots, reason } in told {
            let (last, count) = (slots.last, slots.count);
            match verdict {
                Verdict::Missed => {
                    entry.missed = Missed { total: entry.missed.total + count, last: Some(now) };
                    tracing::warn!(
                        schedule = %name, count, "schedule {name}: the run of {last} was missed: {reason}"
                    );
                }
                Verdict::Run | Verdict::Coalesced | Verdict::Skipped => {
                    tracing::info!(
                        schedule = %name, count, "schedule {name}: {last} is {verdict}: {reason}"
                    );
                }
            }
        }
        true
    }

    async fn start(&mut self, name: &ScheduleName) {
        let Some(entry) = self.entries.get(name) else { return };
        let trigger = Trigger::Schedule(name.to_string());
        let submission = Submission {
            on_conflict: OnConflict::Queue,
            idempotency_key: Some(key(entry)),
            tried_again: entry.schedule.tries_again(&entry.state, clock::now()),
            ..Submission::new(spec(&entry.schedule), trigger, BY)
        };
        match self.jobs.submit(submission).await {
            Ok(job) => self.started(name, &job).await,
            // The next start finds that it was to be started.
            Err(Denied::ShuttingDown) => {}
            Err(denied) => {
                tracing::warn!(schedule = %name, "schedule {name} cannot start its job: {denied}");
                let Some(entry) = self.entries.get_mut(name) else { return };
                entry.refused_at = Some(Instant::now());
                let state = entry.state.clone().refused(denied.to_string());
                self.turn(name, state, Vec::new()).await;
            }
        }
    }

    async fn started(&mut self, name: &ScheduleName, job: &Job) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let (state, told) = entry.state.clone().started(job.id);
        // It runs, whether that can be written or not.
        entry.state = state.clone();
        self.turn(name, state, told.into_iter().collect()).await;
        self.follow(name, job.id);
    }

    fn follow(&mut self, name: &ScheduleName, job: JobId) {
        let (jobs, name) = (self.jobs.clone(), name.clone());
        self.ends.spawn(async move {
            loop {
                match jobs.finished(job).await {
                    Ok(ended) => return (name, job, ended.state.outcome()),
                    // It runs, whether that can be read now or not.
                    Err(Denied::Store(error)) => {
                        tracing::warn!("how job {job} ended is not known: {}", chain(&error));
                        sleep(ASK_AGAIN).await;
                    }
                    Err(_) => return (name, job, None),
                }
            }
        });
    }

    async fn on_end(&mut self, name: &ScheduleName, job: JobId, outcome: Option<Outcome>) {
        if self.context.shutdown.is_cancelled() {
            // The next start sees how it ended.
            return;
        }
        let Some(entry) = self.entries.get_mut(name) else { return };
        entry.by_hand = entry.by_hand.filter(|by_hand| *by_hand != job);
        let outcome = outcome.unwrap_or(Outcome::Interrupted);
        let ended = entry.state.clone().ended(&entry.schedule, job, outcome, clock::now());
        let Some((state, next)) = ended else {
            // Somebody ran it by hand; if that went well, all is well.
            if let Some(state) = entry.state.clone().went_well(outcome) {
                self.turn(name, state, Vec::new()).await;
            }
            return;
        };
        entry.state = state.clone();
        self.turn(name, state, Vec::new()).await;
        match next {
            Next::Served => {}
            Next::Again(at) => {
                tracing::warn!(schedule = %name, "schedule {name}: job {job} {outcome}; again at {at}");
            }
            Next::GivenUp => {
                tracing::error!(
                    schedule = %name, "schedule {name}: job {job} {outcome}, and it is not tried again"
                );
            }
        }
    }

    async fn take(&mut self, command: Command) {
        // Whoever asked may have gone; what was done is done.
        match command {
            Command::Create(schedule, by, reply) => {
                let _ = reply.send(self.create(*schedule, &by).await);
            }
            Command::Replace(schedule, expected, by, reply) => {
                let _ = reply.send(self.replace(*schedule, &expected, &by).await);
            }
            Command::Delete(name, expected, by, reply) => {
                let _ = reply.send(self.delete(&name, &expected, &by).await);
            }
            Command::Pause(name, paused, by, reply) => {
                let _ = reply.send(self.pause(&name, paused, &by).await);
            }
            Command::Run(name, by, reply) => {
                let _ = reply.send(self.run_now(&name, &by).await);
            }
        }
    }

    fn publish(&self) {
        let views: Vec<View> = self.entries.values().map(Entry::view).collect();
        self.publish.send_if_modified(|known| {
            let changed = **known != views;
            if changed {
                *known = Arc::new(views);
            }
            changed
        });
    }
}

impl Entry {
    /// Whether its job was not accepted a moment ago.
    fn was_refused(&self) -> bool {
        self.refused_at.is_some_and(|at| at.elapsed() < ASK_AGAIN)
    }

    fn view(&self) -> View {
        let next = self.schedule.next_due(self.state.decided).filter(|_| !self.state.paused);
        View {
            schedule: self.schedule.clone(),
            origin: self.origin,
            version: self.version,
            state: self.state.clone(),
            next,
            missed: self.missed,
        }
    }
}

/// What a schedule's state is about: with another one its moments are others.
fn timing(schedule: &Schedule) -> String {
    format!("{} {}", schedule.cron, schedule.timezone)
}

/// By this a run's job is found again.
fn key(entry: &Entry) -> String {
    let (slot, tries): (Timestamp, u8) = match &entry.state.run {
        Some(run) => (run.slot, run.attempts),
        None => (entry.state.decided, 0),
    };
    format!("schedule:{}:{}:{tries}", entry.schedule.name, slot.as_second())
}

/// The job of a schedule.
fn spec(schedule: &Schedule) -> JobSpec {
    let (stanza, repo) = (schedule.stanza.clone(), schedule.repo);
    let backup = |backup_type| {
        let plain = BackupSpec::plain(schedule.stanza.clone(), backup_type);
        JobSpec::Backup(BackupSpec { repo, ..plain })
    };
    match schedule.kind {
        ScheduleKind::Full => backup(BackupType::Full),
        ScheduleKind::Diff => backup(BackupType::Diff),
        ScheduleKind::Incr => backup(BackupType::Incr),
        ScheduleKind::Expire => {
            JobSpec::Expire(ExpireSpec { stanza, set: None, repo, dry_run: false })
        }
        ScheduleKind::Verify => JobSpec::Verify(VerifySpec { stanza, set: None, repo }),
        ScheduleKind::Check => JobSpec::Check { stanza },
    }
}
