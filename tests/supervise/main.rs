//! Headrest as the supervisor of a real PostgreSQL: crashes, ends, refusals. Where backups do not
//! matter a script stands in for pgbackrest.
#![expect(clippy::disallowed_methods, reason = "tests start programs and read clocks")]
#![expect(clippy::print_stderr, reason = "what a failing test has to say")]
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[expect(dead_code, reason = "the harness also serves the tests in tests/real")]
#[path = "../support/mod.rs"]
mod support;

mod adoption;
mod crashes;
mod ending;
mod full_disk;
mod identity;
mod last_rungs;
mod orders;
mod probes;
mod refusals;
mod schedule;
mod stale_pid;

use support::fake::Fake;
use support::instance::Instance;

/// A running instance whose pgbackrest is a script that is content with everything.
fn running() -> (Instance, Fake) {
    let mut instance = Instance::new();
    let fake = Fake::installed_in(&mut instance);
    instance.start();
    instance.wait_ready();
    (instance, fake)
}
