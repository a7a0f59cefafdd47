//! Counts jobs as they end, for the metrics: those of the history first, then each one that follows.
//!
//! It reads what is stored and changes nothing. What is counted survives a restart, because it is
//! counted again.

use std::time::Duration;

use tokio::sync::watch;

use crate::domain::job::{Job, JobState};
use crate::metrics::Metrics;
use crate::store::{EndedJob, Store, StoreError};

/// Events that are read at once.
const BATCH: u32 = 500;
/// The jobs of the history are counted, as of one moment.
#[derive(Debug)]
pub struct Counted {
    last_event: i64,
}

/// Counts the jobs of the history. Before the first scrape: counters that begin at 0 and jump would
/// look like that many jobs at once.
pub async fn history(store: &Store, metrics: &Metrics) -> Result<Counted, StoreError> {
    let (jobs, last_event) = store.ended_jobs().await?;
    for job in jobs {
        metrics.job_ended(job);
    }
    Ok(Counted { last_event })
}

/// Counts what follows, until Headrest ends. `events` follows the id of the newest stored event.
pub async fn follow(
    store: Store,
    mut events: watch::Receiver<i64>,
    metrics: Metrics,
    counted: Counted,
) {
    let mut last = counted.last_event;
    loop {
        let stored = *events.borrow_and_update();
        if let Err(error) = news(&store, &metrics, &mut last, stored).await {
            // The next event leads here again, and nothing was passed over.
            tracing::warn!("jobs are not counted: {}", crate::telemetry::chain(&error));
        }
        if events.changed().await.is_err() {
            return;
        }
    }
}

async fn news(
    store: &Store,
    metrics: &Metrics,
    last: &mut i64,
    stored: i64,
) -> Result<(), StoreError> {
    loop {
        let events = store.events(None, *last, Some("state"), BATCH).await?;
        if events.is_empty() {
            // Lines of logs are not read over and over.
            *last = stored.max(*last);
            return Ok(());
        }
        for event in events {
            if ends_a_job(&event.text) {
                match store.job(event.job).await {
                    Ok(job) => job.as_ref().and_then(end).into_iter().for_each(|end| {
                        metrics.job_ended(end);
                    }),
                    // One that cannot be read must not end the counting of the others.
                    Err(error @ StoreError::Unreadable { .. }) => {
                        tracing::warn!("a job is not counted: {}", crate::telemetry::chain(&error));
                    }
                    Err(error) => return Err(error),
                }
            }
            *last = event.id;
        }
    }
}

/// Whether the text of a `state` event tells of a final state.
fn ends_a_job(text: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct State {
        state: JobState,
    }
    serde_json::from_str::<State>(text).is_ok_and(|said| said.state.is_final())
}

fn end(job: &Job) -> Option<EndedJob> {
    let outcome = job.state.outcome()?;
    let times = job.started_at.zip(job.finished_at);
    let took = times.map(|(start, end)| end.duration_since(start));
    let took = took.map(|took| Duration::try_from(took).unwrap_or_default());
    Some(EndedJob { kind: job.spec.kind(), outcome, took })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_final_states_end_a_job() {
        for state in JobState::ALL {
            let text = serde_json::json!({ "state": state, "outcome": state.outcome() });
            assert_eq!(ends_a_job(&text.to_string()), state.is_final(), "{state}");
        }
        assert!(!ends_a_job("{}") && !ends_a_job(""));
    }
}
