//! The harness of the tests against a real PostgreSQL: an instance of Headrest with directories,
//! ports and processes of its own, spoken to over HTTP and SQL as a user would.
//!
//! Every wait has an end, every process belongs to one instance, and nothing is left behind, not
//! even when a test is killed ([`reaper`]).

pub(crate) mod archive;
pub(crate) mod client;
pub(crate) mod events;
pub(crate) mod fake;
pub(crate) mod files;
pub(crate) mod instance;
pub(crate) mod jobs;
pub(crate) mod moments;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod reaper;
pub(crate) mod rows;
pub(crate) mod small_disk;
pub(crate) mod sql;
pub(crate) mod told;

use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// For things that happen at once unless something is wrong.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// For backups, restores and starts, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Looks until there is an answer; panics when there is none in time.
#[track_caller]
pub(crate) fn until<T>(what: &str, patience: Duration, look: impl FnMut() -> Option<T>) -> T {
    within(patience, look).unwrap_or_else(|| panic!("not within {patience:?}: {what}"))
}

/// Looks until there is an answer, at most so long.
pub(crate) fn within<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(LOOK_EVERY);
    }
}
