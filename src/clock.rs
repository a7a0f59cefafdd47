//! The only place that reads the wall clock. Everything else is given the time.

use jiff::Timestamp;

/// The current time, to the microsecond.
///
/// PostgreSQL and the store count in microseconds too, so a time survives a round trip unchanged.
#[expect(clippy::disallowed_methods, reason = "this is the one module that reads the clock")]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}
