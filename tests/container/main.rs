//! The container image, on every Debian it is built for, run as people run it: with `docker`.
//!
//! `make images` builds the images (`headrest-test:SUITE`) that these tests run. They are left out of
//! a plain `cargo nextest run`, because they need a container engine.
#![expect(clippy::disallowed_methods, reason = "tests start programs and read clocks")]
#![expect(clippy::print_stderr, reason = "what a failing test has to say")]
#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[expect(dead_code, reason = "the harness also serves the tests in tests/real")]
#[path = "../support/mod.rs"]
mod support;

mod bases;
mod bootstrap;
mod contract;
mod engine;
mod life;
mod restores;
mod scripts;
mod users;
mod volumes;
