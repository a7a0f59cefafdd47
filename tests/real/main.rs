//! Against a real PostgreSQL and a real pgBackRest (and, where a failure cannot be had from the
//! real one, a script in its place).
#![expect(clippy::disallowed_methods, reason = "tests start programs and read clocks")]
#![expect(clippy::print_stderr, reason = "what a failing test has to say")]
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[path = "../support/mod.rs"]
mod support;

mod backups;
mod crashes;
mod drops;
mod ended;
mod events;
mod exact;
mod exits;
mod gaps;
mod health;
mod info_answers;
mod interrupted;
mod lane;
mod metrics;
mod pitr;
mod places;
mod prepared;
mod refusals;
mod restore_kills;
mod restore_tools;
mod restores;
mod retention;
mod session_defaults;
mod sets;
mod short_routes;
mod slow_archive;
mod steer;
mod story;
mod tablespaces;
mod undo;
mod verify;
mod waits;
mod wal;
mod walk;
mod window;
