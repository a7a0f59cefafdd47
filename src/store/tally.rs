//! How the jobs of the history ended, to be counted.

use std::time::Duration;

use super::rows::{column, during, parsed};
use super::{Store, StoreError};
use crate::domain::job::{JobKind, JobState, Outcome};

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedJob {
    /// What it did.
    pub kind: JobKind,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it was at work; nothing when it never was.
    pub took: Option<Duration>,
}

impl Store {
    /// Every job that has ended, and the id of the newest event as of the same moment: an event
    /// after it that ends a job ends one that is not among them.
    pub async fn ended_jobs(&self) -> Result<(Vec<EndedJob>, i64), StoreError> {
        self.read(|connection| {
            let failed = during("count jobs");
            // Both see the same state of the database.
            let both = connection.unchecked_transaction().map_err(&failed)?;
            let last = both
                .query_row("SELECT coalesce(max(id), 0) FROM events", [], |row| row.get(0))
                .map_err(&failed)?;
            let mut statement = both
                .prepare(
                    "SELECT kind, state, max(finished_at - started_at, 0) AS took FROM jobs WHERE \
                     finished_at IS NOT NULL",
                )
                .map_err(&failed)?;
            let mut rows = statement.query([]).map_err(&failed)?;
            let mut jobs = Vec::new();
            while let Some(row) = rows.next().map_err(&failed)? {
                // What a later version wrote is not counted; it must not keep this one from starting.
                let (Ok(state), Ok(kind)) =
                    (parsed::<JobState>(row, "state"), parsed::<JobKind>(row, "kind"))
                else {
                    continue;
                };
                let Some(outcome) = state.outcome() else { continue };
                let took: Option<i64> = column(row, "took")?;
                let took = took.and_then(|micros| u64::try_from(micros).ok());
                jobs.push(EndedJob { kind, outcome, took: took.map(Duration::from_micros) });
            }
            Ok((jobs, last))
        })
        .await
    }
}
