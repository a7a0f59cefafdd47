//! What a recovering server waits for: the end of the WAL, a segment that should be there, the
//! repository, room on the disk, a role; or that nothing moves, and that the reason is not known.
//!
//! The facts are the notes of the server's `restore_command`, a fresh listing of the archive (made in
//! a task of its own, because a repository that is away answers after a minute), and the file system.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::super::archive::{Anew, Archive, Archives};
use super::super::catalog::{Catalog, Freshness};
use super::recover::{Following, Seen};
use super::{Next, Run, Stop};
use crate::clock;
use crate::domain::restore::{Awaiting, Wait};
use crate::domain::standstill::{Attempt, Failure, Outcome, Standstill};
use crate::domain::{Lsn, SegmentSize, StanzaName, Timeline, WalSegment};
use crate::pgbackrest::info::StanzaStatus;
use crate::pgbackrest::log::Level;
use crate::postgres::client::RecoveryFacts;
use crate::postgres::pg_wal;
use crate::postgres::pgdata::{self, PidFile, PostmasterStatus};
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::Status;
use crate::process::inspect::{self, Activity};

/// pgBackRest's exit code where a stop file is (`StopError`).
const STOPPED: u8 = 62;
/// How long nothing may move before the reason is stated.
const STATE_AFTER: Duration = Duration::from_secs(15);
/// How long a process must have done nothing to be called idle.
const IDLE_FOR: Duration = Duration::from_secs(5);
/// How long the repository may take to answer before that is stated.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// How long an answer of the repository holds.
const ANSWER_HOLDS: Duration = Duration::from_secs(2);

/// How far recovery came, and since when it is there.
pub(super) struct Progress {
    replayed: Option<Lsn>,
    /// The last segment that was got, without its timeline.
    got: Option<String>,
    moved_at: Instant,
    /// The furthest position, and the furthest segment, of all starts of the server.
    best: (Option<Lsn>, Option<String>),
    improved: bool,
    was_open: bool,
    activity: Option<(Instant, Activity)>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            replayed: None,
            got: None,
            moved_at: Instant::now(),
            best: (None, None),
            improved: false,
            was_open: false,
            activity: None,
        }
    }

    /// The server is started.
    pub(super) fn starts(&mut self) {
        (self.replayed, self.got, self.was_open) = (None, None, false);
        (self.improved, self.activity) = (false, None);
        self.moved_at = Instant::now();
    }

    /// Whether it came further since its last start than ever before.
    pub(super) fn since_start(&self) -> bool {
        self.improved
    }

    /// Takes in a look; answers whether recovery has moved.
    pub(super) fn saw(
        &mut self,
        facts: Option<&RecoveryFacts>,
        attempts: &[Attempt],
        state: ServerState,
    ) -> bool {
        let found = attempts.iter().filter(|attempt| attempt.outcome == Some(Outcome::Found));
        let got = found.filter_map(|attempt| attempt.file.get(8..24)).max().map(str::to_owned);
        let replayed = facts.and_then(|facts| facts.replayed);
        let opened = state == ServerState::Recovering && !self.was_open;
        self.was_open |= opened;
        let moved = replayed.is_some() && replayed != self.replayed || got > self.got;
        if !moved && !opened {
            return false;
        }
        self.replayed = replayed.or(self.replayed);
        self.got = got.max(self.got.take());
        (self.moved_at, self.activity) = (Instant::now(), None);
        if self.replayed > self.best.0 || self.got > self.best.1 {
            self.best = (self.replayed.max(self.best.0), self.got.clone().max(self.best.1.take()));
            self.improved = true;
        }
        moved
    }

    /// Whether this process has done something lately; `None` until that is known.
    fn is_at_work(&mut self, pid: i32) -> Option<bool> {
        let now = inspect::activity(pid)?;
        let Some((since, before)) = self.activity else {
            self.activity = Some((Instant::now(), now));
            return None;
        };
        if since.elapsed() < IDLE_FOR {
            return None;
        }
        self.activity = Some((Instant::now(), now));
        Some(now.is_more_than(before))
    }
}

/// What the repository was asked about a segment, and answered.
pub(super) struct Consulted {
    wanted: WalSegment,
    began: Instant,
    asked_at: jiff::Timestamp,
    task: Option<JoinHandle<Listed>>,
    answer: Option<(Instant, Listed)>,
}

/// What a listing of the archive says about a segment that could not be got.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Listed {
    /// The archive's branch goes on to this one; and whether it has the segment itself.
    GoesOn(WalSegment, bool),
    /// It has neither the segment nor a later one.
    Ends,
    /// It cannot be listed, for this reason.
    NotKnown(String),
}

/// What a listing needs.
struct Question {
    catalog: Catalog,
    archives: Archives,
    stanza: StanzaName,
    system_id: Option<String>,
    size: SegmentSize,
    timeline: Option<Timeline>,
    histories: std::path::PathBuf,
    wanted: WalSegment,
}

impl Question {
    async fn ask(self) -> Listed {
        let seen = match self.catalog.observe(&self.stanza, Freshness::New).await {
            Ok(seen) if matches!(seen.stanza.status.meaning(), StanzaStatus::Other(_)) => {
                let told: Vec<&str> =
                    seen.stanza.repos.iter().map(|repo| repo.status.message.as_str()).collect();
                return Listed::NotKnown(told.join("; "));
            }
            Ok(seen) => seen,
            Err(error) => return Listed::NotKnown(error.reason),
        };
        let system_id = self.system_id.as_deref();
        let grown = &Anew::Grown;
        let look = self.archives.look(&self.stanza, &seen.stanza, system_id, self.size, grown);
        let archive = match look.await {
            Ok(archives) => Archive::union(archives.values(), self.size),
            Err(error) => return Listed::NotKnown(error.reason),
        };
        if let Err(error) = super::wal::note_histories(&archive.timelines, &self.histories) {
            return Listed::NotKnown(format!("cannot keep the timelines' histories: {error}"));
        }
        let Some(timeline) = self.timeline else { return Listed::Ends };
        let (size, wanted) = (self.size, self.wanted);
        let branch = archive.timelines.branch(timeline);
        let last = branch.last(size, |timeline| archive.segments.last(timeline, size));
        let there = archive.segments.has(branch.segment(wanted.number(), size));
        match last.filter(|last| last.number() > wanted.number() || there) {
            Some(last) => Listed::GoesOn(last, there),
            None => Listed::Ends,
        }
    }
}

impl Run<'_> {
    /// Asks the repository about a segment; `None` until it has answered.
    async fn consult(&mut self, wanted: WalSegment, following: &mut Following) -> Option<Listed> {
        let is_about_it = |consulted: &Consulted| {
            let holds = consulted.answer.as_ref().is_none_or(|(at, _)| at.elapsed() < ANSWER_HOLDS);
            consulted.wanted == wanted && holds
        };
        if !following.consulted.as_ref().is_some_and(is_about_it) {
            let journal = &self.journal;
            let question = Question {
                catalog: self.context.catalog.clone(),
                archives: self.context.archives.clone(),
                stanza: journal.stanza.clone(),
                system_id: journal.system_id.clone(),
                size: self.segment_size(),
                timeline: journal.timeline,
                histories: self.histories_dir(),
                wanted,
            };
            following.consulted = Some(Consulted {
                wanted,
                began: Instant::now(),
                asked_at: clock::now(),
                task: Some(tokio::spawn(question.ask())),
                answer: None,
            });
        }
        let consulted = following.consulted.as_mut()?;
        if consulted.task.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(task) = consulted.task.take()
        {
            let answer = task.await.unwrap_or_else(|panic| Listed::NotKnown(panic.to_string()));
            self.journal.histories_known |= !matches!(answer, Listed::NotKnown(_));
            consulted.answer = Some((Instant::now(), answer));
        }
        consulted.answer.as_ref().map(|(_, answer)| answer.clone())
    }

    /// Asks the repository as soon as a segment after the known end of the archive was not found: the
    /// answer is there when PostgreSQL has asked for it once more.
    pub(super) async fn ask_ahead(&mut self, attempts: &[Attempt], following: &mut Following) {
        let not_found = attempts.last().filter(|last| last.outcome == Some(Outcome::NotFound));
        let Some(wanted) = not_found.and_then(|last| self.wanted_by(&last.file)) else { return };
        if self.archived_until().is_none_or(|end| wanted.number() > end.number()) {
            self.consult(wanted, following).await;
        }
    }

    /// Whether the end of what was replayed is the end of the WAL: `None` while the repository is being
    /// asked, `Some(None)` when it is, else what is waited for.
    pub(super) async fn gap_or_end(
        &mut self,
        wanted: WalSegment,
        following: &mut Following,
    ) -> Option<Option<Wait>> {
        let gap = |detail: String| Some(Some(Wait::at(Awaiting::Gap, wanted, detail)));
        // By position, whatever the timeline: a recovery that crosses timelines names both.
        if let Some(end) = self.archived_until().filter(|end| wanted.number() <= end.number()) {
            return gap(format!(
                "no repository has it any more, although the archive went on to {end}"
            ));
        }
        if let Some(kept) = self.kept_until().filter(|kept| wanted.number() < kept.number()) {
            return gap(format!("no repository has it, and later WAL up to {kept} was kept"));
        }
        let asked = self.consult(wanted, following).await;
        match asked {
            Some(Listed::Ends) => Some(None),
            Some(Listed::GoesOn(last, true)) => {
                gap(format!("the archive lists it and goes on to {last}, and does not give it"))
            }
            Some(Listed::GoesOn(last, false)) => {
                gap(format!("no repository has it, and the archive goes on to {last}"))
            }
            Some(Listed::NotKnown(why)) => Some(Some(Wait::at(
                Awaiting::Repository,
                wanted,
                format!("whether {wanted} is the end of the WAL is not known: {why}"),
            ))),
            None => {
                let consulted = following.consulted.as_ref()?;
                (consulted.began.elapsed() >= ANSWER_PATIENCE).then(|| {
                    let text = format!(
                        "it was asked at {:.0} whether {wanted} is the end of the WAL, and has not \
                         answered yet",
                        consulted.asked_at
                    );
                    Some(Wait::at(Awaiting::Repository, wanted, text))
                })
            }
        }
    }

    /// Why `pgbackrest archive-get` fails.
    pub(super) async fn cause_of(
        &mut self,
        file: &str,
        failure: &Failure,
        following: &mut Following,
    ) -> Option<Wait> {
        let code = failure.exit_code.map_or(String::new(), |code| format!(" (exit code {code})"));
        let said = format!("pgbackrest archive-get of {file} failed{code}: {}", failure.message);
        let wait = |reason, detail: String| Wait {
            reason,
            segment: self.wanted_by(file).map(|segment| segment.to_string()),
            detail,
        };
        if failure.exit_code == Some(STOPPED) {
            return Some(wait(Awaiting::StopFile, said));
        }
        if is_about_room(&failure.message) {
            return Some(wait(Awaiting::Disk, said));
        }
        let repository = wait(Awaiting::Repository, said.clone());
        if !failure.may_be_about_the_file() {
            return Some(repository);
        }
        let Some(wanted) = self.wanted_by(file) else { return Some(repository) };
        let listed = self.consult(wanted, following).await;
        match listed {
            // The repository can be read, and its copy of this one file cannot.
            Some(Listed::GoesOn(_, true)) => {
                let text = format!("the archive has it, but {said}");
                Some(Wait::at(Awaiting::Gap, wanted, text))
            }
            Some(_) => Some(repository),
            None => {
                let consulted = following.consulted.as_ref()?;
                (consulted.began.elapsed() >= ANSWER_PATIENCE).then_some(repository)
            }
        }
    }

    /// The archive gives a segment, and PostgreSQL finds no next record in it.
    pub(super) async fn at_a_useless_segment(
        &mut self,
        file: &str,
        facts: Option<RecoveryFacts>,
        following: &mut Following,
    ) -> Result<Seen, Stop> {
        let Some(segment) = self.wanted_by(file) else { return Ok(Seen::Going) };
        let replayed = facts.as_ref().and_then(|facts| facts.replayed);
        let position = replayed.map_or(String::new(), |lsn| format!(" after {lsn}"));
        let damaged = format!(
            "the archive has it, but PostgreSQL finds no valid record in it{position}: it is damaged, \
             or was archived before it was full"
        );
        if let (Some(facts), Some(replayed)) = (facts, replayed) {
            let path = self.side.data_dir.join("pg_wal").join(file);
            let unwritten = pg_wal::is_unwritten_at(&path, segment, replayed).unwrap_or(false);
            match self.consult(segment, following).await {
                // The last one, and nothing was ever written behind that position.
                Some(Listed::GoesOn(last, _)) if unwritten && last.number() == segment.number() => {
                    return self.at_the_last_record(segment, facts).await;
                }
                Some(_) => {}
                None => return Ok(Seen::Going),
            }
        }
        let consistent = replayed.is_some();
        self.wait_for(Some(Wait::at(Awaiting::Gap, segment, damaged)), consistent).await;
        Ok(Seen::Going)
    }

    /// Nobody can connect: before consistency, or because the role does not exist.
    pub(super) async fn look_without_connection(
        &mut self,
        following: &mut Following,
        attempts: &[Attempt],
        status: &Status,
    ) -> Result<Seen, Stop> {
        if status.no_role {
            let role = &self.side.superuser;
            let text = format!(
                "the role {role:?} that Headrest connects as does not exist, or may not log in, in \
                 the restored data, and neither is there a superuser called postgres. Abandon the \
                 restore, or choose a target at which the role exists; or set postgres.superuser to a \
                 superuser of that time and start Headrest again: the restore goes on"
            );
            self.wait_for(Some(Wait::of(Awaiting::Role, text)), false).await;
            return Ok(Seen::Going);
        }
        let file = PidFile::read(&self.side.data_dir).ok().flatten();
        let is_open = file.is_some_and(|file| file.status == PostmasterStatus::Ready);
        let standstill = following.watcher.look(attempts, None).filter(|_| !is_open);
        if standstill.is_some() && self.journal.accepted_end.is_some() {
            // Something that was there before is not there any more: only the archive has it.
            let text = "WAL before the accepted end is missing; restoring again";
            self.recorder.say(Level::Warn, text).await;
            self.stop_server().await?;
            return Ok(Seen::Elsewhere(Next::Restore));
        }
        let wait = match standstill {
            None => {
                self.explain_the_wait(following, attempts, None, status).await;
                return Ok(Seen::Going);
            }
            Some(Standstill::Useless(file)) => {
                return self.at_a_useless_segment(&file, None, following).await;
            }
            Some(Standstill::Failing(file, failure)) => {
                self.cause_of(&file, &failure, following).await
            }
            Some(Standstill::NotFound(file)) => self.wanted_by(&file).map(|segment| {
                let text = "no repository has it, and without it the backup is not consistent: \
                            there is nothing that could be promoted yet";
                Wait::at(Awaiting::Gap, segment, text)
            }),
        };
        if let Some(wait) = wait {
            self.wait_for(Some(wait), false).await;
        }
        Ok(Seen::Going)
    }

    /// States the reason when nothing has moved for long.
    pub(super) async fn explain_the_wait(
        &mut self,
        following: &mut Following,
        attempts: &[Attempt],
        facts: Option<&RecoveryFacts>,
        status: &Status,
    ) {
        if following.progress.moved_at.elapsed() < STATE_AFTER {
            return;
        }
        let running = attempts.last().filter(|attempt| attempt.outcome.is_none());
        if let Some(attempt) = running {
            let text = format!(
                "pgbackrest archive-get of {} has been running since {:.0}: the repository is slow or \
                 does not answer",
                attempt.file, attempt.started_at
            );
            let segment = self.wanted_by(&attempt.file).map(|segment| segment.to_string());
            let wait = Wait { reason: Awaiting::Repository, segment, detail: text };
            return self.wait_for(Some(wait), facts.is_some()).await;
        }
        let startup = facts.and_then(|facts| facts.startup_pid).or_else(|| self.startup_process());
        let title = startup.and_then(inspect::title);
        let doing = match (facts, title) {
            (Some(facts), _) => format!(
                "PostgreSQL replays at {} ({})",
                facts.replayed.map_or("-".to_owned(), |lsn| lsn.to_string()),
                facts.waits_at.as_deref().unwrap_or("no wait event")
            ),
            (None, Some(title)) => format!("PostgreSQL is {}: {title}", status.state),
            (None, None) => format!("PostgreSQL is {}", status.state),
        };
        let reason = status.reason.as_deref().map_or(String::new(), |why| format!("; {why}"));
        match startup.map(|pid| following.progress.is_at_work(pid)) {
            // A long operation: a directory copied, files synchronized after a crash.
            Some(Some(true)) => {
                let text = format!("{doing}; it reads, writes or computes");
                self.waiting_for = Some(text.clone());
                self.recorder.stands_at(&text).await;
            }
            Some(None) => {}
            Some(Some(false)) | None => {
                let text = format!("{doing}{reason}; it has done nothing for a while");
                let wait = Wait::of(Awaiting::Standstill, text);
                self.wait_for(Some(wait), facts.is_some()).await;
            }
        }
    }

    fn startup_process(&self) -> Option<i32> {
        let pids = pgdata::servers_in(&self.side.data_dir);
        let mut pids = pids.into_iter().map(|pid| pid.as_raw_nonzero().get());
        pids.find(|pid| inspect::title(*pid).is_some_and(|title| title.contains("startup")))
    }

    /// Room that a server which ended for want of it needs, when it is not there yet.
    pub(super) fn room_that_is_missing(&self) -> Option<String> {
        let need = self.segment_size().get() * 2;
        let places = [self.side.data_dir.join("pg_wal"), self.side.data_dir.clone()];
        places.iter().find_map(|place| {
            let free = pgdata::free_bytes(place).ok().filter(|free| *free < need)?;
            Some(format!(
                "{} MiB are free on the file system of {}, and recovery needs {} MiB",
                free >> 20,
                place.display(),
                need >> 20
            ))
        })
    }
}

/// Whether a program failed because there is no room, or none left for this user.
pub(super) fn is_about_room(said: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|text| said.contains(text))
}
