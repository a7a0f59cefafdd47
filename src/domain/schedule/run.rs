//! What becomes of a schedule's moments.
//!
//! ```text
//!                    held <---------------.
//!  due ----------->   |  cleared           | refused
//!   |  \ can start    v                    |
//!   |   `--------> starting ---------------'
//!   |                 | job accepted        ^
//!   |                 v                     | its time has come
//!   |              running --- failed ---> retrying
//!   |                 | done, cancelled, or failed too often
//!   v                 v
//!  missed, skipped,  (nothing)
//!  coalesced
//! ```
//! Every moment gets exactly one verdict: a job was started for it, it was coalesced into another
//! one's run, it was missed (too late to start), or it was skipped (on purpose). `decided` never
//! goes back, so a clock that does fires nothing twice. What is decided is to be stored before
//! anything is started.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::super::JobId;
use super::super::job::Outcome;
use super::super::words::words;
use super::Schedule;

/// Waits before a run that failed is tried again; the last one again and again.
const BACK_OFF: [SignedDuration; 3] =
    [SignedDuration::from_mins(1), SignedDuration::from_mins(5), SignedDuration::from_mins(15)];
/// The wait after so many tries and one more.
fn back_off(tries: u8) -> SignedDuration {
    BACK_OFF[usize::from(tries).min(BACK_OFF.len() - 1)]
}

/// Moments that are counted one by one.
const MOST_COUNTED: u64 = 50_000;
/// A clock that was ahead by more than this was wrong, and what it decided does not count: else a
/// machine that once started in the year 2099 would never be backed up again.
const LONGEST_LEAP: SignedDuration = SignedDuration::from_hours(25);

words! {
    /// What became of a moment.
    Verdict {
        /// A job was started for it.
        Run = "run",
        /// Another moment's run counts for it.
        Coalesced = "coalesced",
        /// It was too late to start.
        Missed = "missed",
        /// It was left out on purpose.
        Skipped = "skipped",
    }
}

/// Moments in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// The first.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
    /// How many.
    pub count: u64,
}

/// What became of some moments, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What.
    pub verdict: Verdict,
    /// Of which.
    pub slots: Slots,
    /// Why.
    pub reason: String,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// It cannot start yet.
    Held {
        /// Why.
        why: String,
    },
    /// It is to be started now.
    Starting,
    /// It runs.
    Running {
        /// As this job.
        job: JobId,
    },
    /// It failed and will be tried again.
    Retrying {
        /// When.
        at: Timestamp,
    },
}

/// A moment that is being served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The moment.
    pub slot: Timestamp,
    /// The same with its jitter.
    pub due: Timestamp,
    /// Tries that were started before.
    pub attempts: u8,
    /// Where it stands.
    #[serde(flatten)]
    pub step: Step,
}

/// Where a schedule stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Every moment up to here is decided, but for the one that is being served.
    pub decided: Timestamp,
    /// Nothing is started.
    pub paused: bool,
    /// The moment that is being served.
    pub run: Option<Run>,
    /// What went wrong last, until a run ends well.
    #[serde(default)]
    pub trouble: Option<Trouble>,
    /// What was decided by a clock that seemed to be far ahead. If time comes there, it was right.
    #[serde(default)]
    pub ahead: Option<Timestamp>,
}

/// What went wrong with a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// A run was not even tried; else it was, in vain.
    pub missed: bool,
    /// What happened, in words.
    pub text: String,
    /// How the last try ended, if that was told as the last one.
    #[serde(default)]
    pub told: Option<Outcome>,
}

/// What a run would meet if it started now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum World {
    /// Nothing is in its way.
    Clear,
    /// It must wait, and why.
    Blocked(String),
    /// It must not be, and why.
    Unfit(String),
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Where the schedule stands from now on.
    pub state: State,
    /// What became of moments.
    pub told: Vec<Told>,
    /// Whether a job is to be started.
    pub start: bool,
}

/// What comes after the end of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The moment is served.
    Served,
    /// It is tried again then.
    Again(Timestamp),
    /// It failed too often.
    GivenUp,
}

impl State {
    /// Of a schedule that begins at `now`.
    pub fn new(now: Timestamp) -> Self {
        Self { decided: now, paused: false, run: None, trouble: None, ahead: None }
    }

    /// When something may have to be decided again, apart from what stands in the way.
    pub fn wakes_at(&self, schedule: &Schedule) -> Option<Timestamp> {
        let next = schedule.next_due(self.decided).map(|(_, due)| due);
        let retry = self.run.as_ref().and_then(|run| match run.step {
            Step::Retrying { at } => Some(at),
            Step::Held { .. } | Step::Starting | Step::Running { .. } => None,
        });
        [next, retry].into_iter().flatten().min()
    }

    /// The job was accepted. The first one's moment has its verdict.
    pub fn started(mut self, job: JobId) -> (Self, Option<Told>) {
        let Some(run) = &mut self.run else { return (self, None) };
        let first = run.attempts == 0;
        run.attempts = run.attempts.saturating_add(1);
        run.step = Step::Running { job };
        let told = first.then(|| Told {
            verdict: Verdict::Run,
            slots: Slots { first: run.slot, last: run.slot, count: 1 },
            reason: format!("job {job}"),
        });
        (self, told)
    }

    /// The job was not accepted: the run waits.
    #[must_use]
    pub fn refused(mut self, why: String) -> Self {
        if let Some(run) = &mut self.run {
            run.step = Step::Held { why };
        }
        self
    }

    /// What was run by hand ended. `None` when that changes nothing.
    pub fn went_well(self, outcome: Outcome) -> Option<Self> {
        let well = matches!(outcome, Outcome::Succeeded | Outcome::Warned);
        (well && self.trouble.is_some()).then_some(Self { trouble: None, ..self })
    }

    /// A job ended. `None` when it is not the one that serves a moment.
    pub fn ended(
        mut self,
        schedule: &Schedule,
        job: JobId,
        outcome: Outcome,
        now: Timestamp,
    ) -> Option<(Self, Next)> {
        let run = self.run.as_mut().filter(|run| run.step == Step::Running { job })?;
        let tries_left = run.attempts <= schedule.retries && !self.paused;
        let again = match outcome {
            Outcome::Succeeded | Outcome::Warned | Outcome::Cancelled => None,
            // It is nobody's fault but ours.
            Outcome::Interrupted if tries_left => Some(SignedDuration::ZERO),
            Outcome::Failed if tries_left => Some(back_off(run.attempts.saturating_sub(1))),
            Outcome::Interrupted | Outcome::Failed => {
                let tries = run.attempts;
                let text = format!(
                    "the run of {} {outcome} after {tries} tries; the last is job {job}",
                    run.slot
                );
                // A pause took the tries that were left, of which its job has told.
                let told = (run.attempts > schedule.retries).then_some(outcome);
                self.trouble = Some(Trouble { missed: false, text, told });
                self.run = None;
                return Some((self, Next::GivenUp));
            }
        };
        let Some(wait) = again else {
            if matches!(outcome, Outcome::Succeeded | Outcome::Warned) {
                self.trouble = None;
            }
            self.run = None;
            return Some((self, Next::Served));
        };
        let at = now.checked_add(wait).unwrap_or(now);
        run.step = Step::Retrying { at };
        Some((self, Next::Again(at)))
    }
}

impl Schedule {
    /// The first moment after `after`, and when it is due: later by its jitter.
    pub fn next_due(&self, after: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let slot = self.cron.next(after, &self.timezone)?;
        Some((slot, self.due(slot)))
    }

    /// When a moment is due.
    pub fn due(&self, slot: Timestamp) -> Timestamp {
        let span = u64::try_from(self.jitter.as_secs()).unwrap_or(0);
        let name = self.name.as_str().bytes().chain(slot.as_second().to_be_bytes());
        // FNV-1a: the same on every machine and with every version.
        let hash = name.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let late = i64::try_from(hash % (span + 1)).unwrap_or(0);
        slot.checked_add(SignedDuration::from_secs(late)).unwrap_or(slot)
    }

    /// Whether a job that is started now for the moment that is being served would, if it fails, be
    /// tried again, and not be made up for by the next moment.
    pub fn tries_again(&self, state: &State, now: Timestamp) -> bool {
        let Some(run) = state.run.as_ref().filter(|run| run.attempts < self.retries) else {
            return false;
        };
        let at = now.checked_add(back_off(run.attempts)).unwrap_or(now);
        !state.paused && self.next_due(state.decided).is_none_or(|(_, due)| due > at)
    }

    /// Decides what is to be done now.
    pub fn tick(&self, state: &State, now: Timestamp, world: &World) -> Turn {
        let mut turn = Turn { state: state.clone(), told: Vec::new(), start: false };
        let horizon = now.checked_add(LONGEST_LEAP).unwrap_or(Timestamp::MAX);
        if state.decided > horizon {
            turn.state.ahead = turn.state.ahead.max(Some(state.decided));
            turn.state.decided = now;
        } else if let Some(ahead) = state.ahead.filter(|ahead| *ahead <= horizon) {
            turn.state.decided = ahead.max(state.decided);
            turn.state.ahead = None;
        }
        self.take_due(&mut turn, now);
        self.serve(&mut turn, now, world);
        turn
    }

    /// Decides about moments that have come since.
    fn take_due(&self, turn: &mut Turn, now: Timestamp) {
        let mut due: Option<Slots> = None;
        let mut after = turn.state.decided;
        while let Some((slot, _)) = self.next_due(after).filter(|(_, due)| *due <= now) {
            if due.is_some_and(|slots| slots.count >= MOST_COUNTED) {
                // Years of minutes: only the last can still be served. The count is a lower bound.
                let recent = now.checked_sub(self.patience() + self.jitter).unwrap_or(after);
                if slot < recent {
                    after = recent;
                    continue;
                }
            }
            let slots = due.get_or_insert(Slots { first: slot, last: slot, count: 0 });
            (slots.last, slots.count) = (slot, slots.count + 1);
            after = slot;
        }
        let Some(slots) = due else { return };
        turn.state.decided = slots.last;
        if turn.state.paused {
            turn.tell(Verdict::Skipped, slots, "the schedule is paused");
            return;
        }
        match turn.state.run.as_ref().map(|run| (&run.step, run.slot, run.attempts)) {
            Some((Step::Running { job }, ..)) => {
                let reason = format!("job {job} of the run before still runs");
                turn.tell(Verdict::Coalesced, slots, &reason);
                return;
            }
            Some((Step::Held { .. } | Step::Starting, slot, 0)) => {
                let one = Slots { first: slot, last: slot, count: 1 };
                turn.tell(Verdict::Coalesced, one, "the next run was due before it could start");
            }
            // Tried already, so it has its verdict. It failed as often as it could.
            Some((Step::Held { .. } | Step::Starting | Step::Retrying { .. }, slot, tries)) => {
                let text = format!(
                    "the run of {slot} failed ({tries} tries), and the next one was due already"
                );
                turn.state.trouble = Some(Trouble { missed: false, text, told: None });
            }
            None => {}
        }
        let due = self.due(slots.last);
        turn.state.run = None;
        if now.duration_since(due) > self.patience() {
            let reason = format!("nothing could start within {:#}", self.patience());
            turn.tell(Verdict::Missed, slots, &reason);
            return;
        }
        if let Some(earlier) = slots.but_the_last(self) {
            turn.tell(Verdict::Coalesced, earlier, "one run makes up for all that were missed");
        }
        turn.state.run = Some(Run { slot: slots.last, due, attempts: 0, step: Step::Starting });
    }

    /// Decides about the run that is being served.
    fn serve(&self, turn: &mut Turn, now: Timestamp, world: &World) {
        let Some(mut run) = turn.state.run.take() else { return };
        let waits = match run.step {
            Step::Running { .. } => true,
            Step::Retrying { at } => at > now,
            Step::Held { .. } | Step::Starting => false,
        };
        if waits {
            turn.state.run = Some(run);
            return;
        }
        // What was tried has its verdict, and no time limit: the next moment ends it.
        let tried = run.attempts > 0;
        let too_late = !tried && now.duration_since(run.due) > self.patience();
        let ended = match world {
            _ if turn.state.paused => Some((Verdict::Skipped, "the schedule is paused")),
            World::Unfit(why) => Some((Verdict::Skipped, why.as_str())),
            World::Blocked(why) if too_late => Some((Verdict::Missed, why.as_str())),
            World::Clear if too_late => match &run.step {
                Step::Held { why } => Some((Verdict::Missed, why.as_str())),
                Step::Starting | Step::Running { .. } | Step::Retrying { .. } => {
                    Some((Verdict::Missed, "Headrest was not running"))
                }
            },
            World::Blocked(_) | World::Clear => None,
        };
        if let Some((verdict, reason)) = ended {
            if !tried {
                turn.tell(verdict, Slots { first: run.slot, last: run.slot, count: 1 }, reason);
            }
            return;
        }
        match world {
            World::Blocked(why) => run.step = Step::Held { why: why.clone() },
            World::Clear | World::Unfit(_) => {
                run.step = Step::Starting;
                turn.start = true;
            }
        }
        turn.state.run = Some(run);
    }
}

impl Turn {
    fn tell(&mut self, verdict: Verdict, slots: Slots, reason: &str) {
        if verdict == Verdict::Missed {
            let text = format!("the run of {} was missed: {reason}", slots.last);
            self.state.trouble = Some(Trouble { missed: true, text, told: None });
        }
        self.told.push(Told { verdict, slots, reason: reason.to_owned() });
    }
}

impl Slots {
    /// All but the last, when there are more.
    fn but_the_last(self, schedule: &Schedule) -> Option<Self> {
        let (mut last, mut at) = (self.first, self.first);
        if self.count < 2 {
            return None;
        }
        for _ in 2..self.count {
            at = schedule.next_due(at)?.0;
            last = at;
        }
        Some(Self { first: self.first, last, count: self.count - 1 })
    }
}

#[cfg(test)]
mod tests;
