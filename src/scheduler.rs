//! The scheduler: the task that owns every schedule, and the handle that everybody else holds.
//!
//! `domain::schedule` decides; this asks the clock, looks at what a run would meet, writes each
//! decision down before it acts, and hands runs to `JobsHandle::submit` like everybody else. A run
//! carries a key made of its schedule, moment and try, so that after a crash between the two it is
//! found again and not started twice.

mod actor;
mod ticker;
mod world;

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{SchedulesConfig, Switch};
use crate::domain::StanzaName;
use crate::domain::job::Job;
use crate::domain::schedule::run::State;
use crate::domain::schedule::{Schedule, ScheduleName};
use crate::domain::words::words;
use crate::jobs::{Context, Denied, JobsHandle};
use crate::pulse::Pulse;
use crate::store::{Missed, Store, StoreError};

words! {
    /// Where a schedule comes from.
    Origin {
        /// The configuration file: changed there, not here.
        File = "file",
        /// Nobody wrote any: see `default_schedule`.
        Default = "default",
        /// It was made through the API.
        Api = "api",
    }
}

/// A schedule, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The schedule.
    pub schedule: Schedule,
    /// Where it comes from.
    pub origin: Origin,
    /// Grows with every change of one that was made through the API.
    pub version: u32,
    /// Where it stands.
    pub state: State,
    /// Its next moment, and when that is due; `None` while it is paused.
    pub next: Option<(Timestamp, Timestamp)>,
    /// What was missed.
    pub missed: Missed,
}

/// Why something cannot be done with a schedule.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// There is none of that name.
    #[error("there is no schedule {0}")]
    NoSuch(String),
    /// The name is taken.
    #[error("there is a schedule {0} already")]
    Exists(ScheduleName),
    /// It was not made through the API.
    #[error("schedule {name} comes from the {}: it is changed there", match origin {
        Origin::File => "configuration file",
        Origin::Default => "default (default_schedule = \"on\")",
        Origin::Api => "API",
    })]
    ReadOnly {
        /// The schedule.
        name: ScheduleName,
        /// Where it comes from.
        origin: Origin,
    },
    /// It has changed since the caller looked.
    #[error("schedule {name} has changed: it is at version {version} now")]
    Changed {
        /// The schedule.
        name: ScheduleName,
        /// Its version.
        version: u32,
    },
    /// Its job was not accepted.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// It cannot be written down.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Headrest is stopping.
    #[error("Headrest is stopping")]
    ShuttingDown,
}

type Reply<T> = oneshot::Sender<Result<T, ScheduleError>>;

enum Command {
    Create(Box<Schedule>, String, Reply<View>),
    Replace(Box<Schedule>, Expected, String, Reply<View>),
    Delete(ScheduleName, Expected, String, Reply<()>),
    Pause(ScheduleName, bool, String, Reply<View>),
    Run(ScheduleName, String, Reply<Job>),
}

/// Which version a change is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Whichever it is.
    Any,
    /// One of these.
    OneOf(Vec<u32>),
}

/// A handle to the scheduler; clones share it.
#[derive(Debug, Clone)]
pub struct SchedulerHandle {
    commands: mpsc::Sender<Command>,
    views: watch::Receiver<Arc<Vec<View>>>,
    unreadable: Arc<Mutex<Vec<(String, String)>>>,
}

impl SchedulerHandle {
    /// Reads what is stored and starts the scheduler's task.
    pub async fn spawn(
        context: Context,
        jobs: JobsHandle,
        fixed: Vec<(Schedule, Origin)>,
        pulse: Pulse,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (commands, inbox) = mpsc::channel(16);
        let (publish, views) = watch::channel(Arc::new(Vec::new()));
        let mut actor = actor::Scheduler::new(context, jobs, publish);
        let unreadable = Arc::new(Mutex::new(actor.load(fixed).await));
        (Self { commands, views, unreadable }, tokio::spawn(actor.run(inbox, pulse)))
    }

    /// Every schedule, by name.
    pub fn views(&self) -> Arc<Vec<View>> {
        self.views.borrow().clone()
    }

    /// Schedules that are stored and do not run, with the reason.
    pub fn unreadable(&self) -> Vec<(String, String)> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Removes a schedule that is stored and does not run. `false` when there is none of that name.
    pub async fn remove_unreadable(&self, name: &str, store: &Store) -> Result<bool, StoreError> {
        if !self.unreadable().iter().any(|(known, _)| known == name) {
            return Ok(false);
        }
        if let Ok(name) = name.parse() {
            store.forget_schedule(name).await?;
        }
        let mut unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        unreadable.retain(|(known, _)| known != name);
        Ok(true)
    }

    /// Follows them.
    pub fn watch(&self) -> watch::Receiver<Arc<Vec<View>>> {
        self.views.clone()
    }

    /// One schedule.
    pub fn view(&self, name: &str) -> Result<View, ScheduleError> {
        let views = self.views.borrow();
        let found = views.iter().find(|view| view.schedule.name.as_str() == name);
        found.cloned().ok_or_else(|| ScheduleError::NoSuch(crate::domain::stanza::shown(name)))
    }

    /// Makes a schedule.
    pub async fn create(&self, schedule: Schedule, by: &str) -> Result<View, ScheduleError> {
        self.ask(|reply| Command::Create(Box::new(schedule), by.to_owned(), reply)).await
    }

    /// Makes another schedule of one of that name. Moments before now do not count for it.
    pub async fn replace(
        &self,
        schedule: Schedule,
        expected: Expected,
        by: &str,
    ) -> Result<View, ScheduleError> {
        self.ask(|reply| Command::Replace(Box::new(schedule), expected, by.to_owned(), reply)).await
    }

    /// Removes a schedule. A job of its that runs goes on.
    pub async fn delete(
        &self,
        name: ScheduleName,
        expected: Expected,
        by: &str,
    ) -> Result<(), ScheduleError> {
        self.ask(|reply| Command::Delete(name, expected, by.to_owned(), reply)).await
    }

    /// Pauses a schedule, or lets it go on from now.
    pub async fn pause(
        &self,
        name: ScheduleName,
        paused: bool,
        by: &str,
    ) -> Result<View, ScheduleError> {
        self.ask(|reply| Command::Pause(name, paused, by.to_owned(), reply)).await
    }

    /// Does now what a schedule would do, as soon as the lane is free.
    pub async fn run_now(&self, name: ScheduleName, by: &str) -> Result<Job, ScheduleError> {
        self.ask(|reply| Command::Run(name, by.to_owned(), reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ScheduleError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.commands.send(command(reply)).await;
        sent.map_err(|_| ScheduleError::ShuttingDown)?;
        answer.await.map_err(|_| ScheduleError::ShuttingDown)?
    }
}

/// The schedules that are not the API's: those of the file, or the default ones of a stanza that is
/// backed up.
pub fn fixed(config: &SchedulesConfig, backed_up: Option<&StanzaName>) -> Vec<(Schedule, Origin)> {
    if !config.written.is_empty() {
        return config.written.iter().cloned().map(|schedule| (schedule, Origin::File)).collect();
    }
    let wanted = backed_up.filter(|_| config.by_default == Switch::On);
    let defaults = wanted.map(Schedule::defaults).unwrap_or_default();
    defaults.into_iter().map(|schedule| (schedule, Origin::Default)).collect()
}
