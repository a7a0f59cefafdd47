//! What somebody decides about a restore that waits.

use tokio::time::{Duration, Instant};

use super::super::queue::SteerOrder;
use super::super::submission::Denied;
use super::super::worker::problem;
use super::{Next, Run, Stop};
use crate::clock;
use crate::domain::recovery::OnReached;
use crate::domain::restore::{Awaiting, NewTarget, NotNow, Phase, Steer, Wait};
use crate::pgbackrest::log::Level;

/// How soon what comes and goes by itself is notified again.
const TELL_AGAIN: Duration = Duration::from_mins(10);

impl Run<'_> {
    /// Notes what the restore waits for, for everybody to see. `consistent` is whether the server
    /// can be looked at.
    pub(super) async fn wait_for(&mut self, wait: Option<Wait>, consistent: bool) {
        let (before, now) = (self.journal.awaiting, clock::now());
        let changed = self.journal.wait_for(wait.as_ref(), now);
        if !changed && self.journal.consistent == consistent {
            return;
        }
        self.journal.consistent = consistent;
        if let Err(error) = self.write_journal().await {
            self.recorder.say(Level::Warn, error.message).await;
        }
        let reason = wait.as_ref().map(|wait| wait.reason);
        self.helm.phases.tell(self.journal.phase, reason).await;
        let Some(wait) = wait.filter(|_| changed) else { return };
        let text = self.journal.waiting_text();
        self.recorder.stands_at(&text).await;
        self.waiting_for = Some(text.clone());
        self.recorder.say(Level::Warn, text).await;
        // What comes and goes by itself is notified once in a while only.
        let is_told = self.told.get(&wait.reason).is_some_and(|at| at.elapsed() < TELL_AGAIN);
        let comes_and_goes = matches!(wait.reason, Awaiting::Repository | Awaiting::Standstill);
        if before != Some(wait.reason) && !(comes_and_goes && is_told)
            || before == Some(wait.reason) && wait.reason == Awaiting::Gap
        {
            self.told.insert(wait.reason, Instant::now());
            self.recorder.waits(wait.reason).await;
        }
    }

    /// Nothing is waited for any more.
    pub(super) async fn wait_no_more(&mut self) {
        self.waiting_for = None;
        self.wait_for(None, self.journal.consistent).await;
    }

    /// A decision that came in meanwhile.
    pub(super) fn decision(&mut self) -> Option<SteerOrder> {
        self.helm.steering.try_recv().ok()
    }

    /// Carries a decision out: writes it down, answers, and says how to go on. `None` when it is
    /// refused, and the restore waits on.
    pub(super) async fn obey(
        &mut self,
        order: SteerOrder,
        consistent: bool,
    ) -> Result<Option<Next>, Stop> {
        let SteerOrder { steer, by, reply } = order;
        let id = self.journal.id;
        let refuse = |why| Err(Denied::NotNow { job: id, why });
        if let Err(why) = steer.allowed(self.journal.phase, self.journal.awaiting) {
            let _ = reply.send(refuse(why));
            return Ok(None);
        }
        let known = consistent && self.last_replayed.is_some();
        if matches!(steer, Steer::Promote { .. }) && !known {
            let _ = reply.send(refuse(NotNow::NotConsistent));
            return Ok(None);
        }
        let before = self.journal.clone();
        let (text, next) = match steer {
            Steer::Promote { accept } => {
                self.journal.on_reached = OnReached::Promote;
                self.journal.accept.extend(accept);
                match self.journal.awaiting {
                    Some(Awaiting::Target | Awaiting::Destroyed) | None => {
                        ("promote".to_owned(), Next::Unfence)
                    }
                    Some(_) => self.end_here("promote").await?,
                }
            }
            Steer::Retarget(new) => {
                let next = self.point_at(*new);
                self.journal.abandoned = false;
                next
            }
            Steer::Abandon(new) => {
                self.journal.abandoned = true;
                // What was there before was the whole cluster.
                self.journal.databases.clear();
                let (_, next) = self.point_at(NewTarget { on_reached: OnReached::Promote, ..*new });
                ("abandoned: bringing back what was there before".to_owned(), next)
            }
        };
        match next {
            // The journal must not say "restoring" while a server runs, nor name the new set while
            // it says that the files are those of the old one.
            Next::Restore => {
                self.stop_server().await?;
                self.journal.phase = Phase::Restoring;
            }
            Next::Recover => self.journal.phase = Phase::Recovering,
            Next::Unfence => {}
        }
        self.journal.wait_for(None, clock::now());
        if let Err(error) = self.write_journal().await {
            self.journal = before;
            let message = error.message.clone();
            let _ = reply.send(Err(Denied::NotWritten(message)));
            self.recorder.say(Level::Warn, error.message).await;
            return Ok(None);
        }
        self.recorder.say(Level::Info, format!("{by}: {text}")).await;
        self.helm.phases.tell(self.journal.phase, None).await;
        // Who asked may have gone; it is decided all the same.
        let _ = reply.send(Ok(()));
        if next == Next::Recover {
            self.stop_server().await?;
        }
        Ok(Some(next))
    }

    /// Ends recovery where it stands, whatever WAL comes back in this moment. Promoted with a target
    /// that it has not reached a server would end itself (tested with 15, 17 and 18), so it is
    /// started again without one, and without WAL beyond. The server is down afterwards.
    pub(super) async fn end_here(&mut self, what: &str) -> Result<(String, Next), Stop> {
        let end = self.last_replayed;
        self.stop_server().await?;
        let written = self.control().await.map(|control| control.min_recovery_end);
        match (end, written) {
            (Some(end), Some(written)) if written <= end => {
                self.journal.accepted_end = Some(end);
                Ok((format!("{what} at {end}; what comes after it is left out"), Next::Recover))
            }
            // What was missing came back before the server had stopped.
            _ => Ok(("the missing WAL is back; going on to the target".to_owned(), Next::Recover)),
        }
    }

    fn point_at(&mut self, new: NewTarget) -> (String, Next) {
        let forward = !self.journal.abandoned && self.journal.is_forward(&new, self.last_replayed);
        let text = format!("another target: {}", new.target);
        let (set, repo) = (self.journal.set.clone(), self.journal.repo);
        self.journal.retarget(new);
        if forward {
            // What was copied stays.
            (self.journal.set, self.journal.repo) = (set, repo);
            return (text, Next::Recover);
        }
        self.result.set = Some(self.journal.set.clone());
        self.result.repo = Some(self.journal.repo);
        (text, Next::Restore)
    }

    /// Waits until there is no reason to wait any more.
    pub(super) fn shutting_down(&self) -> Result<(), Stop> {
        if self.context.shutdown.is_cancelled() { Err(Stop::Later) } else { Ok(()) }
    }

    /// Too many promotions that did not hold.
    pub(super) fn promotion_failed(&mut self, message: String) -> Result<Next, Stop> {
        self.journal.promotions += 1;
        self.journal.last_error = Some(message.clone());
        if self.journal.promotions >= super::TRIES {
            return Err(Stop::NeedsOperator(problem("recovery-failed", message, &[])));
        }
        Ok(Next::Restore)
    }
}
