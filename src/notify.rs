//! Notifications: events become rows for each target that wants them, and a worker for each target
//! delivers them, in order, for as long as it takes.
//!
//! ```text
//!  jobs --state events--> follower --\
//!                                     > outbox (SQLite) --> worker of a target --> receiver
//!  others ---tell()------------------/        ^ delivered: gone      |
//!                                             '--- failed: due later-'
//! ```
//! Nobody waits for a receiver: what is told is stored, and that is all. Must not decide what is
//! worth telling; that is its callers' and, for jobs, `domain::event`'s.

mod client;
mod command;
mod follower;
mod guard;
mod message;
mod pace;
mod redact;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::{Channel, NotifyConfig};
use crate::domain::event::{Audience, Event, EventKind, Severity};
use crate::domain::words::words;
use crate::store::{NewNotice, Store, StoreError};
use crate::telemetry;

pub use client::{Attempt, Timeouts};
pub use pace::Pace;

/// How long an attempt that somebody waits for may take.
const TEST_PATIENCE: Duration = Duration::from_secs(20);

/// What notifications are made with.
#[derive(Debug)]
pub struct Settings {
    /// The targets.
    pub targets: Vec<NotifyConfig>,
    /// The environment of programs.
    pub command_env: BTreeMap<String, String>,
    /// Where the time comes from.
    pub pace: Pace,
    /// How long requests may take.
    pub timeouts: Timeouts,
}

impl Settings {
    /// The usual ones for these targets.
    pub fn new(targets: Vec<NotifyConfig>, command_env: BTreeMap<String, String>) -> Self {
        Self { targets, command_env, pace: Pace::Real, timeouts: Timeouts::default() }
    }
}

words! {
    /// How a target does.
    TargetState {
        /// Nothing waits.
        Idle = "idle",
        /// Something is being delivered.
        Delivering = "delivering",
        /// The last attempt failed; the next one is due.
        Retrying = "retrying",
    }
}

/// How a target does, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetStatus {
    /// What it does now.
    pub state: TargetState,
    /// When the next attempt is due, while it retries.
    pub next_attempt_at: Option<Timestamp>,
    /// Delivered since this start of Headrest.
    pub delivered_total: u64,
    /// Failed attempts since this start.
    pub failed_total: u64,
    /// Given up since this start.
    pub given_up_total: u64,
}

/// Tells events; clones share it.
#[derive(Debug, Clone)]
pub struct Notifier(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    targets: Vec<Target>,
    pace: Pace,
    sender: client::Sender,
    /// Something may have been stored.
    stored: watch::Sender<()>,
}

/// A target and how it does.
#[derive(Debug)]
pub struct Target {
    /// What is configured of it.
    pub config: NotifyConfig,
    status: watch::Sender<TargetStatus>,
}

impl Target {
    /// How it does, now.
    pub fn status(&self) -> TargetStatus {
        self.status.borrow().clone()
    }

    /// Follows how it does.
    pub fn watch(&self) -> watch::Receiver<TargetStatus> {
        self.status.subscribe()
    }

    /// Whether it wants an event.
    fn wants(&self, event: &Event) -> bool {
        let config = &self.config;
        let stanza_fits = match (&config.stanza, &event.stanza) {
            (Some(wanted), Some(of)) => wanted == of,
            (None, _) | (_, None) => true,
        };
        if !stanza_fits {
            return false;
        }
        let is_switch = matches!(config.channel, Channel::Healthchecks { .. });
        let may_hear = match event.audience {
            Audience::All => true,
            Audience::Readers => !is_switch,
        };
        if !may_hear || event.told_before().is_some_and(|before| self.wants(&before)) {
            return false;
        }
        if let Channel::Healthchecks { schedules, .. } = &config.channel {
            let of = event.schedule.as_ref();
            return message::ping(event.kind).is_some()
                && of.is_some_and(|name| schedules.is_empty() || schedules.contains(name));
        }
        // Whoever was told of something bad is told of its end.
        if config.min_severity.is_some_and(|least| event.worst() < least) {
            return false;
        }
        match &config.events {
            Some(patterns) => patterns.matches(event.kind),
            None => event.severity >= Severity::Warning || event.kind.ends_something_bad(),
        }
    }
}

/// The tasks that deliver.
#[derive(Debug)]
pub struct Tasks {
    follower: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
    last_look: CancellationToken,
    last_round: CancellationToken,
}

impl Notifier {
    /// Starts delivering. `job_events` has the id of the newest stored event of jobs.
    pub async fn spawn(
        settings: Settings,
        store: Store,
        job_events: watch::Receiver<i64>,
    ) -> Result<(Self, Tasks), StoreError> {
        let names = settings.targets.iter().map(|target| target.name.clone()).collect();
        let forgotten = store.keep_targets(names).await?;
        if forgotten > 0 {
            tracing::warn!(
                "{forgotten} notifications waited for targets that are not configured any more: \
                 dropped"
            );
        }
        let idle = TargetStatus {
            state: TargetState::Idle,
            next_attempt_at: None,
            delivered_total: 0,
            failed_total: 0,
            given_up_total: 0,
        };
        let target = |config| Target { config, status: watch::channel(idle.clone()).0 };
        let notifier = Self(Arc::new(Shared {
            store,
            targets: settings.targets.into_iter().map(target).collect(),
            sender: client::Sender::new(settings.timeouts, settings.command_env),
            pace: settings.pace,
            stored: watch::channel(()).0,
        }));
        let mut tasks = Tasks {
            follower: None,
            workers: Vec::new(),
            last_look: CancellationToken::new(),
            last_round: CancellationToken::new(),
        };
        if notifier.0.targets.is_empty() {
            return Ok((notifier, tasks));
        }
        let cursor = notifier.0.store.job_cursor().await?;
        let follow = follower::run(notifier.clone(), job_events, cursor, tasks.last_look.clone());
        tasks.follower = Some(tokio::spawn(follow));
        for index in 0..notifier.0.targets.len() {
            let work = worker::run(notifier.clone(), index, tasks.last_round.clone());
            tasks.workers.push(tokio::spawn(work));
        }
        Ok((notifier, tasks))
    }

    /// The targets.
    pub fn targets(&self) -> &[Target] {
        &self.0.targets
    }

    /// Tells an event to every target that wants it. It is stored when this returns; that it
    /// cannot be is logged, and nobody's failure.
    pub async fn tell(&self, event: &Event) {
        let notices = self.routed(event);
        if notices.is_empty() {
            return;
        }
        match self.0.store.add_notices(notices).await {
            Ok(()) => self.wake(),
            Err(error) => {
                let error = telemetry::chain(&error);
                tracing::error!("an event ({}) is told to nobody: {error}", event.kind);
            }
        }
    }

    /// The notifications of an event, one for each target that wants it: for somebody who stores
    /// them together with what they tell of, and then calls [`Self::wake`].
    pub fn routed(&self, event: &Event) -> Vec<NewNotice> {
        let at = self.0.pace.now();
        let wanting = self.0.targets.iter().filter(|target| target.wants(event));
        let notice = |target: &Target| NewNotice {
            delivery: delivery_id(at),
            target: target.config.name.clone(),
            at,
            event: event.clone(),
        };
        wanting.map(notice).collect()
    }

    /// Notifications were stored: the workers look.
    pub fn wake(&self) {
        self.0.stored.send_replace(());
    }

    /// Sends a test to a target, now and past whatever waits, and waits for how that goes. `None`
    /// when there is no such target.
    pub async fn test(&self, name: &str, by: &str) -> Option<Attempt> {
        let target = self.0.targets.iter().find(|target| target.config.name == name)?;
        let at = self.0.pace.now();
        let words = format!("This is a test of {name}. Notifications arrive.");
        let event = Event::new(EventKind::Test, at, format!("test:{name}"), &words)
            .with_detail(&format!("Asked for by {by}."));
        let delivery = delivery_id(at);
        let outgoing = message::Outgoing { delivery: &delivery, event: &event, repeats: 0, at };
        let attempt = timeout(TEST_PATIENCE, self.0.sender.send(&target.config, &outgoing)).await;
        let attempt = attempt.unwrap_or_else(|_| {
            Attempt::failed(format!("no answer within {} s", TEST_PATIENCE.as_secs()))
        });
        if attempt.delivered
            && let Err(error) = self.0.store.target_reached(name.to_owned(), at).await
        {
            tracing::warn!("a delivery is not noted: {}", telemetry::chain(&error));
        }
        Some(attempt)
    }
}

/// A new id for a delivery: a UUID of version 7, so that ids sort by time.
fn delivery_id(now: Timestamp) -> String {
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let nanos = u32::try_from(now.subsec_nanosecond()).unwrap_or_default();
    Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos)).to_string()
}

impl Tasks {
    /// Ends them: events of jobs that have ended are stored first, then every target gets one more
    /// round, all within `patience`. What is left stays stored for the next start.
    pub async fn close(self, patience: Duration) {
        let Self { mut follower, mut workers, last_look, last_round } = self;
        let orderly = async {
            last_look.cancel();
            if let Some(follower) = &mut follower {
                let _ = follower.await;
            }
            last_round.cancel();
            for worker in &mut workers {
                let _ = worker.await;
            }
        };
        if timeout(patience, orderly).await.is_err() {
            tracing::info!("notifications that are not delivered yet wait for the next start");
        }
        for task in follower.iter().chain(&workers) {
            task.abort();
        }
    }
}
