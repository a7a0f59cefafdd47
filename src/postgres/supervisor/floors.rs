//! Settings that the data in PGDATA needs at least at some value, although a lower one is configured.
//!
//! Prepared transactions are restored at every start, and PostgreSQL does not start with fewer places for
//! them than there are ("maximum number of prepared transactions reached"). A restore, or somebody's
//! change of the configuration, leaves such a cluster.

use std::fmt;
use std::fs;
use std::time::Duration;

use super::Settings;
use crate::postgres::control::ControlData;
use crate::process::{self, Program};

/// The settings that prepared transactions need: their number, and room for the locks that they hold.
const OF_PREPARED: [&str; 2] = ["max_prepared_transactions", "max_locks_per_transaction"];
/// How long `postgres -C` may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A setting that the server was started with, because its data needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// Its name.
    pub name: &'static str,
    /// What is configured.
    pub configured: u64,
    /// What it was started with.
    pub value: u64,
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} (configured is {})", self.name, self.value, self.configured)
    }
}

/// What must be raised for a start on the data as it is.
pub(super) async fn needed(settings: &Settings) -> Vec<Raised> {
    let pgdata = &settings.config.data_dir;
    let Ok(control) = ControlData::read(&settings.binaries, &settings.env, pgdata).await else {
        // Then the start itself tells what is wrong.
        return Vec::new();
    };
    let floor = |name: &str| control.setting_floors.get(name).copied().unwrap_or_default();
    let files = fs::read_dir(pgdata.join("pg_twophase")).into_iter().flatten().count();
    // After a crash the WAL may hold prepared transactions that are in no file yet.
    let some = files > 0 || !control.is_shut_down();
    if !some || floor(OF_PREPARED[0]) == 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    for name in OF_PREPARED {
        let value = floor(name);
        let configured = configured(settings, name).await.and_then(|text| text.parse().ok());
        if let Some(configured) = configured.filter(|configured| *configured < value) {
            found.push(Raised { name, configured, value });
        }
    }
    found
}

/// The value that a setting has by the configuration files and the configured arguments.
pub(super) async fn configured(settings: &Settings, name: &str) -> Option<String> {
    let mut program = Program::new(settings.binaries.program("postgres"));
    program.env.clone_from(&settings.env);
    let data_dir = settings.config.data_dir.display().to_string();
    program.args = ["-D", &data_dir, "-C", name].map(str::to_owned).to_vec();
    program.args.extend(settings.config.args.iter().cloned());
    let captured = process::capture(program, PATIENCE).await.ok()?;
    let value = String::from_utf8_lossy(&captured.stdout).trim().to_owned();
    captured.end.is_success().then_some(value)
}
