//! A server that is where recovery ends: looked at, shown to somebody if they asked for it, promoted.

use std::time::Duration;

use tokio::time::sleep;

use super::super::worker::problem;
use super::{Next, Run, Stop};
use crate::domain::recovery::RecoveryTarget;
use crate::domain::restore::{Awaiting, Phase, Wait, promoted};
use crate::pgbackrest::log::Level;
use crate::postgres::client::{Connection, RecoveryFacts};

/// How often a paused server, and whether somebody has decided, is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Run<'_> {
    /// Whether the server ended where it should. Looked at before anything is promoted.
    pub(super) fn verify(&self, facts: &RecoveryFacts) -> Result<(), Stop> {
        if let (Some(end), Some(replayed)) = (self.journal.accepted_end, facts.replayed)
            && replayed > end
        {
            return Err(Stop::NeedsOperator(problem(
                "recovery-failed",
                format!("recovery went past the accepted end {end}, to {replayed}"),
                &["Nothing was promoted. Restore again."],
            )));
        }
        if let Some(position) = self.journal.position
            && facts.replayed != Some(position)
            && self.journal.accepted_end.is_none()
            && self.journal.cut.is_none()
        {
            let reached = facts.replayed.map_or("nowhere".to_owned(), |lsn| lsn.to_string());
            return Err(Stop::NeedsOperator(problem(
                "recovery-failed",
                format!(
                    "{} is at {position}, but recovery ended at {reached}",
                    self.journal.target
                ),
                &["Nothing was promoted. Restore again."],
            )));
        }
        let RecoveryTarget::Time { value, exclusive } = &self.journal.target else {
            return Ok(());
        };
        // None was replayed, then, since the set's own end.
        let Some(last) = self.result.last_commit_at else { return Ok(()) };
        if last < *value || last == *value && !exclusive {
            return Ok(());
        }
        Err(Stop::NeedsOperator(problem(
            "recovery-failed",
            format!("recovery went past the target {value}: its last commit is of {last}"),
            &["Nothing was promoted. Restore again."],
        )))
    }

    /// Paused, for somebody to look and decide. `Next::Unfence` when it is to be promoted.
    pub(super) async fn wait_at_the_target(
        &mut self,
        connection: &Connection,
    ) -> Result<Next, Stop> {
        let last = self.result.last_commit_at.map_or("unknown".to_owned(), |at| at.to_string());
        let text = format!(
            "the last commit is of {last}. Look at the data, then promote it, choose another target, or \
             abandon the restore"
        );
        self.wait_for_decision(connection, Wait::of(Awaiting::Target, text)).await
    }

    /// Waits until somebody has decided about a server that is paused where recovery ends.
    pub(super) async fn wait_for_decision(
        &mut self,
        connection: &Connection,
        wait: Wait,
    ) -> Result<Next, Stop> {
        self.wait_for(Some(wait), true).await;
        loop {
            self.shutting_down()?;
            if let Some(order) = self.decision()
                && let Some(next) = self.obey(order, true).await?
            {
                return Ok(next);
            }
            // A server that is killed here is started again, and comes to the same place.
            if !connection.recovery().await.is_ok_and(|facts| facts.in_recovery) {
                self.recorder
                    .say(Level::Warn, "the paused server is gone; starting it again")
                    .await;
                self.stop_server().await?;
                return Ok(Next::Recover);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Promotes, and believes it only when the control data shows it.
    pub(super) async fn promote(&mut self, connection: &Connection) -> Result<Next, Stop> {
        self.enter(Phase::Promoting).await?;
        let asked = connection.promote().await;
        // The journal says "promoting"; the next start looks at the control data.
        self.shutting_down()?;
        if let Err(error) = asked {
            // What counts is what the control data shows once nobody changes it any more.
            self.recorder.say(Level::Warn, format!("promotion: {error}")).await;
            self.stop_server().await?;
        }
        let control = self.control().await.map(|control| control.facts());
        match control {
            Some(facts) if facts.out_of_recovery && promoted(&self.journal, facts) => {
                self.result.timeline = Some(facts.timeline);
                if let Err(error) = self.keep_histories() {
                    let text = format!("the history of the new timeline was not kept: {error}");
                    self.recorder.say(Level::Warn, text).await;
                }
                if self.journal.role_missing {
                    // Afterwards nobody of ours can.
                    self.tidy_settings(connection).await;
                }
                self.unmark_databases(connection).await;
                Ok(Next::Unfence)
            }
            // A crash between promotion and checkpoint would come up on the old timeline with rows
            // past the target: only a new restore is certain.
            Some(_) | None => {
                let message = "PostgreSQL was promoted, but its control data does not show a new \
                               timeline";
                self.recorder.say(Level::Warn, format!("{message}; restoring again")).await;
                self.stop_server().await?;
                self.promotion_failed(message.to_owned())
            }
        }
    }
}
