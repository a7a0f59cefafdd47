//! Following a fenced server to the end of its recovery, and promoting it.
//!
//! With a target the end is where the server pauses by itself. Without one it is where WAL stops: the
//! server waits for a segment that nobody has. The same waiting, for a segment that the archive has
//! or should have, is a gap; then it goes on waiting, says for what, and takes decisions.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::worker::problem;
use super::waiting::{SAY_EVERY, Still, Waiting};
use super::{Next, Run, Stop};
use crate::domain::WalSegment;
use crate::domain::recovery::{OnReached, RecoveryTarget};
use crate::domain::restore::{Awaiting, Phase};
use crate::pgbackrest::command::{all_but, histories_only};
use crate::pgbackrest::log::Level;
use crate::postgres::client::{Connection, RecoveryFacts};
use crate::postgres::pg_wal;
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::{FencedStart, Order};

/// How often recovery is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// How often a fenced server that leaves is started again.
const STARTS: u32 = 5;

/// How a look at recovery came out.
enum Seen {
    /// It goes on.
    Going,
    /// It is where it should end; this is what it shows.
    Ended(RecoveryFacts),
    /// Somebody decided otherwise.
    Elsewhere(Next),
}

/// What is remembered from look to look.
pub(super) struct Following {
    pub(super) connection: Option<Connection>,
    pub(super) starts: u32,
    pub(super) still: Still,
    pub(super) said: Option<Instant>,
    /// What the title of the startup process was before consistency, and since when.
    pub(super) title: Option<(String, Instant)>,
    pub(super) doubted: Option<Instant>,
}

impl Run<'_> {
    /// Starts the server fenced, follows it to where it should end, looks, and promotes or waits.
    pub(super) async fn follow_recovery(&mut self) -> Result<Next, Stop> {
        let mut following = Following {
            connection: None,
            starts: 0,
            still: None,
            said: None,
            title: None,
            doubted: None,
        };
        let facts = loop {
            match self.look(&mut following).await? {
                Seen::Going => sleep(LOOK_EVERY).await,
                Seen::Ended(facts) => break facts,
                Seen::Elsewhere(next) => return Ok(next),
            }
        };
        let Some(connection) = following.connection else { return Ok(Next::Recover) };
        self.result.replayed_lsn = facts.replayed;
        self.verify(&facts)?;
        self.enter(Phase::Verified).await?;
        let text = format!(
            "replayed to {}, last commit {}",
            facts.replayed.map_or("-".to_owned(), |lsn| lsn.to_string()),
            self.result.last_commit_at.map_or("unknown".to_owned(), |at| at.to_string())
        );
        self.recorder.say(Level::Info, text).await;
        if self.journal.on_reached == OnReached::Pause {
            match self.wait_at_the_target(&connection).await? {
                Next::Unfence => {}
                other => return Ok(other),
            }
        }
        self.promote(&connection).await
    }

    /// One look at a recovering server.
    async fn look(&mut self, following: &mut Following) -> Result<Seen, Stop> {
        self.shutting_down()?;
        let status = self.context.postgres.status();
        match status.state {
            ServerState::Down | ServerState::Failed => {
                following.connection = None;
                self.start_again(following, status.state, status.reason).await?;
            }
            ServerState::Ready => {
                let message = "PostgreSQL was promoted by hand before the restore was decided";
                let text = format!("{message}; restoring again");
                self.recorder.say(Level::Warn, text).await;
                self.stop_server().await?;
                return Ok(Seen::Elsewhere(self.promotion_failed(message.to_owned())?));
            }
            // The supervisor starts it as soon as nothing is in the way.
            ServerState::BackingOff
            | ServerState::Starting
            | ServerState::Recovering
            | ServerState::Stopping => {}
        }
        if following.connection.is_none() && status.state == ServerState::Recovering {
            following.connection = self.connect().await;
        }
        let facts = match &following.connection {
            Some(open) => open.recovery().await.ok(),
            None => None,
        };
        if let Some(order) = self.decision()
            && let Some(next) = self.obey(order, facts.is_some()).await?
        {
            return Ok(Seen::Elsewhere(next));
        }
        let Some(facts) = facts else {
            following.connection = None;
            following.still = None;
            self.look_before_consistency(following).await;
            return Ok(Seen::Going);
        };
        self.tell_progress(&facts).await;
        if facts.paused {
            return self.on_pause(facts).await;
        }
        match self.standstill(&facts, &mut following.still) {
            None => {}
            Some(_) if self.journal.accepted_end.is_some() => return self.at_the_cut(facts).await,
            Some(_)
                if facts.replayed.is_some() && facts.replayed == self.journal.accepted_before =>
            {
                return self.end_and_start_again().await;
            }
            Some(Waiting::AtGap(segment)) => {
                self.wait_for(Some(Awaiting::Gap), Some(segment)).await;
                if following.said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                    following.said = Some(Instant::now());
                    self.say_gap(segment).await;
                }
            }
            Some(Waiting::AtTheEnd(segment)) => {
                return self.at_the_end(segment, facts, following).await;
            }
        }
        Ok(Seen::Going)
    }

    /// A server that is down, in the middle of recovery, is started again.
    async fn start_again(
        &mut self,
        following: &mut Following,
        state: ServerState,
        reason: Option<String>,
    ) -> Result<(), Stop> {
        let starts = following.starts;
        if starts >= STARTS || state == ServerState::Failed && starts > 0 {
            let reason = reason.unwrap_or_default();
            return Err(Stop::NeedsOperator(problem(
                "recovery-failed",
                format!("PostgreSQL does not recover: {reason}"),
                &["Look at GET /api/v1/processes/postgres/log."],
            )));
        }
        // What made it leave may take a moment to go away.
        sleep(Duration::from_millis(500) * starts).await;
        following.starts += 1;
        self.start_fenced().await
    }

    async fn start_fenced(&mut self) -> Result<(), Stop> {
        let timeline = self.journal.timeline;
        let accepted = self.journal.accepted_end.is_some();
        if let Some(end) = self.journal.accepted_end {
            let pg_wal = self.side.data_dir.join("pg_wal");
            pg_wal::cut(&pg_wal, end, self.segment_size()).map_err(|error| {
                let message = format!("cannot end the WAL in pg_wal at {end}: {error}");
                Stop::NeedsOperator(problem("storage-write", message, &[]))
            })?;
        }
        let fenced = FencedStart {
            timeline: timeline.map_or_else(|| "latest".to_owned(), |t| t.to_string()),
            setting_floors: self.journal.setting_floors.clone(),
            // Before an accepted end there is no target, and no more WAL either: if what is missing
            // came back now, nothing would stop recovery at the target.
            target: if accepted { Vec::new() } else { self.journal.target.settings() },
            restore_command: match (accepted, &self.journal.left_in) {
                (true, _) => Some(histories_only(&self.side.archive_get)),
                (false, left) if left.is_empty() => None,
                (false, left) => Some(all_but(&self.side.archive_get, left.keys())),
            },
        };
        self.order(Order::StartFenced(fenced)).await.map_err(|refusal| {
            Stop::NeedsOperator(problem("postgres-unavailable", refusal.to_string(), &[]))
        })
    }

    /// A paused server is at its target, or met a setting in the WAL that is higher than its own.
    async fn on_pause(&mut self, facts: RecoveryFacts) -> Result<Seen, Stop> {
        if let Some(control) = self.control().await {
            let too_low = |(name, value): (&String, &u64)| {
                self.journal.setting_floors.get(name).is_none_or(|floor| value > floor)
            };
            if control.setting_floors.iter().any(too_low) {
                let text = "a setting was raised in the WAL; starting again with it";
                self.recorder.say(Level::Info, text).await;
                self.learn_from_restored(&control);
                self.stop_server().await?;
                return Ok(Seen::Elsewhere(Next::Recover));
            }
        }
        let at_a_target = self.journal.accepted_end.is_none()
            && !self.journal.target.settings().is_empty()
            && !matches!(self.journal.awaiting, Some(Awaiting::Gap | Awaiting::End));
        if at_a_target {
            return Ok(Seen::Ended(facts));
        }
        // By hand, or at a target that is the very first thing after what was waited for: a pause by hand
        // is gone after a start, the target is met again. Resuming would promote at a target.
        let text = "recovery is paused where no target is known to be; starting again to tell";
        self.recorder.say(Level::Warn, text).await;
        self.wait_for(None, None).await;
        self.stop_server().await?;
        Ok(Seen::Elsewhere(Next::Recover))
    }

    /// Recovery ends where it stands.
    async fn end_and_start_again(&mut self) -> Result<Seen, Stop> {
        let (text, next) = self.end_here("ending").await?;
        self.recorder.say(Level::Info, text).await;
        self.write_journal().await.map_err(|error| self.give_up(error))?;
        Ok(Seen::Elsewhere(next))
    }

    /// There is no more WAL up to the accepted end, which is where it was cut.
    async fn at_the_cut(&mut self, facts: RecoveryFacts) -> Result<Seen, Stop> {
        if facts.replayed >= self.journal.accepted_end {
            return Ok(Seen::Ended(facts));
        }
        // Something that was there before is not there any more: only the archive has it.
        let text = "WAL before the accepted end is missing; restoring again";
        self.recorder.say(Level::Warn, text).await;
        self.stop_server().await?;
        Ok(Seen::Elsewhere(Next::Restore))
    }

    /// There is no more WAL. Without a target that is where recovery should end.
    async fn at_the_end(
        &mut self,
        wanted: WalSegment,
        facts: RecoveryFacts,
        following: &mut Following,
    ) -> Result<Seen, Stop> {
        // The repository is not asked more than once a second.
        if following.doubted.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return Ok(Seen::Going);
        }
        if let Some((doubt, awaiting)) = self.doubt(wanted).await {
            following.still = None;
            following.doubted = Some(Instant::now());
            self.wait_for(awaiting, awaiting.map(|_| wanted)).await;
            self.waiting_for = Some(doubt.clone());
            self.recorder.stands_at(&doubt).await;
            if following.said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                following.said = Some(Instant::now());
                self.recorder.say(Level::Warn, doubt).await;
            }
            return Ok(Seen::Going);
        }
        if self.journal.target == RecoveryTarget::Latest {
            return Ok(Seen::Ended(facts));
        }
        if self.journal.ends_at_the_target() {
            let text = "nothing was committed between the last commit and the target";
            self.recorder.say(Level::Info, text).await;
            return self.end_and_start_again().await;
        }
        following.doubted = Some(Instant::now());
        self.wait_for(Some(Awaiting::End), Some(wanted)).await;
        let last = self.result.last_commit_at.map_or("unknown".to_owned(), |at| at.to_string());
        let text = format!(
            "the WAL ends before {}: the last commit is of {last}. Choose another target, promote \
             it as it is (accepting \"target\"), or abandon the restore",
            self.journal.target
        );
        self.waiting_for = Some(text.clone());
        self.recorder.stands_at(&text).await;
        if following.said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            following.said = Some(Instant::now());
            self.recorder.say(Level::Warn, text).await;
        }
        Ok(Seen::Going)
    }

    async fn tell_progress(&mut self, facts: &RecoveryFacts) {
        let size = self.segment_size();
        let end = self.journal.archived_until.as_deref();
        let end = end.and_then(|name| WalSegment::parse(name, size).ok()).map(|s| s.end());
        let Some(replayed) = facts.replayed else { return };
        // A server that was started again knows only of commits since.
        self.result.last_commit_at = facts.last_commit_at.or(self.result.last_commit_at);
        let start = *self.first_replayed.get_or_insert(replayed);
        if self.last_replayed != Some(replayed) {
            // It moves again.
            self.last_replayed = Some(replayed);
            self.waiting_for = None;
            if self.journal.awaiting.is_some() {
                self.wait_for(None, None).await;
            }
        }
        let waiting = self.waiting_for.clone();
        self.recorder
            .progress(|progress| {
                progress.bytes_done = Some(replayed.bytes_since(start));
                progress.bytes_total = end.map(|end| end.bytes_since(start));
                let commit = facts.last_commit_at.map_or(String::new(), |at| format!(", {at}"));
                progress.phase = Some(match waiting {
                    Some(waiting) => waiting,
                    None => format!("recovering: replayed to {replayed}{commit}"),
                });
            })
            .await;
    }
}
