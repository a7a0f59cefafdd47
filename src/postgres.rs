//! Owning a PostgreSQL server: first start, supervision, and what is asked of it.
//!
//! [`supervisor`] is the one task that starts and stops it; everybody else holds a
//! [`PostgresHandle`](supervisor::PostgresHandle). Knows nothing of jobs or HTTP.

pub mod bootstrap;
pub mod client;
pub mod control;
pub mod copies;
mod durable;
pub mod install;
pub mod pg_wal;
pub mod pgdata;
pub mod session;
pub mod state;
pub mod stray;
pub mod supervisor;
pub mod tablespaces;
pub mod tail;
pub mod wal_links;
pub mod waldump;
