//! What `pg_controldata` says about a cluster that is not running.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::install::Binaries;
use crate::domain::restore::ControlFacts;
use crate::domain::{Lsn, SegmentSize, Timeline};
use crate::process::{CaptureError, Program, capture};

const PATIENCE: Duration = Duration::from_secs(20);

/// The control data, as far as it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlData {
    /// "Database system identifier". Exceeds 2^53, so a string.
    pub system_id: String,
    /// "Catalog version number".
    pub catalog_version: u64,
    /// "Database cluster state", e.g. `in production`.
    pub state: String,
    /// "Latest checkpoint's TimeLineID".
    pub timeline: Timeline,
    /// "Latest checkpoint's REDO WAL file": everything before it is archived or `.ready`.
    pub redo_segment: String,
    /// "Minimum recovery ending location": until there a recovering cluster has been written to.
    pub min_recovery_end: Lsn,
    /// "Bytes per WAL segment".
    pub segment_size: SegmentSize,
    /// The settings a hot standby needs at least at the primary's values (PostgreSQL manual,
    /// 27.4.3 "Administrator's Overview").
    pub setting_floors: BTreeMap<String, u64>,
}

/// Why control data cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// `pg_controldata` could not be run.
    #[error(transparent)]
    Run(#[from] CaptureError),
    /// It refused: no `pg_control`, or a broken one.
    #[error("pg_controldata: {0}")]
    Refused(String),
    /// It said something else than expected.
    #[error("pg_controldata does not name the cluster's {0}")]
    Missing(&'static str),
}

impl ControlData {
    /// Reads the control data of PGDATA.
    pub async fn read(
        binaries: &Binaries,
        env: &BTreeMap<String, String>,
        pgdata: &Path,
    ) -> Result<Self, ControlError> {
        let mut program = Program::new(binaries.program("pg_controldata"));
        program.args = vec!["-D".to_owned(), pgdata.display().to_string()];
        program.env.clone_from(env);
        program.env.insert("LC_ALL".to_owned(), "C".to_owned());
        let captured = capture(program, PATIENCE).await?;
        if !captured.end.is_success() {
            return Err(ControlError::Refused(captured.stderr));
        }
        Self::parse(&String::from_utf8_lossy(&captured.stdout))
    }

    /// Parses the output of `pg_controldata` in the C locale.
    pub fn parse(text: &str) -> Result<Self, ControlError> {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(k, v)| (k, v.trim()))
            .collect();
        let field =
            |name: &'static str| fields.get(name).copied().ok_or(ControlError::Missing(name));
        let number = |name: &'static str| {
            field(name)?.parse::<u64>().map_err(|_| ControlError::Missing(name))
        };
        let mut setting_floors = BTreeMap::new();
        for (name, setting) in [
            ("max_connections setting", "max_connections"),
            ("max_worker_processes setting", "max_worker_processes"),
            ("max_wal_senders setting", "max_wal_senders"),
            ("max_prepared_xacts setting", "max_prepared_transactions"),
            ("max_locks_per_xact setting", "max_locks_per_transaction"),
        ] {
            if let Ok(value) = number(name) {
                setting_floors.insert(setting.to_owned(), value);
            }
        }
        Ok(Self {
            system_id: field("Database system identifier")?.to_owned(),
            catalog_version: number("Catalog version number")?,
            state: field("Database cluster state")?.to_owned(),
            timeline: field("Latest checkpoint's TimeLineID")?
                .parse()
                .map_err(|_| ControlError::Missing("Latest checkpoint's TimeLineID"))?,
            redo_segment: field("Latest checkpoint's REDO WAL file")?.to_owned(),
            min_recovery_end: field("Minimum recovery ending location")?
                .parse()
                .map_err(|_| ControlError::Missing("Minimum recovery ending location"))?,
            segment_size: SegmentSize::try_from(number("Bytes per WAL segment")?)
                .map_err(|_| ControlError::Missing("Bytes per WAL segment"))?,
            setting_floors,
        })
    }

    /// Whether the last server ended in order.
    pub fn is_shut_down(&self) -> bool {
        matches!(self.state.as_str(), "shut down" | "shut down in recovery")
    }

    /// The part that decides about a restore.
    pub fn facts(&self) -> ControlFacts {
        ControlFacts {
            timeline: self.timeline,
            out_of_recovery: matches!(
                self.state.as_str(),
                "in production" | "shutting down" | "shut down"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_output() {
        let text = include_str!("../../tests/fixtures/pg_controldata-15.txt");
        let control = ControlData::parse(text).unwrap();
        assert_eq!(control.state, "shut down");
        assert_eq!(control.catalog_version, 202_209_061);
        assert_eq!(control.timeline.get(), 1);
        assert_eq!(control.segment_size, SegmentSize::DEFAULT);
        assert_eq!(control.min_recovery_end, Lsn::new(0));
        assert_eq!(control.setting_floors["max_connections"], 100);
        assert_eq!(control.setting_floors.len(), 5);
        assert!(control.system_id.parse::<u64>().is_ok());
        assert!(control.facts().out_of_recovery);
    }

    #[test]
    fn something_else_is_an_error() {
        assert!(ControlData::parse("").is_err());
        assert!(ControlData::parse("Database cluster state: in production").is_err());
    }
}
