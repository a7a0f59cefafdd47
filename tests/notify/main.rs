//! Notifications against a real receiver on loopback, which fails in every way that receivers do.

#![expect(clippy::disallowed_methods, reason = "tests start programs")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod formats;
mod guard;
mod jobs;
mod outages;
mod receiver;
mod rig;
mod service;
