//! What everybody holds of the queue.

use std::collections::BTreeMap;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::{Command, Lane, LaneView, Queue, SteerOrder, views};
use crate::domain::StanzaName;
use crate::domain::job::{Job, JobId};
use crate::domain::restore::{BootAction, Journal, Steer};
use crate::jobs::context::Context;
use crate::jobs::submission::{Denied, Submission};
use crate::pulse::Pulse;
use crate::store::Store;

/// A handle to the queue; clones share it.
#[derive(Debug, Clone)]
pub struct JobsHandle {
    commands: mpsc::Sender<Command>,
    lanes: watch::Receiver<BTreeMap<StanzaName, LaneView>>,
    store: Store,
    events: watch::Receiver<i64>,
}

impl JobsHandle {
    /// Starts the queue's task.
    pub fn spawn(
        context: Context,
        stanzas: impl IntoIterator<Item = StanzaName>,
        pulse: Pulse,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (commands, inbox) = mpsc::channel(64);
        let lanes: BTreeMap<_, _> = stanzas.into_iter().map(|s| (s, Lane::default())).collect();
        let (publish, views) = watch::channel(views(&lanes));
        let handle = Self {
            commands: commands.clone(),
            lanes: views,
            store: context.store.clone(),
            events: context.wake.subscribe(),
        };
        let queue = Queue { context, lanes, publish, work: JoinSet::new(), own: commands };
        (handle, tokio::spawn(queue.run(inbox, pulse)))
    }

    /// Asks for a job. Answers it as it was accepted.
    pub async fn submit(&self, submission: Submission) -> Result<Job, Denied> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Submit(Box::new(submission), reply);
        self.commands.send(command).await.map_err(|_| Denied::ShuttingDown)?;
        answer.await.map_err(|_| Denied::ShuttingDown)?
    }

    /// Goes on with a restore that an earlier Headrest began.
    pub async fn resume(&self, job: Job, journal: Journal, action: BootAction) {
        // Only at the start, when the queue is there.
        let _ = self.commands.send(Command::Resume(Box::new((job, journal, action)))).await;
    }

    /// Asks for a job's end. Answers the job as it stands then.
    pub async fn cancel(&self, job: JobId, by: &str) -> Result<Job, Denied> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Cancel(job, by.to_owned(), reply);
        self.commands.send(command).await.map_err(|_| Denied::ShuttingDown)?;
        answer.await.map_err(|_| Denied::ShuttingDown)?
    }

    /// Decides about a restore that waits. Answers the job as it stands once the decision is
    /// written down.
    pub async fn steer(&self, job: JobId, steer: Steer, by: &str) -> Result<Job, Denied> {
        let (reply, answer) = oneshot::channel();
        let order = Box::new(SteerOrder { steer, by: by.to_owned(), reply });
        self.commands.send(Command::Steer(job, order)).await.map_err(|_| Denied::ShuttingDown)?;
        // A restore that ends or goes on in this very moment answers nothing.
        answer.await.map_err(|_| Denied::NoRestore(job))??;
        self.store.job(job).await?.ok_or(Denied::NoSuchJob(job))
    }

    /// Waits for a job's end. Cancel safe; the job goes on when nobody waits.
    pub async fn finished(&self, id: JobId) -> Result<Job, Denied> {
        let mut events = self.events.clone();
        loop {
            events.borrow_and_update();
            match self.store.job(id).await? {
                Some(job) if job.state.is_final() => return Ok(job),
                Some(_) => {}
                None => return Err(Denied::NoSuchJob(id)),
            }
            events.changed().await.map_err(|_| Denied::ShuttingDown)?;
        }
    }

    /// What a stanza's lane is doing.
    pub fn lane(&self, stanza: &StanzaName) -> Option<LaneView> {
        self.lanes.borrow().get(stanza).cloned()
    }

    /// Follows the id of the newest stored event.
    pub fn events(&self) -> watch::Receiver<i64> {
        self.events.clone()
    }
}
