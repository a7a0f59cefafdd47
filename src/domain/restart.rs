//! When a process that left unexpectedly is started again, and when that is given up.
//!
//! At once after the first exit, then after a delay that doubles to 30 s; forgotten after 60 s of
//! service; given up after ten exits within ten minutes that never reached readiness.

use std::time::Duration;

use jiff::Timestamp;

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);
const GIVE_UP_EXITS: usize = 10;
const GIVE_UP_WITHIN: Duration = Duration::from_mins(10);

/// What to do after an unexpected exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start again after this long.
    RestartAfter(Duration),
    /// Stay down until somebody asks.
    GiveUp,
}

/// The memory of recent exits.
#[derive(Debug, Clone, Default)]
pub struct RestartPolicy {
    /// Exits in a row, whether ready or not; decides the delay.
    in_a_row: u32,
    /// Times of the exits that never got ready; decides giving up.
    never_ready: Vec<Timestamp>,
}

impl RestartPolicy {
    /// An exit at `now`; `ready_for` is how long it had been ready, `None` when it never was.
    /// `jitter` in 0..=1 spreads the delay over its last fifth.
    pub fn exited(&mut self, now: Timestamp, ready_for: Option<Duration>, jitter: f64) -> Verdict {
        if ready_for.is_some() {
            self.never_ready.clear();
        } else {
            self.never_ready.retain(|at| {
                Duration::try_from(now.duration_since(*at)).is_ok_and(|age| age <= GIVE_UP_WITHIN)
            });
            self.never_ready.push(now);
        }
        if ready_for.is_some_and(|up| up >= FORGIVEN_AFTER) {
            self.in_a_row = 0;
        }
        self.in_a_row += 1;
        if self.never_ready.len() >= GIVE_UP_EXITS {
            return Verdict::GiveUp;
        }
        Verdict::RestartAfter(delay(self.in_a_row, jitter))
    }

    /// Somebody asked for a start: the past is forgotten.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

fn delay(in_a_row: u32, jitter: f64) -> Duration {
    let Some(doublings) = in_a_row.checked_sub(2) else { return Duration::ZERO };
    let full = FIRST_DELAY.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST_DELAY);
    full.mul_f64(1.0 - 0.2 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn never_ready_backs_off_and_gives_up() {
        let mut policy = RestartPolicy::default();
        let delays: Vec<_> = (0..10).map(|n| policy.exited(at(n * 10), None, 0.0)).collect();
        let expect = [0, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]
            .map(|ms| Verdict::RestartAfter(Duration::from_millis(ms)));
        assert_eq!(delays[..9], expect);
        assert_eq!(delays[9], Verdict::GiveUp);
    }

    #[test]
    fn slow_failures_never_give_up_and_service_is_forgiven() {
        let mut policy = RestartPolicy::default();
        for n in 0..50 {
            let verdict = policy.exited(at(n * 70), None, 0.0);
            assert_ne!(verdict, Verdict::GiveUp, "exit {n}");
        }
        let verdict = policy.exited(at(9999), Some(Duration::from_secs(61)), 0.0);
        assert_eq!(verdict, Verdict::RestartAfter(Duration::ZERO));
    }

    #[test]
    fn a_crash_after_a_short_service_backs_off_but_is_not_given_up() {
        let mut policy = RestartPolicy::default();
        for n in 0..30 {
            let verdict = policy.exited(at(n), Some(Duration::from_secs(1)), 0.0);
            assert_ne!(verdict, Verdict::GiveUp, "exit {n}");
        }
    }

    proptest! {
        #[test]
        fn delays_stay_in_bounds(jitter in -1.0f64..2.0, n in 0u32..100_000) {
            prop_assert!(delay(n, jitter) <= LONGEST_DELAY);
        }
    }
}
