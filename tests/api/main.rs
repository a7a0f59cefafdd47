//! The HTTP side without a network: the whole router by `oneshot`, a temporary store, and a fake
//! pgbackrest (a shell script) where exit codes, timing and sizes matter.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod errors;
mod jobs;
mod metrics;
mod monitoring;
mod notifications;
mod openapi;
mod pages;
mod reads;
mod retention;
mod schedules;
mod service;
