//! The heartbeat: once a minute an empty transaction whose time and place are noted.
//!
//! A time can be restored only when a later commit is in the archive, so an idle server would have
//! no fresh moment; and only known commits tell at which WAL segment a moment is.

use std::time::Duration;

use tokio::time::sleep;

use super::context::{Context, ServerSide};
use crate::clock;
use crate::domain::plan::Sample;
use crate::postgres::client::{Connection, QueryError};
use crate::postgres::supervisor::Status;
use crate::store::StoreError;

/// How often old commits are thinned out.
const PRUNE_EVERY: u32 = 600;
/// How soon a beat that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Why there was no beat.
#[derive(Debug, thiserror::Error)]
pub(super) enum MissedBeat {
    /// The server did not commit.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// It could not be noted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Beats as long as Headrest runs, whenever the server takes writes.
pub async fn run(context: Context) {
    let Some(side) = context.server.clone().filter(|side| !side.heartbeat.is_zero()) else {
        return;
    };
    let work = beat_for_ever(&context, &side);
    let _ = context.shutdown.run_until_cancelled(work).await;
}

async fn beat_for_ever(context: &Context, side: &ServerSide) {
    let mut connection: Option<Connection> = None;
    let mut beats = 0;
    loop {
        let ready = context.postgres.wait_until(Duration::from_hours(24), Status::takes_writes);
        if ready.await.is_err() {
            continue;
        }
        if connection.is_none() {
            connection = match context.postgres.status().address {
                Some(address) => Connection::open(&address, || {}).await.ok(),
                None => None,
            };
        }
        let beaten = match &connection {
            Some(open) => beat(context, side, open).await.map(|_| true),
            None => Ok(false),
        };
        match beaten {
            Ok(true) => {
                if beats % PRUNE_EVERY == 0 {
                    prune(context, side).await;
                }
                beats += 1;
                sleep(side.heartbeat).await;
            }
            Ok(false) => sleep(TRY_AGAIN.min(side.heartbeat)).await,
            Err(error) => {
                let error = crate::telemetry::chain(&error);
                tracing::warn!("no heartbeat commit: {error}");
                connection = None;
                sleep(TRY_AGAIN.min(side.heartbeat)).await;
            }
        }
    }
}

/// One beat.
pub(super) async fn beat(
    context: &Context,
    side: &ServerSide,
    connection: &Connection,
) -> Result<Sample, MissedBeat> {
    let sample = connection.commit_sample().await?;
    note(context, side, sample).await?;
    Ok(sample)
}

/// Notes a commit, and the timeline that it was made on.
pub(super) async fn note(
    context: &Context,
    side: &ServerSide,
    sample: Sample,
) -> Result<(), StoreError> {
    let store = &context.store;
    store.add_timeline(side.stanza.clone(), sample.timeline, sample.at).await?;
    store.add_commit(side.stanza.clone(), sample).await
}

/// Forgets what no backup reaches back to any more.
async fn prune(context: &Context, side: &ServerSide) {
    let oldest =
        context.catalog.last(&side.stanza).and_then(Result::ok).and_then(|seen| {
            seen.stanza.backups.iter().filter_map(|backup| backup.started_at).min()
        });
    let pruned = context.store.prune_commits(side.stanza.clone(), oldest, clock::now()).await;
    if let Err(error) = pruned {
        tracing::warn!("known commits were not thinned out: {}", crate::telemetry::chain(&error));
    }
}
