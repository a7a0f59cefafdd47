//! The tick of every minute, by tokio-cron-scheduler. It decides nothing: what is due is
//! `domain::schedule`'s business. It is what notices a clock that was set.

use tokio::sync::mpsc;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

/// At second 0 of every minute, in UTC. (Its own dialect: seconds first.)
const EVERY_MINUTE: &str = "0 * * * * *";

/// Starts the ticks. They end when the returned scheduler is shut down.
pub(super) async fn start(tick: mpsc::Sender<()>) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    let job = Job::new_async(EVERY_MINUTE, move |_, _| {
        let tick = tick.clone();
        Box::pin(async move {
            // A tick that nobody has taken yet is enough.
            let _ = tick.try_send(());
        })
    })?;
    scheduler.add(job).await?;
    scheduler.start().await?;
    Ok(scheduler)
}
