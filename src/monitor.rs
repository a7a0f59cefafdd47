//! The monitor: looks at everything that can go wrong, keeps what it saw for whoever asks, and tells
//! somebody when it gets worse or better.
//!
//! The server, the disks and the schedules are looked at every few seconds, the repositories once
//! in a while, in a task of their own: one that hangs holds up nothing. What the facts mean is
//! `domain::health`'s business, at the moment of the question.

mod actor;
mod facts;
mod machine;
mod repository;
mod space;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use crate::config::HealthConfig;
use crate::domain::StanzaName;
use crate::domain::health::{Check, Facts, Thresholds};
use crate::jobs::{Context, JobsHandle, Planner};
use crate::metrics::Gauges;
use crate::notify::Notifier;
use crate::pulse::Pulse;
use crate::scheduler::SchedulerHandle;

/// What the monitor works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// What jobs have too.
    pub context: Context,
    /// Jobs: a gap in the WAL asks for a backup.
    pub jobs: JobsHandle,
    /// What can be restored to.
    pub planner: Planner,
    /// Schedules.
    pub scheduler: SchedulerHandle,
    /// Where metrics are left.
    pub gauges: Gauges,
    /// Who is told.
    pub notifier: Notifier,
    /// The configured stanzas.
    pub stanzas: Vec<StanzaName>,
}

/// A handle to what the monitor saw; clones share it.
#[derive(Debug, Clone)]
pub struct MonitorHandle {
    facts: watch::Receiver<Arc<BTreeMap<StanzaName, Facts>>>,
    thresholds: Arc<Thresholds>,
}

impl MonitorHandle {
    /// Starts the monitor's tasks.
    pub async fn spawn(parts: Parts, config: &HealthConfig, pulse: Pulse) -> Self {
        let nothing: BTreeMap<_, _> = parts
            .stanzas
            .iter()
            .map(|stanza| (stanza.clone(), Facts::none(crate::clock::now())))
            .collect();
        let (publish, facts) = watch::channel(Arc::new(nothing));
        let handle = Self { facts, thresholds: Arc::new(config.thresholds.clone()) };
        let mut kicks = BTreeMap::new();
        let (looks, seen) = watch::channel(BTreeMap::new());
        for stanza in &parts.stanzas {
            let looker = repository::Looker {
                parts: parts.clone(),
                stanza: stanza.clone(),
                interval: config.interval,
                looks: looks.clone(),
                kick: Arc::clone(
                    kicks.entry(stanza.clone()).or_insert_with(Arc::<Notify>::default),
                ),
            };
            tokio::spawn(looker.run());
        }
        let thresholds = config.thresholds.clone();
        let actor = actor::Monitor::new(parts, thresholds, publish, seen, kicks).await;
        tokio::spawn(actor.run(pulse));
        handle
    }

    /// What is known of a stanza means this, at `now`; worst first.
    pub fn health(&self, stanza: &StanzaName, now: Timestamp) -> Vec<Check> {
        let facts = self.facts.borrow();
        facts.get(stanza).map(|facts| facts.judge(&self.thresholds, now)).unwrap_or_default()
    }
}
