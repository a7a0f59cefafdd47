//! What the loops of Headrest found out last, kept for the next scrape.
//!
//! Setters take plain values and replace what they set before, so what has gone disappears from the
//! scrape too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::family::{Family, Labels, number};
use crate::domain::health::Level;
use crate::domain::{RepoKey, StanzaName};

/// When a schedule is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextRun {
    /// The schedule.
    pub schedule: String,
    /// When; nothing when it is never due again.
    pub at: Option<Timestamp>,
    /// Its moments that were missed, ever.
    pub missed: u64,
    /// When the last one was found to be missed.
    pub last_missed: Option<Timestamp>,
}

/// How a target of notifications does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notified {
    /// The target.
    pub target: String,
    /// Notifications that wait for it.
    pub waiting: u64,
    /// Given up since this start.
    pub given_up: u64,
    /// Failed attempts since this start.
    pub failed: u64,
}

/// A handle to the values; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Gauges(Arc<Mutex<Values>>);

type Of<T> = BTreeMap<Labels, T>;

#[derive(Debug, Default)]
struct Values {
    next_run: Of<f64>,
    missed: Of<f64>,
    last_missed: Of<f64>,
    window_start: Of<f64>,
    window_end: Of<f64>,
    wal_gap: Of<f64>,
    wal_ready: Of<f64>,
    health: Of<f64>,
    notified: BTreeMap<Labels, Notified>,
}

impl Gauges {
    /// All schedules, and when each is due next.
    pub fn set_schedules(&self, schedules: impl IntoIterator<Item = NextRun>) {
        let mut values = self.values();
        values.next_run.clear();
        values.missed.clear();
        values.last_missed.clear();
        for NextRun { schedule, at, missed, last_missed } in schedules {
            let labels = Labels::new([("schedule", schedule)]);
            values.missed.insert(labels.clone(), number(missed));
            set(&mut values.last_missed, labels.clone(), last_missed.map(seconds));
            if let Some(at) = at {
                values.next_run.insert(labels, seconds(at));
            }
        }
    }

    /// The recovery window in a repository, first and last moment; nothing when there is none.
    pub fn set_recovery_window(
        &self,
        stanza: &StanzaName,
        repo: RepoKey,
        window: Option<(Timestamp, Timestamp)>,
    ) {
        let labels = of_repo(stanza, repo);
        let mut values = self.values();
        set(&mut values.window_start, labels.clone(), window.map(|(start, _)| seconds(start)));
        set(&mut values.window_end, labels, window.map(|(_, end)| seconds(end)));
    }

    /// How many WAL segments are missing in a repository's archive; nothing when that is not known.
    pub fn set_wal_gap(&self, stanza: &StanzaName, repo: RepoKey, segments: Option<u64>) {
        set(&mut self.values().wal_gap, of_repo(stanza, repo), segments.map(number));
    }

    /// How many WAL segments wait to be archived; nothing when that is not known.
    pub fn set_wal_ready(&self, stanza: &StanzaName, segments: Option<u64>) {
        let labels = Labels::new([("stanza", stanza.to_string())]);
        set(&mut self.values().wal_ready, labels, segments.map(number));
    }

    /// All checks of the health, with the stanza each is about; empty when it is about none.
    pub fn set_health(&self, checks: impl IntoIterator<Item = (String, String, Level)>) {
        let checks = checks.into_iter().map(|(check, stanza, level)| {
            (Labels::new([("check", check), ("stanza", stanza)]), value_of(level))
        });
        self.values().health = checks.collect();
    }

    /// All targets of notifications.
    pub fn set_notified(&self, targets: impl IntoIterator<Item = Notified>) {
        let targets = targets
            .into_iter()
            .map(|known| (Labels::new([("target", known.target.clone())]), known));
        self.values().notified = targets.collect();
    }

    /// The families, those without samples included.
    pub(super) fn families(&self) -> Vec<Family> {
        let values = self.values();
        let of = |values: &Of<f64>| -> Vec<_> {
            values.iter().map(|(labels, value)| (labels.clone(), *value)).collect()
        };
        let notified = |value: fn(&Notified) -> u64| -> Vec<_> {
            let all = values.notified.iter();
            all.map(|(labels, known)| (labels.clone(), number(value(known)))).collect()
        };
        vec![
            Family::gauge(
                "headrest_schedule_next_run_timestamp_seconds",
                "When the schedule is due next, in seconds since 1970.",
                of(&values.next_run),
            ),
            Family::counter(
                "headrest_schedule_missed",
                "Runs of the schedule that were missed.",
                of(&values.missed),
            ),
            Family::gauge(
                "headrest_schedule_last_missed_timestamp_seconds",
                "When a run was last found to be missed, in seconds since 1970.",
                of(&values.last_missed),
            ),
            Family::gauge(
                "headrest_recovery_window_start_timestamp_seconds",
                "The first moment that can be restored, in seconds since 1970.",
                of(&values.window_start),
            ),
            Family::gauge(
                "headrest_recovery_window_end_timestamp_seconds",
                "The last moment that can be restored, in seconds since 1970.",
                of(&values.window_end),
            ),
            Family::gauge(
                "headrest_wal_gap_segments",
                "WAL segments that are missing in the archive since the newest backup.",
                of(&values.wal_gap),
            ),
            Family::gauge(
                "headrest_wal_ready_segments",
                "WAL segments that wait to be archived.",
                of(&values.wal_ready),
            ),
            Family::gauge(
                "headrest_health_status",
                "What a check of the health found: 0 pass, 1 warn, 2 fail.",
                of(&values.health),
            ),
            Family::gauge(
                "headrest_notify_waiting",
                "Notifications that wait for the target.",
                notified(|known| known.waiting),
            ),
            Family::counter(
                "headrest_notify_given_up",
                "Notifications that will never be delivered to the target.",
                notified(|known| known.given_up),
            ),
            Family::counter(
                "headrest_notify_failed",
                "Failed attempts to deliver to the target.",
                notified(|known| known.failed),
            ),
        ]
    }

    fn values(&self) -> MutexGuard<'_, Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn value_of(level: Level) -> f64 {
    match level {
        Level::Pass => 0.0,
        Level::Warn => 1.0,
        Level::Fail => 2.0,
    }
}

fn of_repo(stanza: &StanzaName, repo: RepoKey) -> Labels {
    Labels::new([("repo_key", repo.to_string()), ("stanza", stanza.to_string())])
}

fn set(values: &mut Of<f64>, labels: Labels, value: Option<f64>) {
    match value {
        Some(value) => values.insert(labels, value),
        None => values.remove(&labels),
    };
}

/// Seconds since 1970, with the part below a second.
fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}
