//! A notifier with a store of its own, and a time that stands still until it is moved.

use std::collections::BTreeMap;
use std::time::Duration;

use headrest::config::{Config, Environment, Flags};
use headrest::domain::event::{Event, EventKind};
use headrest::notify::{Notifier, Pace, Settings, TargetState, TargetStatus, Tasks, Timeouts};
use headrest::store::{Store, TargetRecord};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::receiver::PATIENCE;

pub(crate) struct Rig {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) notifier: Notifier,
    pub(crate) tasks: Tasks,
    pub(crate) time: watch::Sender<Timestamp>,
    pub(crate) wake: watch::Sender<i64>,
    config: String,
}

/// A target as the configuration file has it.
pub(crate) fn target(name: &str, kind: &str, url: &str, more: &str) -> String {
    format!("[[notify]]\nname = {name:?}\ntype = {kind:?}\nurl = {url:?}\n{more}\n")
}

/// When a test begins.
pub(crate) fn start() -> Timestamp {
    "2026-11-20T14:00:00Z".parse().unwrap()
}

/// The same failure for every number; each is a subject of its own.
pub(crate) fn failure(number: usize) -> Event {
    Event::new(EventKind::BackupFailed, start(), format!("job:{number}"), "it failed")
}

impl Rig {
    pub(crate) async fn new(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::build(directory, config.to_owned(), watch::channel(start()).0).await
    }

    async fn build(
        directory: tempfile::TempDir,
        config: String,
        time: watch::Sender<Timestamp>,
    ) -> Self {
        let store = Store::open(&directory.path().join("headrest.db")).unwrap();
        let last = store.last_event_id().await.unwrap();
        let wake = watch::channel(last).0;
        let environment = Environment::from_pairs([]);
        let read = Config::from_text(&Flags::default(), &environment, &config).unwrap();
        let path = ("PATH".to_owned(), "/usr/bin:/bin".to_owned());
        let settings = Settings {
            pace: Pace::Given(time.subscribe()),
            timeouts: Timeouts {
                connect: Duration::from_secs(5),
                whole: Duration::from_millis(1500),
            },
            ..Settings::new(read.notify, BTreeMap::from([path]))
        };
        let (notifier, tasks) =
            Notifier::spawn(settings, store.clone(), wake.subscribe()).await.unwrap();
        Self { directory, store, notifier, tasks, time, wake, config }
    }

    /// Everything ends at once, as in a crash, and begins anew with the same files.
    pub(crate) async fn crash(self) -> Self {
        let config = self.config.clone();
        self.crash_into(&config).await
    }

    /// The same with another configuration.
    pub(crate) async fn crash_into(self, config: &str) -> Self {
        let Self { directory, store, notifier, tasks, time, .. } = self;
        tasks.close(Duration::ZERO).await;
        drop((notifier, store));
        Self::build(directory, config.to_owned(), time).await
    }

    pub(crate) fn now(&self) -> Timestamp {
        *self.time.borrow()
    }

    pub(crate) fn pass(&self, by: Duration) {
        self.time.send_modify(|now| *now += by);
    }

    /// Waits until the first target does as wanted.
    pub(crate) async fn until(&self, wanted: impl FnMut(&TargetStatus) -> bool) -> TargetStatus {
        let mut status = self.notifier.targets()[0].watch();
        let found = timeout(PATIENCE, status.wait_for(wanted)).await;
        let found = found.unwrap_or_else(|_| panic!("{:?}", self.notifier.targets()[0].status()));
        found.unwrap().clone()
    }

    /// Waits until so many attempts have failed and the next one is set.
    pub(crate) async fn until_failed(&self, count: u64) -> TargetStatus {
        let tried = |status: &TargetStatus| {
            status.failed_total >= count && status.state != TargetState::Delivering
        };
        self.until(tried).await
    }

    /// Waits until nothing waits any more.
    pub(crate) async fn until_idle(&self) -> TargetStatus {
        self.until(|status| status.state == TargetState::Idle).await
    }

    pub(crate) async fn record(&self, name: &str) -> TargetRecord {
        self.store.target_records().await.unwrap().remove(name).unwrap_or_default()
    }
}
