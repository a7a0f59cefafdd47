//! When a notification that was not delivered is tried again, and when that is given up.
//!
//! From 5 s, doubling to 15 min, each a little shorter at random so that many senders do not come
//! together. What a receiver refuses is tried for an hour only: it will say the same again. But not
//! for less: a proxy in front of one that is restarted refuses everything for a while.

use std::time::Duration;

const FIRST_DELAY: Duration = Duration::from_secs(5);
const LONGEST_DELAY: Duration = Duration::from_mins(15);
/// The longest `Retry-After` that is honoured.
pub const LONGEST_WAIT: Duration = Duration::from_mins(60);
/// How often a receiver must refuse a notification, in a row, before that is believed,
const REFUSALS: u32 = 4;
/// and for how long.
const REFUSED_FOR: Duration = Duration::from_hours(1);
/// After so many failures of one notification another one is tried, to see whether it is the
/// receiver that fails or the notification.
pub const DOUBTFUL_AFTER: u32 = 3;

/// An attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Attempts so far, this one included.
    pub attempts: u32,
    /// How many of the last of them were refused in a row: the receiver got it and will not have it.
    pub refusals: u32,
    /// For how long it has been refused.
    pub refused_for: Duration,
    /// How long the notification has waited since it was stored.
    pub age: Duration,
    /// When the receiver asked to be tried again.
    pub retry_after: Option<Duration>,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another one after so long.
    TryAgainAfter(Duration),
    /// None: it was tried for long enough.
    TooOld,
    /// None: the receiver will not have it.
    Refused,
}

/// Decides what follows a failed attempt. `jitter` in 0..=1 spreads the delay over its last fifth.
pub fn after(failure: Failure, give_up_after: Duration, jitter: f64) -> Next {
    if failure.refusals >= REFUSALS && failure.refused_for >= REFUSED_FOR {
        return Next::Refused;
    }
    if failure.age >= give_up_after {
        return Next::TooOld;
    }
    let doublings = failure.attempts.saturating_sub(1);
    let full = FIRST_DELAY.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST_DELAY);
    let delay = full.mul_f64(1.0 - 0.2 * jitter.clamp(0.0, 1.0));
    let asked = failure.retry_after.unwrap_or_default().min(LONGEST_WAIT);
    Next::TryAgainAfter(delay.max(asked))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THREE_DAYS: Duration = Duration::from_hours(72);

    fn failure(attempts: u32) -> Failure {
        Failure {
            attempts,
            refusals: 0,
            refused_for: Duration::ZERO,
            age: Duration::ZERO,
            retry_after: None,
        }
    }

    #[test]
    fn delays_double_to_a_quarter_of_an_hour() {
        let cases = [(1, 5), (2, 10), (3, 20), (4, 40), (8, 640), (9, 900), (40, 900), (0, 5)];
        for (attempts, seconds) in cases {
            let expect = Next::TryAgainAfter(Duration::from_secs(seconds));
            assert_eq!(after(failure(attempts), THREE_DAYS, 0.0), expect, "attempt {attempts}");
        }
    }

    #[test]
    fn a_receiver_decides_when_within_limits() {
        for (asked, seconds) in [(0, 5), (3, 5), (120, 120), (86_400, 3600)] {
            let retry_after = Some(Duration::from_secs(asked));
            let next = after(Failure { retry_after, ..failure(1) }, THREE_DAYS, 0.0);
            assert_eq!(next, Next::TryAgainAfter(Duration::from_secs(seconds)), "asked {asked}");
        }
    }

    #[test]
    fn it_ends_when_refused_or_too_old() {
        let old = Failure { age: THREE_DAYS, ..failure(300) };
        assert_eq!(after(old, THREE_DAYS, 0.5), Next::TooOld);
        let refused = Failure { refusals: REFUSALS, refused_for: REFUSED_FOR, ..failure(9) };
        assert_eq!(after(refused, THREE_DAYS, 0.5), Next::Refused);
        let soon = Failure { refused_for: Duration::from_secs(3599), ..refused };
        assert!(matches!(after(soon, THREE_DAYS, 0.5), Next::TryAgainAfter(_)));
        let seldom = Failure { refusals: REFUSALS - 1, ..refused };
        assert!(matches!(after(seldom, THREE_DAYS, 0.5), Next::TryAgainAfter(_)));
    }

    proptest! {
        #[test]
        fn the_next_attempt_is_never_far_and_never_at_once(
            attempts in 0u32..1000, refusals in 0u32..REFUSALS, jitter in 0.0f64..=1.0,
            asked in proptest::option::of(0u64..1_000_000)
        ) {
            let retry_after = asked.map(Duration::from_secs);
            let failure = Failure { refusals, retry_after, ..failure(attempts) };
            let Next::TryAgainAfter(delay) = after(failure, THREE_DAYS, jitter) else {
                return Err(TestCaseError::fail("given up"));
            };
            prop_assert!(delay >= FIRST_DELAY.mul_f64(0.8) && delay <= LONGEST_WAIT);
        }
    }
}
