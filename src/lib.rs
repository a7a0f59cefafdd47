//! draft
pub mod clock;
pub mod config;
pub mod domain;
pub mod jobs;
pub mod pgbackrest;
pub mod postgres;
pub mod process;
pub mod pulse;
pub mod store;
pub mod telemetry;
