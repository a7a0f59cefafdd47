//! The task that judges what was seen, stores the health conditions, and notifies of changes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::Parts;
use super::facts::{self, Memory};
use super::repository::Found;
use crate::clock;
use crate::domain::StanzaName;
use crate::domain::health::conditions::{
    ARCHIVING, Before, ConditionName, State, conditions, event_of,
};
use crate::domain::health::{CheckId, FIRST_BACKUP, Facts, Level, TargetFacts, Thresholds, Up};
use crate::metrics::NextRun;
use crate::pulse::Pulse;
use crate::store::Condition;
use crate::telemetry::chain;

/// How often the server and this machine are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// How long a fault of archiving waits for a look at the repository, which may explain it.
const EXPLAIN_WITHIN: Duration = Duration::from_secs(45);

/// For how long something must be better before that is told.
const SETTLES_IN: Duration = Duration::from_secs(15);
/// How long the archiver may take to find out that the repository is there again: it sleeps for a
/// minute after three failures.
const AFTERMATH: Duration = Duration::from_secs(90);

/// A fault of archiving that may be another's.
struct Doubt {
    since: Instant,
    explained_until: Option<Instant>,
}

pub(super) struct Monitor {
    parts: Parts,
    thresholds: Thresholds,
    publish: watch::Sender<Arc<BTreeMap<StanzaName, Facts>>>,
    looks: watch::Receiver<BTreeMap<StanzaName, Found>>,
    /// Makes a look at the repositories of a stanza come at once.
    kicks: BTreeMap<StanzaName, Arc<Notify>>,
    memories: BTreeMap<StanzaName, Memory>,
    /// What was told last.
    told: BTreeMap<(StanzaName, String), (Before, Timestamp)>,
    /// Since when something is better than what was told.
    better_since: BTreeMap<(StanzaName, String), Instant>,
    /// Faults of archiving that may be another's.
    doubts: BTreeMap<StanzaName, Doubt>,
    /// How targets of notifications did last.
    targets: Vec<TargetFacts>,
    since: Timestamp,
}

impl Monitor {
    pub(super) async fn new(
        parts: Parts,
        thresholds: Thresholds,
        publish: watch::Sender<Arc<BTreeMap<StanzaName, Facts>>>,
        looks: watch::Receiver<BTreeMap<StanzaName, Found>>,
        kicks: BTreeMap<StanzaName, Arc<Notify>>,
    ) -> Self {
        let mut told = BTreeMap::new();
        let mut memories: BTreeMap<StanzaName, Memory> = BTreeMap::new();
        match parts.context.store.conditions().await {
            Ok(known) => {
                for Condition { stanza, name, level, since, worst } in known {
                    if name == ARCHIVING && level != Level::Pass {
                        memories.entry(stanza.clone()).or_default().failing_since = Some(since);
                    }
                    told.insert((stanza, name), (Before { level, worst }, since));
                }
            }
            Err(error) => tracing::error!("how things stood is not known: {}", chain(&error)),
        }
        Self {
            parts,
            thresholds,
            publish,
            looks,
            kicks,
            memories,
            told,
            better_since: BTreeMap::new(),
            doubts: BTreeMap::new(),
            targets: Vec::new(),
            since: clock::now(),
        }
    }

    pub(super) async fn run(mut self, pulse: Pulse) {
        let shutdown = self.parts.context.shutdown.clone();
        let mut server = self.parts.context.postgres.watch();
        let mut schedules = self.parts.scheduler.watch();
        while !shutdown.is_cancelled() {
            pulse.beat();
            self.look().await;
            pulse.beat();
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = sleep(EVERY) => {}
                Ok(()) = server.changed() => {}
                Ok(()) = schedules.changed() => {}
                Ok(()) = self.looks.changed() => {}
            }
        }
    }

    async fn look(&mut self) {
        let now = clock::now();
        let stanzas = self.parts.stanzas.clone();
        let mut all = BTreeMap::new();
        let mut levels = Vec::new();
        if let Some((targets, notified)) = facts::targets(&self.parts).await {
            self.targets = targets;
            self.parts.gauges.set_notified(notified);
        }
        // They are of no stanza: the first one's health tells of them.
        let mut targets = Some(self.targets.clone());
        for stanza in stanzas {
            let found = self.looks.borrow().get(&stanza).cloned();
            let memory = self.memories.entry(stanza.clone()).or_default();
            let mut facts =
                facts::gather(&self.parts, &stanza, found.as_ref(), memory, self.since, now).await;
            facts.targets = targets.take().unwrap_or_default();
            if self.takes_writes_again(&stanza, &facts)
                && let Some(kick) = self.kicks.get(&stanza)
            {
                // What its archive is like can be seen again.
                kick.notify_one();
            }
            let checks = facts.judge(&self.thresholds, now);
            for check in &checks {
                levels.push((check.key.to_string(), stanza.to_string(), check.level));
            }
            let all_of_it = conditions(&checks);
            self.tell(&stanza, &all_of_it, found.as_ref(), &facts, now).await;
            all.insert(stanza, facts);
        }
        self.parts.gauges.set_health(levels);
        let views = self.parts.scheduler.views();
        self.parts.gauges.set_schedules(views.iter().map(|view| NextRun {
            schedule: view.schedule.name.to_string(),
            at: view.next.map(|(_, due)| due),
            missed: view.missed.total,
            last_missed: view.missed.last,
        }));
        self.publish.send_if_modified(|known| {
            let changed = **known != all;
            if changed {
                *known = Arc::new(all);
            }
            changed
        });
    }

    /// Whether the server takes writes, and did not at the last look.
    fn takes_writes_again(&self, stanza: &StanzaName, facts: &Facts) -> bool {
        let writes =
            |facts: &Facts| facts.server.as_ref().is_some_and(|server| server.up == Up::Writes);
        let before = self.publish.borrow();
        writes(facts) && !before.get(stanza).is_some_and(writes)
    }

    /// Tells of what has changed. What is not known now stays what it was.
    async fn tell(
        &mut self,
        stanza: &StanzaName,
        all: &BTreeMap<ConditionName, State>,
        found: Option<&Found>,
        facts: &Facts,
        now: Timestamp,
    ) {
        let away = facts.repository_is_away();
        for (name, state) in all {
            let key = (stanza.clone(), name.as_str().to_owned());
            let known = self.told.get(&key).map_or(Before::WELL, |(before, _)| *before);
            let before = known.level;
            if name.as_str() == ARCHIVING && state.level == Level::Pass {
                self.doubts.remove(stanza);
            }
            if before == state.level {
                self.better_since.remove(&key);
            }
            // A new server is on its way to its first backup, which is no news.
            let new = now.duration_since(self.since) < FIRST_BACKUP;
            // The same while one is being made.
            let expected = new || facts.backing_up;
            // The job that found it reports it when it ends. Once it has, the health need not wait for the end of
            // another backup.
            let is_unreported = state.is_about(CheckId::PageChecksums) && !facts.damage_told
                || state.is_about(CheckId::BackupSets) && !facts.bad_sets_reported();
            let job_reports = facts.backing_up && is_unreported;
            if before == state.level
                || (expected && state.level == Level::Warn && name.is_for_new())
                || job_reports
                || !self.has_settled(&key, state.level < before)
            {
                continue;
            }
            if state.level > before
                && name.as_str() == ARCHIVING
                && self.is_not_news(stanza, found, away)
            {
                continue;
            }
            self.change(stanza, name, state, known, facts, now).await;
        }
        // A schedule or a disk that is no more has nothing to tell.
        let several = ["schedule:", "disk-space:"];
        let gone: Vec<_> = self
            .told
            .keys()
            .filter(|(of, name)| of == stanza && several.iter().any(|of| name.starts_with(of)))
            .filter(|(_, name)| !all.keys().any(|known| known.as_str() == name))
            .cloned()
            .collect();
        for (of, name) in gone {
            self.told.remove(&(of.clone(), name.clone()));
            if let Err(error) = self.parts.context.store.forget_condition(of, name).await {
                tracing::warn!("a condition is not forgotten: {}", chain(&error));
            }
        }
    }

    /// Whether something is better for long enough to be told: what goes up and down around a limit
    /// would be told without end. What gets worse is told at once.
    fn has_settled(&mut self, key: &(StanzaName, String), better: bool) -> bool {
        if !better {
            self.better_since.remove(key);
            return true;
        }
        let since = *self.better_since.entry(key.clone()).or_insert_with(Instant::now);
        since.elapsed() >= SETTLES_IN
    }

    /// Whether a fault of archiving is not to be told, now: a look at the repository, which is asked
    /// for at once, may explain it; or one does; or did until a moment ago, and the archiver has not
    /// tried again since.
    fn is_not_news(&mut self, stanza: &StanzaName, found: Option<&Found>, explained: bool) -> bool {
        let now = Instant::now();
        let new = Doubt { since: now, explained_until: None };
        let doubt = match self.doubts.entry(stanza.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                if let Some(kick) = self.kicks.get(stanza) {
                    kick.notify_one();
                }
                place.insert(new)
            }
        };
        if explained {
            doubt.explained_until = Some(now + AFTERMATH);
        }
        if let Some(until) = doubt.explained_until {
            return now < until;
        }
        let looked = found.is_some_and(|found| found.began >= doubt.since);
        !looked && doubt.since.elapsed() < EXPLAIN_WITHIN
    }

    async fn change(
        &mut self,
        stanza: &StanzaName,
        name: &ConditionName,
        state: &State,
        before: Before,
        facts: &Facts,
        now: Timestamp,
    ) {
        let details: Vec<&str> = state.checks.iter().map(|check| check.detail.as_str()).collect();
        let detail = details.join("; ");
        match state.level {
            Level::Pass => tracing::info!(stanza.name = %stanza, "{} is well again", name.as_str()),
            Level::Warn => {
                tracing::warn!(stanza.name = %stanza, "{} was {} and is {}: {detail}", name.as_str(), before.level, state.level);
            }
            Level::Fail => {
                tracing::error!(stanza.name = %stanza, "{} was {} and is {}: {detail}", name.as_str(), before.level, state.level);
            }
        }
        let after = before.then(state.level);
        let key = (stanza.clone(), name.as_str().to_owned());
        // Of a fault that gets worse or milder: since it began.
        let since = match self.told.get(&key) {
            Some((_, since)) if before.level != Level::Pass && state.level != Level::Pass => *since,
            Some(_) | None => now,
        };
        let condition = Condition {
            stanza: stanza.clone(),
            name: name.as_str().to_owned(),
            level: state.level,
            since,
            worst: after.worst,
        };
        let event = event_of(stanza, name, state, before, facts, now);
        let notices = event.map(|event| self.parts.notifier.routed(&event)).unwrap_or_default();
        match self.parts.context.store.change_condition(condition, notices).await {
            Ok(()) => {
                self.parts.notifier.wake();
                self.better_since.remove(&key);
                self.told.insert(key, (after, since));
            }
            Err(error) => tracing::error!(
                "cannot store the health conditions of stanza {stanza}: {}",
                chain(&error)
            ),
        }
    }
}
