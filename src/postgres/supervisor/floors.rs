//! Settings that the data in PGDATA needs at least at some value, although a lower one is configured.
//!
//! Prepared transactions are restored at every start, and PostgreSQL does not start with fewer places for
//! them than there are ("maximum number of prepared transactions reached"). A restore, or a
//! change of the configuration, leaves such a cluster.

use std::fmt;
use std::fs;
use std::time::Duration;

use tokio::time::timeout;

use super::Settings;
use crate::postgres::control::ControlData;
use crate::process::{self, Program};

/// The settings that prepared transactions need: their number, and room for the locks that they hold.
const OF_PREPARED: [&str; 2] = ["max_prepared_transactions", "max_locks_per_transaction"];
/// How long `postgres -C` may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long all of it may take: the supervisor waits for it.
const ALL_PATIENCE: Duration = Duration::from_secs(6);

/// A setting that the server was started with, because its data needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// Its name.
    pub name: &'static str,
    /// What is configured, when that is known.
    pub configured: Option<u64>,
    /// What it was started with.
    pub value: u64,
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.configured {
            Some(configured) => {
                write!(f, "{} = {} (configured is {configured})", self.name, self.value)
            }
            None => write!(f, "{} = {} (what is configured is not known)", self.name, self.value),
        }
    }
}

/// What must be raised for a start on the data as it is, or was raised for a server that `runs`.
pub(super) async fn needed(settings: &Settings, runs: bool) -> Vec<Raised> {
    let found = timeout(ALL_PATIENCE, look(settings, runs)).await;
    found.unwrap_or_else(|_| {
        tracing::warn!("cannot read in time whether prepared transactions need higher settings");
        Vec::new()
    })
}

async fn look(settings: &Settings, runs: bool) -> Vec<Raised> {
    let pgdata = &settings.config.data_dir;
    let Ok(control) = ControlData::read(&settings.binaries, &settings.env, pgdata).await else {
        // Then the start fails and names the cause.
        return Vec::new();
    };
    let floor = |name: &str| control.setting_floors.get(name).copied().unwrap_or_default();
    let files = fs::read_dir(pgdata.join("pg_twophase")).into_iter().flatten().count();
    let [places, _] = OF_PREPARED;
    // After a crash the WAL may hold prepared transactions that are in no file yet.
    let wanted = if runs || control.is_shut_down() { files as u64 } else { floor(places) };
    if wanted == 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    for name in OF_PREPARED {
        let configured = configured(settings, name).await.and_then(|text| text.parse().ok());
        // Where the places are enough, the locks are not asked for.
        if name == places && configured.is_some_and(|configured| configured >= wanted) {
            return Vec::new();
        }
        let value = if name == places { floor(name).max(wanted) } else { floor(name) };
        if configured.is_none_or(|configured| configured < value) {
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
