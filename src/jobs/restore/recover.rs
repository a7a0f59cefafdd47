//! Following a fenced server to the end of its recovery, and promoting it.
//!
//! With a target the end is where the server pauses by itself. Without one it is where WAL stops: the
//! server has asked for a segment once more that no repository has (`domain::standstill`). The same
//! about a segment that should be there is a gap; then the restore waits, says for what, and takes
//! decisions. `waiting.rs` tells the reasons apart.

use std::time::Duration;

use tokio::time::sleep;

use super::super::worker::problem;
use super::waiting::{Consulted, Progress, is_about_room};
use super::{Next, Run, Stop};
use crate::clock;
use crate::domain::recovery::{OnReached, RecoveryTarget};
use crate::domain::restore::{Awaiting, Phase, Wait};
use crate::domain::standstill::{Attempt, Standstill, Watcher};
use crate::domain::{JobId, WalSegment};
use crate::pgbackrest::archive_get::end_mark;
use crate::pgbackrest::attempts;
use crate::pgbackrest::command::RestoreCommand;
use crate::pgbackrest::log::Level;
use crate::postgres::client::{Connection, RecoveryFacts};
use crate::postgres::pg_wal;
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::{FencedStart, Order};

/// How often recovery is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// How often a fenced server that leaves is started again, without having come further meanwhile.
const STARTS: u32 = 5;

/// How a look at recovery came out.
pub(super) enum Seen {
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
    starts: u32,
    /// The run of the server, for the notes of its `restore_command`.
    run: String,
    pub(super) watcher: Watcher,
    pub(super) progress: Progress,
    /// What the repository was asked about a segment.
    pub(super) consulted: Option<Consulted>,
}

impl Run<'_> {
    /// Starts the server fenced, follows it to where it should end, looks, and promotes or waits.
    pub(super) async fn follow_recovery(&mut self) -> Result<Next, Stop> {
        let mut following = Following {
            connection: None,
            starts: 0,
            run: String::new(),
            watcher: Watcher::default(),
            progress: Progress::new(),
            consulted: None,
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
        let user = self.context.postgres.status().address.map(|address| address.user);
        self.journal.role_missing = user.is_some_and(|user| user != self.side.superuser);
        self.verify(&facts)?;
        if let Some(next) = self.find_stale_tablespaces().await? {
            return Ok(next);
        }
        match self.find_destroyed(&connection, &facts).await? {
            None | Some(Next::Unfence) => {}
            Some(next) => return Ok(next),
        }
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
        self.fetch_no_more(&following.run).await;
        self.promote(&connection).await
    }

    /// One look at a recovering server.
    async fn look(&mut self, following: &mut Following) -> Result<Seen, Stop> {
        self.shutting_down()?;
        let status = self.context.postgres.status();
        match status.state {
            ServerState::Down | ServerState::Failed => {
                following.connection = None;
                if let Some(order) = self.decision()
                    && let Some(next) = self.obey(order, false).await?
                {
                    return Ok(Seen::Elsewhere(next));
                }
                return self.start_again(following, status.state, status.reason).await;
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
        // Before the position is asked for: what was replayed by then is in it.
        let attempts = self.attempts(following);
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
        if following.progress.saw(facts.as_ref(), &attempts, status.state) {
            following.consulted = None;
            if self.journal.awaiting.is_some() {
                self.wait_no_more().await;
            }
        }
        let Some(facts) = facts else {
            following.connection = None;
            return self.look_without_connection(following, &attempts, &status).await;
        };
        self.tell_progress(&facts).await;
        if facts.paused {
            return self.on_pause(facts).await;
        }
        let standstill = following.watcher.look(&attempts, facts.replayed);
        if standstill.is_some() && self.journal.accepted_end.is_some() {
            return self.at_the_cut(facts).await;
        }
        if standstill.is_some()
            && facts.replayed.is_some()
            && facts.replayed == self.journal.accepted_before
        {
            return self.end_and_start_again().await;
        }
        // Recovery stops before the record after a position; where there is none yet it has not
        // noticed that it is there.
        if standstill.is_some() && self.journal.is_at_its_position(facts.replayed) {
            return Ok(Seen::Ended(facts));
        }
        match standstill {
            None => {
                self.ask_ahead(&attempts, following).await;
                self.explain_the_wait(following, &attempts, Some(&facts), &status).await;
            }
            Some(Standstill::Failing(file, failure)) => {
                if let Some(wait) = self.cause_of(&file, &failure, following).await {
                    self.wait_for(Some(wait), true).await;
                }
            }
            Some(Standstill::Useless(file)) => {
                return self.at_a_useless_segment(&file, Some(facts), following).await;
            }
            Some(Standstill::NotFound(file)) => {
                if let Some(segment) = self.wanted_by(&file) {
                    return self.at_the_end(segment, facts, following).await;
                }
            }
        }
        Ok(Seen::Going)
    }

    /// What `restore_command` has tried since the server was started.
    fn attempts(&self, following: &Following) -> Vec<Attempt> {
        let path = self.context.journals.attempts_path(&self.journal.stanza);
        match attempts::read(&path, &following.run) {
            Ok(attempts) => attempts,
            Err(error) => {
                tracing::debug!("cannot read the notes in {}: {error}", path.display());
                Vec::new()
            }
        }
    }

    /// A server that is down, in the middle of recovery, is started again.
    async fn start_again(
        &mut self,
        following: &mut Following,
        state: ServerState,
        reason: Option<String>,
    ) -> Result<Seen, Stop> {
        let reason = reason.unwrap_or_default();
        let for_want_of_room = is_about_room(&reason);
        if for_want_of_room {
            let missing = self.room_that_is_missing();
            let text = missing.clone().unwrap_or_else(|| reason.clone());
            self.wait_for(Some(Wait::of(Awaiting::Disk, text)), false).await;
            if missing.is_some() {
                sleep(Duration::from_millis(500)).await;
                return Ok(Seen::Going);
            }
        } else if let Some(missing) = self.missing_location(&reason).await {
            if let Some(wait) = missing {
                self.wait_for(Some(wait), false).await;
                sleep(Duration::from_millis(500)).await;
                return Ok(Seen::Going);
            }
            following.starts = 0;
        } else if self.provide_left_segment(&reason).await {
            following.starts = 0;
        }
        if self.journal.awaiting.is_some() && !for_want_of_room {
            self.wait_no_more().await;
        }
        if following.progress.since_start() || for_want_of_room {
            following.starts = 0;
        }
        let starts = following.starts;
        if starts >= STARTS || state == ServerState::Failed && starts > 0 {
            return Err(Stop::NeedsOperator(problem(
                "recovery-failed",
                format!("PostgreSQL does not recover: {reason}"),
                &["Look at GET /api/v1/processes/postgres/log."],
            )));
        }
        // What made it leave may take a moment to go away.
        let pause = if for_want_of_room { 4 } else { starts };
        sleep(Duration::from_millis(500) * pause).await;
        following.starts += 1;
        following.progress.starts();
        following.watcher = Watcher::default();
        following.run = JobId::new(clock::now()).to_string();
        self.start_fenced(&following.run).await?;
        Ok(Seen::Going)
    }

    async fn start_fenced(&mut self, run: &str) -> Result<(), Stop> {
        let timeline = self.journal.timeline;
        let accepted = self.journal.accepted_end.is_some();
        if let Some(end) = self.journal.accepted_end {
            let pg_wal = self.side.data_dir.join("pg_wal");
            pg_wal::cut(&pg_wal, end, self.segment_size()).map_err(|error| {
                let message = format!("cannot end the WAL in pg_wal at {end}: {error}");
                Stop::NeedsOperator(problem("storage-write", message, &[]))
            })?;
        }
        let notes = self.context.journals.attempts_path(&self.journal.stanza);
        let _ = std::fs::remove_file(end_mark(&notes));
        if let Err(error) = attempts::prepare(&notes) {
            // Then the disk is full, and whoever is told of that gets told by its name.
            let text = format!("cannot prepare {}: {error}", notes.display());
            self.recorder.say(Level::Warn, text).await;
        }
        let fenced = FencedStart {
            timeline: timeline.map_or_else(|| "latest".to_owned(), |t| t.to_string()),
            setting_floors: self.journal.setting_floors.clone(),
            // Before an accepted end there is no target, and no more WAL either: if what is missing
            // came back now, nothing would stop recovery at the target.
            target: if accepted { Vec::new() } else { self.journal.target_settings() },
            restore_command: RestoreCommand {
                headrest: &self.side.headrest.to_string_lossy(),
                pgbackrest: &self.side.archive_get.to_string_lossy(),
                stanza: &self.journal.stanza,
                notes: &notes.to_string_lossy(),
                run,
                withheld: self.journal.left_in.keys().map(String::as_str).collect(),
                withhold_all: accepted,
            }
            .in_shell(),
        };
        self.order(Order::StartFenced(fenced)).await.map_err(|refusal| {
            Stop::NeedsOperator(problem("postgres-unavailable", refusal.to_string(), &[]))
        })
    }

    /// Recovery has ended: the server gets nothing more from the archive, so that its promotion, which
    /// asks for the last segment and for histories again, waits for no repository.
    pub(super) async fn fetch_no_more(&mut self, run: &str) {
        if !self.journal.histories_known {
            return;
        }
        if let Err(message) = self.place_histories() {
            return self.recorder.say(Level::Warn, message).await;
        }
        let mark = end_mark(&self.context.journals.attempts_path(&self.journal.stanza));
        if let Err(error) = std::fs::write(&mark, run) {
            // It only takes longer.
            let text = format!("cannot write {}: {error}", mark.display());
            self.recorder.say(Level::Warn, text).await;
        }
    }

    /// The last segment that the archive is known to have, of the timeline that recovery follows.
    pub(super) fn archived_until(&self) -> Option<WalSegment> {
        let name = self.journal.archived_until.as_deref()?;
        WalSegment::parse(name, self.segment_size()).ok()
    }

    /// The segment that is wanted when this file was asked for. On the segment in which a branch begins
    /// PostgreSQL asks for the older timeline's file as well, which it is not given.
    pub(super) fn wanted_by(&self, file: &str) -> Option<WalSegment> {
        let size = self.segment_size();
        let parse = |name: &str| WalSegment::parse(name, size).ok();
        let instead = self.journal.left_in.get(file).and_then(|name| parse(name));
        instead.or_else(|| parse(file))
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
            && !self.journal.target_settings().is_empty()
            && !matches!(self.journal.awaiting, Some(Awaiting::Gap | Awaiting::End));
        if at_a_target {
            return Ok(Seen::Ended(facts));
        }
        // By hand, or at a target that is the very first thing after what was waited for: a pause by hand
        // is gone after a start, the target is met again. Resuming would promote at a target.
        let text = "recovery is paused where no target is known to be; starting again to tell";
        self.recorder.say(Level::Warn, text).await;
        self.wait_no_more().await;
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

    /// There is no more WAL: the end, or a gap. Without a target the end is where recovery should end.
    async fn at_the_end(
        &mut self,
        wanted: WalSegment,
        facts: RecoveryFacts,
        following: &mut Following,
    ) -> Result<Seen, Stop> {
        match self.gap_or_end(wanted, following).await {
            // It is being asked.
            None => Ok(Seen::Going),
            Some(Some(wait)) => {
                self.wait_for(Some(wait), true).await;
                Ok(Seen::Going)
            }
            Some(None) => self.at_the_last_record(wanted, facts).await,
        }
    }

    /// There is no more WAL, and that is certain.
    pub(super) async fn at_the_last_record(
        &mut self,
        wanted: WalSegment,
        facts: RecoveryFacts,
    ) -> Result<Seen, Stop> {
        if self.journal.target == RecoveryTarget::Latest {
            return Ok(Seen::Ended(facts));
        }
        if self.journal.ends_at_the_target() {
            let text = "nothing was committed between the last commit and the target";
            self.recorder.say(Level::Info, text).await;
            return self.end_and_start_again().await;
        }
        let last = self.result.last_commit_at.map_or("unknown".to_owned(), |at| at.to_string());
        let wait = Wait::at(Awaiting::End, wanted, format!("the last commit is of {last}"));
        self.wait_for(Some(wait), true).await;
        Ok(Seen::Going)
    }

    async fn tell_progress(&mut self, facts: &RecoveryFacts) {
        let end = self.archived_until().map(|segment| segment.end());
        let Some(replayed) = facts.replayed else { return };
        // A server that was started again knows only of commits since.
        self.result.last_commit_at = facts.last_commit_at.or(self.result.last_commit_at);
        let start = *self.first_replayed.get_or_insert(replayed);
        self.last_replayed = Some(replayed);
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
