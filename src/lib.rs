//! Headrest, the head on pgBackRest: continuous backups of a PostgreSQL server, restores that are
//! safe to press, an HTTP API and a dashboard, in one process that supervises the server.
//!
//! # Where to start reading
//!
//! A pure core decides, a thin shell acts. In reading order:
//!
//! - [`domain`]: what the words mean and what is decided. `domain::job` has the states of a job,
//!   `domain::restore` the phases of a restore and what a start of Headrest does with each.
//! - [`pgbackrest`]: every command line is built in `pgbackrest::command`, as a value; the answers
//!   (`info`, exit codes, log lines) become types. `pgbackrest::runner` runs them.
//! - [`process`]: the one place that spawns, and how processes are ended.
//! - [`postgres`]: first start, and the supervisor that owns the server.
//! - [`store`]: history in SQLite. [`metrics`]: what is measured, for Prometheus.
//! - [`jobs`]: `jobs::queue` changes the state of jobs, one lane per stanza; `jobs::worker` and
//!   `jobs::restore` carry them out; `jobs::catalog` remembers what `info` said.
//! - [`scheduler`]: what is done by itself, and when; `domain::schedule` decides.
//! - [`http`]: `http::router` has every route on one page; one file per resource in `http::api`.
//! - [`app`]: puts it all together and takes it apart in order. [`cli`] is the command line,
//!   [`config`] the configuration.
//!
//! # How a request flows
//!
//! An extractor parses it into domain types, else it is a problem. `JobsHandle::submit` stores a
//! row `queued`, or denies it with a reason. The queue gives it the stanza's lane, stores
//! `running`, and a worker builds an `Invocation` and hands it to the runner. What that says is
//! stored first, then whoever follows is woken and reads it from the store by id. The outcome is a
//! row before anybody hears of it.
//!
//! ARCHITECTURE.md has the map, the invariants and walkthroughs.

pub mod domain;

pub mod pgbackrest;

pub mod process;

pub mod postgres;

pub mod store;

pub mod metrics;

pub mod jobs;

pub mod scheduler;

pub mod http;

pub mod app;
pub mod cli;
pub mod config;

pub mod clock;
pub mod pulse;
pub mod telemetry;
