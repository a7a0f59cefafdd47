//! Between the queue and a restore that it runs: what the restore tells, what somebody decides.

use tokio::sync::{mpsc, oneshot};

use super::super::submission::Denied;
use super::{Command, Queue};
use crate::domain::job::{JobId, JobKind};
use crate::domain::restore::{Awaiting, NotNow, Phase, Steer};

/// Somebody's decision about a restore that waits.
#[derive(Debug)]
pub(in crate::jobs) struct SteerOrder {
    /// What.
    pub(in crate::jobs) steer: Steer,
    /// Who.
    pub(in crate::jobs) by: String,
    /// Answered once it is written in the journal, or refused.
    pub(in crate::jobs) reply: oneshot::Sender<Result<(), Denied>>,
}

/// Tells the queue in which phase a restore is, because that decides whether it may be cancelled.
#[derive(Clone)]
pub(in crate::jobs) struct PhaseTeller {
    pub(super) job: JobId,
    pub(super) to: mpsc::Sender<Command>,
}

/// What connects a restore with the queue: its phases go one way, decisions the other.
pub(in crate::jobs) struct Helm {
    pub(in crate::jobs) phases: PhaseTeller,
    pub(in crate::jobs) steering: mpsc::Receiver<SteerOrder>,
}

impl PhaseTeller {
    pub(in crate::jobs) async fn tell(&self, phase: Phase, awaiting: Option<Awaiting>) {
        let (known, wait) = oneshot::channel();
        if self.to.send(Command::Phase(self.job, phase, awaiting, known)).await.is_ok() {
            // The queue is gone only when Headrest is.
            let _ = wait.await;
        }
    }
}

impl Queue {
    /// Hands a decision on to the restore, unless it is plain that it waits for nothing like that.
    pub(super) async fn steer(&mut self, id: JobId, order: SteerOrder) {
        let running = self.lanes.values().filter_map(|lane| lane.running.as_ref());
        let Some(running) = running
            .into_iter()
            .find(|running| running.job.id == id && running.job.spec.kind() == JobKind::Restore)
        else {
            let known = self.context.store.job(id).await;
            let denied = match known {
                Ok(Some(_)) => Denied::NoRestore(id),
                Ok(None) => Denied::NoSuchJob(id),
                Err(error) => error.into(),
            };
            let _ = order.reply.send(Err(denied));
            return;
        };
        let phase = running.job.restore_phase.unwrap_or(Phase::Accepted);
        if let Err(why) = order.steer.allowed(phase, running.awaiting) {
            let _ = order.reply.send(Err(Denied::NotNow { job: id, why }));
            return;
        }
        let detail = order.steer.to_string();
        let (by, to) = (order.by.clone(), running.steer.clone());
        let action = match &order.steer {
            Steer::Promote { .. } => "restore.promote",
            Steer::Retarget(_) => "restore.retarget",
            Steer::Abandon(_) => "restore.abandon",
        };
        if let Err(error) = self.audit(&by, action, id.to_string(), detail).await {
            let _ = order.reply.send(Err(error.into()));
            return;
        }
        if let Err(refused) = to.try_send(order) {
            let (order, denied) = match refused {
                // Another decision has not been looked at yet.
                mpsc::error::TrySendError::Full(order) => {
                    (order, Denied::NotNow { job: id, why: NotNow::Phase(phase) })
                }
                mpsc::error::TrySendError::Closed(order) => (order, Denied::NoRestore(id)),
            };
            let _ = order.reply.send(Err(denied));
        }
    }
}
