//! What people change: schedules made, changed, removed, paused, and run by hand.

use super::{Entry, Scheduler, spec, timing};
use crate::clock;
use crate::domain::job::{Job, OnConflict, Trigger};
use crate::domain::schedule::run::State;
use crate::domain::schedule::{Schedule, ScheduleName};
use crate::jobs::Submission;
use crate::scheduler::{Expected, Origin, ScheduleError, View};
use crate::store::{Missed, StoredSchedule};
use crate::telemetry::chain;

impl Scheduler {
    pub(super) async fn create(
        &mut self,
        schedule: Schedule,
        by: &str,
    ) -> Result<View, ScheduleError> {
        if self.entries.contains_key(&schedule.name) {
            return Err(ScheduleError::Exists(schedule.name));
        }
        self.put(schedule, 1, State::new(clock::now()), by, "schedule.create").await
    }

    pub(super) async fn replace(
        &mut self,
        schedule: Schedule,
        expected: &Expected,
        by: &str,
    ) -> Result<View, ScheduleError> {
        let entry = self.changeable(&schedule.name, expected)?;
        let now = clock::now();
        // A job that runs is not forgotten, and what has been decided stays so.
        let same = timing(&entry.schedule) == timing(&schedule);
        let state = State {
            decided: if same { entry.state.decided } else { entry.state.decided.max(now) },
            ..entry.state.clone()
        };
        let version = entry.version + 1;
        self.put(schedule, version, state, by, "schedule.change").await
    }

    async fn put(
        &mut self,
        schedule: Schedule,
        version: u32,
        state: State,
        by: &str,
        action: &'static str,
    ) -> Result<View, ScheduleError> {
        let (name, now) = (schedule.name.clone(), clock::now());
        let detail = format!(
            "{} of {} at {} ({})",
            schedule.kind, schedule.stanza, schedule.cron, schedule.timezone
        );
        let store = &self.context.store;
        let stored = StoredSchedule { schedule: schedule.clone(), version };
        store.keep_schedule(stored, timing(&schedule), state.clone(), now).await?;
        self.deed(by, action, &name, detail).await;
        let missed = self.entries.get(&name).map_or(Missed::default(), |entry| entry.missed);
        let entry = Entry {
            schedule,
            origin: Origin::Api,
            version,
            state,
            missed,
            by_hand: None,
            refused_at: None,
        };
        let view = entry.view();
        self.entries.insert(name, entry);
        self.publish();
        Ok(view)
    }

    pub(super) async fn delete(
        &mut self,
        name: &ScheduleName,
        expected: &Expected,
        by: &str,
    ) -> Result<(), ScheduleError> {
        self.changeable(name, expected)?;
        let store = &self.context.store;
        store.forget_schedule(name.clone()).await?;
        self.deed(by, "schedule.delete", name, String::new()).await;
        self.entries.remove(name);
        self.publish();
        Ok(())
    }

    pub(super) async fn pause(
        &mut self,
        name: &ScheduleName,
        paused: bool,
        by: &str,
    ) -> Result<View, ScheduleError> {
        let entry = self.entry(name)?;
        let state = State { paused, ..entry.state.clone() };
        let (timing, store, now) = (timing(&entry.schedule), &self.context.store, clock::now());
        store.schedule_turn(name.clone(), timing, state.clone(), Vec::new(), now).await?;
        let action = if paused { "schedule.pause" } else { "schedule.resume" };
        self.deed(by, action, name, String::new()).await;
        if let Some(entry) = self.entries.get_mut(name) {
            entry.state = state;
        }
        self.publish();
        self.entry(name).map(Entry::view)
    }

    pub(super) async fn run_now(
        &mut self,
        name: &ScheduleName,
        by: &str,
    ) -> Result<Job, ScheduleError> {
        let entry = self.entry(name)?;
        let trigger = Trigger::Schedule(name.to_string());
        let submission = Submission {
            // As at its moment.
            on_conflict: OnConflict::Queue,
            ..Submission::new(spec(&entry.schedule), trigger, by)
        };
        let job = self.jobs.submit(submission).await?;
        if let Some(entry) = self.entries.get_mut(name) {
            entry.by_hand = Some(job.id);
        }
        self.follow(name, job.id);
        Ok(job)
    }

    /// What is done is done, whether it can be written down who did it or not.
    async fn deed(&self, by: &str, action: &'static str, name: &ScheduleName, detail: String) {
        let (store, subject) = (&self.context.store, name.to_string());
        if let Err(error) = store.audit(clock::now(), by.to_owned(), action, subject, detail).await
        {
            tracing::error!("{action} of {name} by {by} is not written down: {}", chain(&error));
        }
    }

    fn entry(&self, name: &ScheduleName) -> Result<&Entry, ScheduleError> {
        self.entries.get(name).ok_or_else(|| ScheduleError::NoSuch(name.to_string()))
    }

    fn changeable(
        &self,
        name: &ScheduleName,
        expected: &Expected,
    ) -> Result<&Entry, ScheduleError> {
        let entry = self.entry(name)?;
        match (entry.origin, expected) {
            (Origin::File | Origin::Default, _) => {
                Err(ScheduleError::ReadOnly { name: name.clone(), origin: entry.origin })
            }
            (Origin::Api, Expected::OneOf(versions)) if !versions.contains(&entry.version) => {
                Err(ScheduleError::Changed { name: name.clone(), version: entry.version })
            }
            (Origin::Api, Expected::Any | Expected::OneOf(_)) => Ok(entry),
        }
    }
}
