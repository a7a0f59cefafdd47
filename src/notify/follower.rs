//! Job events become notifications, each once: rows and the place where to go on are stored
//! together. A job knows nothing of it, and never waits for it.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Notifier;
use crate::domain::JobState;
use crate::domain::event::{Event, of_job, of_wait};
use crate::domain::restore::Awaiting;
use crate::store::{StoreError, StoredEvent};
use crate::telemetry;

/// Events read from the store at once.
const BATCH: u32 = 200;
/// How soon the store is asked again when it could not answer.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// The data of a `state` event.
#[derive(Debug, Deserialize)]
struct Change {
    state: JobState,
    /// It has not changed: a restore waits, for this.
    awaiting: Option<Awaiting>,
}

/// Follows the events of all jobs after `cursor`, until `last_look`, after which it looks once
/// more.
pub(super) async fn run(
    notifier: Notifier,
    mut newest: watch::Receiver<i64>,
    mut cursor: i64,
    last_look: CancellationToken,
) {
    loop {
        let last = last_look.is_cancelled();
        // Read before the store is: what is stored later wakes again.
        let stored = *newest.borrow_and_update();
        let looked = look(&notifier, &mut cursor, stored).await;
        if last {
            return;
        }
        let wait = async {
            match looked {
                Ok(()) if newest.changed().await.is_ok() => {}
                Ok(()) => std::future::pending().await,
                Err(error) => {
                    let error = telemetry::chain(&error);
                    tracing::error!("job events are not turned into notifications: {error}");
                    sleep(TRY_AGAIN).await;
                }
            }
        };
        let _ = last_look.run_until_cancelled(wait).await;
    }
}

/// Turns everything after `cursor` into notifications, and moves it.
async fn look(notifier: &Notifier, cursor: &mut i64, stored: i64) -> Result<(), StoreError> {
    let store = &notifier.0.store;
    loop {
        let changes = store.events(None, *cursor, Some("state"), BATCH).await?;
        let Some(last) = changes.last().map(|change| change.id) else {
            // Lines of logs are not read over and over.
            *cursor = stored.max(*cursor);
            return Ok(());
        };
        let mut notices = Vec::new();
        for change in changes {
            if let Some(event) = event_of(notifier, &change).await? {
                notices.extend(notifier.routed(&event));
            }
        }
        store.add_job_notices(notices, last).await?;
        *cursor = last;
        notifier.wake();
    }
}

/// What a change of a job's state tells.
async fn event_of(notifier: &Notifier, change: &StoredEvent) -> Result<Option<Event>, StoreError> {
    let id = change.job;
    let job = match notifier.0.store.job(id).await {
        Ok(job) => job,
        Err(error @ StoreError::Unreadable { .. }) => {
            tracing::error!(job.id = %id, "job {id} is told to nobody: {}", telemetry::chain(&error));
            None
        }
        Err(error) => return Err(error),
    };
    let (Some(mut job), Ok(then)) = (job, serde_json::from_str::<Change>(&change.text)) else {
        return Ok(None);
    };
    if let Some(awaiting) = then.awaiting {
        return Ok(Some(of_wait(&job, awaiting, change.at)));
    }
    if then.state == JobState::Running {
        // A restore that goes on after a restart has begun once only.
        let first = notifier.0.store.events(Some(id), 0, Some("state"), 1).await?;
        if first.first().is_some_and(|first| first.id != change.id) {
            return Ok(None);
        }
    }
    // The job may have gone on since.
    job.state = then.state;
    if !then.state.is_final() {
        (job.result, job.error, job.finished_at) = (None, None, None::<Timestamp>);
    }
    Ok(of_job(&job))
}
