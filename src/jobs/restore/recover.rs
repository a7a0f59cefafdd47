//! Following a fenced server to the end of its recovery, and promoting it.
//!
//! Without a target the end is where WAL stops: the server waits for a segment that nobody has.
//! The same waiting, for a segment that the archive has or should have, is a gap; then it goes on
//! waiting, and says for what.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::catalog::Freshness;
use super::super::worker::problem;
use super::{Run, Stop};
use crate::domain::restore::{Phase, promoted};
use crate::domain::{Lsn, WalSegment};
use crate::pgbackrest::info::StanzaStatus;
use crate::pgbackrest::log::Level;
use crate::postgres::client::{Connection, RecoveryFacts};
use crate::postgres::pgdata;
use crate::postgres::state::ServerState;
use crate::postgres::supervisor::{FencedStart, Order};
use crate::process::inspect;

/// How often recovery is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// How often what is waited for is said.
const SAY_EVERY: Duration = Duration::from_secs(30);
/// How long a standstill must last to count. That the server sleeps before its next try says that
/// every source has failed already; a second look makes sure that it was not in between.
const STANDSTILL: Duration = Duration::from_millis(100);
/// How often a fenced server that leaves is started again.
const STARTS: u32 = 5;

/// What a server that waits for WAL waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    /// For this segment, beyond everything there is: the end.
    AtTheEnd(WalSegment),
    /// For one that should be there.
    AtGap(WalSegment),
}

/// A standstill: where, and since when.
type Still = Option<(Option<Lsn>, Instant)>;

impl Run<'_> {
    /// Starts the server fenced, follows it to the end of the archive, looks, and promotes.
    pub(super) async fn follow_recovery(&mut self) -> Result<(), Stop> {
        let (connection, facts) = loop {
            let connection = self.recover_to_the_end().await?;
            // A server that leaves in this very moment is started and followed again.
            if let Ok(facts) = connection.recovery().await {
                break (connection, facts);
            }
        };
        (self.result.replayed_lsn, self.result.last_commit_at) =
            (facts.replayed, facts.last_commit_at);
        self.enter(Phase::Verified).await?;
        let text = format!(
            "replayed to {}, last commit {}",
            facts.replayed.map_or("-".to_owned(), |lsn| lsn.to_string()),
            facts.last_commit_at.map_or("unknown".to_owned(), |at| at.to_string())
        );
        self.recorder.say(Level::Info, text).await;
        self.promote(&connection).await
    }

    async fn recover_to_the_end(&mut self) -> Result<Connection, Stop> {
        let mut starts = 0;
        let mut connection: Option<Connection> = None;
        let mut still: Still = None;
        let mut said: Option<Instant> = None;
        let began = Instant::now();
        loop {
            if self.context.shutdown.is_cancelled() {
                return Err(Stop::Later);
            }
            let status = self.context.postgres.status();
            match status.state {
                ServerState::Down | ServerState::Failed => {
                    connection = None;
                    if starts >= STARTS || status.state == ServerState::Failed && starts > 0 {
                        let reason = status.reason.unwrap_or_default();
                        return Err(Stop::NeedsOperator(problem(
                            "recovery-failed",
                            format!("PostgreSQL does not recover: {reason}"),
                            &["Look at GET /api/v1/processes/postgres/log."],
                        )));
                    }
                    // What made it leave may take a moment to go away.
                    sleep(Duration::from_millis(500) * starts).await;
                    starts += 1;
                    self.start_fenced().await?;
                }
                ServerState::Ready => {
                    return Err(Stop::NeedsOperator(problem(
                        "recovery-failed",
                        "PostgreSQL left recovery before anybody asked for it",
                        &[],
                    )));
                }
                // The supervisor starts it as soon as nothing is in the way.
                ServerState::BackingOff
                | ServerState::Starting
                | ServerState::Recovering
                | ServerState::Stopping => {}
            }
            if connection.is_none() && status.state == ServerState::Recovering {
                connection = self.connect().await;
            }
            let facts = match &connection {
                Some(open) => open.recovery().await.ok(),
                None => None,
            };
            if let Some(facts) = facts {
                self.tell_progress(&facts).await;
                match self.standstill(&facts, &mut still) {
                    Some(Waiting::AtTheEnd(wanted)) => match self.doubt(wanted).await {
                        None => {
                            if let Some(connection) = connection {
                                return Ok(connection);
                            }
                        }
                        Some(doubt) => {
                            still = None;
                            self.waiting_for = Some(doubt.clone());
                            if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
                                said = Some(Instant::now());
                                self.recorder.say(Level::Warn, doubt).await;
                            }
                            sleep(Duration::from_secs(1)).await;
                        }
                    },
                    Some(Waiting::AtGap(segment))
                        if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) =>
                    {
                        said = Some(Instant::now());
                        self.say_gap(segment).await;
                    }
                    Some(Waiting::AtGap(_)) | None => {}
                }
            } else {
                connection = None;
                still = None;
                // Before consistency nobody can connect; the process title is all there is.
                if said.map_or(began, |at| at).elapsed() >= SAY_EVERY {
                    said = Some(Instant::now());
                    self.say_before_consistency().await;
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn start_fenced(&mut self) -> Result<(), Stop> {
        let timeline = self.journal.timeline;
        let fenced = FencedStart {
            timeline: timeline.map_or_else(|| "latest".to_owned(), |t| t.to_string()),
            setting_floors: self.journal.setting_floors.clone(),
        };
        self.order(Order::StartFenced(fenced)).await.map_err(|refusal| {
            Stop::NeedsOperator(problem("postgres-unavailable", refusal.to_string(), &[]))
        })
    }

    /// Whether the server waits for WAL, has for a while, and for which.
    fn standstill(&self, facts: &RecoveryFacts, still: &mut Still) -> Option<Waiting> {
        if !facts.waits_for_wal {
            // Between two tries it runs restore_command; that alone is no progress.
            if still.is_some_and(|(at, _)| at != facts.replayed) {
                *still = None;
            }
            return None;
        }
        let (at, since) = still.get_or_insert((facts.replayed, Instant::now()));
        if *at != facts.replayed {
            *still = Some((facts.replayed, Instant::now()));
            return None;
        }
        if since.elapsed() < STANDSTILL {
            return None;
        }
        let title = inspect::title(facts.startup_pid?)?;
        let size = self.segment_size();
        let wanted = wanted_segment(&title, |name| WalSegment::parse(name, size).ok())?;
        let end = self.journal.archived_until.as_deref();
        let end = end.and_then(|name| WalSegment::parse(name, size).ok());
        // By position, whatever the timeline: a recovery that crosses timelines names both.
        Some(match end {
            Some(end) if wanted.number() <= end.number() => Waiting::AtGap(wanted),
            Some(_) | None => Waiting::AtTheEnd(wanted),
        })
    }

    /// Why the end may not be the end: the repository is asked once more, now that the server says
    /// that it has everything. `None` when there is no doubt.
    async fn doubt(&mut self, wanted: WalSegment) -> Option<String> {
        if self.kept_until().is_some_and(|kept| wanted.number() < kept.number()) {
            return Some(format!("waiting for WAL {wanted}: later WAL was kept, this is missing"));
        }
        let seen = self.context.catalog.observe(&self.journal.stanza, Freshness::New).await;
        let stanza = match &seen {
            Ok(seen) => &seen.stanza,
            Err(error) => {
                return Some(format!(
                    "waiting for the repository, to be sure that {wanted} is the end: {error}"
                ));
            }
        };
        if matches!(stanza.status.meaning(), StanzaStatus::Other(_)) {
            return Some(format!(
                "waiting for the repository, to be sure that {wanted} is the end"
            ));
        }
        let size = self.segment_size();
        let in_archive = stanza
            .archives
            .iter()
            .filter_map(|archive| archive.max.as_deref())
            .filter_map(|name| WalSegment::parse(name, size).ok())
            .filter(|max| self.journal.timeline.is_none_or(|ours| max.timeline() == ours));
        let max = in_archive.max_by_key(WalSegment::number)?;
        (max.number() >= wanted.number()).then(|| {
            format!("waiting for WAL {wanted}, which the archive should have: it goes on to {max}")
        })
    }

    async fn tell_progress(&mut self, facts: &RecoveryFacts) {
        let size = self.segment_size();
        let end = self.journal.archived_until.as_deref();
        let end = end.and_then(|name| WalSegment::parse(name, size).ok()).map(|s| s.end());
        let Some(replayed) = facts.replayed else { return };
        let start = *self.first_replayed.get_or_insert(replayed);
        if self.last_replayed != Some(replayed) {
            // It moves again.
            self.last_replayed = Some(replayed);
            self.waiting_for = None;
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

    async fn say_before_consistency(&mut self) {
        let size = self.segment_size();
        let mut titles = pgdata::servers_in(&self.side.data_dir)
            .into_iter()
            .filter_map(|pid| inspect::title(pid.as_raw_nonzero().get()));
        let parse = |name: &str| WalSegment::parse(name, size).ok();
        let doing = titles.find_map(|title| wanted_segment(&title, parse));
        let text = match doing {
            Some(segment) => format!(
                "recovery is at WAL {segment} and not consistent yet; if it stays there, the \
                 archive does not have that segment"
            ),
            None => "PostgreSQL starts and is not consistent yet".to_owned(),
        };
        self.waiting_for = Some(text.clone());
        self.recorder.progress(|progress| progress.phase = Some(text.clone())).await;
        self.recorder.say(Level::Warn, text).await;
    }

    async fn say_gap(&mut self, segment: WalSegment) {
        let text = format!(
            "waiting for WAL {segment}, which the archive should have and does not: recovery goes \
             on as soon as it is back, and nothing is promoted without it"
        );
        self.waiting_for = Some(format!("waiting for WAL {segment}"));
        self.recorder.say(Level::Warn, text).await;
    }

    /// Promotes, and believes it only when the control data shows it.
    async fn promote(&mut self, connection: &Connection) -> Result<(), Stop> {
        if self.journal.timeline.is_none() {
            // PGDATA was lost: only now is it known which timeline was recovered.
            self.journal.timeline = self.control().await.map(|control| control.timeline);
        }
        self.enter(Phase::Promoting).await?;
        let asked = connection.promote().await;
        if self.context.shutdown.is_cancelled() {
            // The journal says "promoting"; the next start looks at the control data.
            return Err(Stop::Later);
        }
        if let Err(error) = asked {
            // What counts is what the control data shows once nobody changes it any more.
            self.recorder.say(Level::Warn, format!("promotion: {error}")).await;
            self.stop_server().await?;
        }
        let control = self.control().await.map(|control| control.facts());
        match control {
            Some(facts) if facts.out_of_recovery && promoted(&self.journal, facts) => {
                self.result.timeline = Some(facts.timeline);
                Ok(())
            }
            Some(_) | None => Err(Stop::NeedsOperator(problem(
                "recovery-failed",
                "PostgreSQL was promoted, but its control data does not show a new timeline",
                &[],
            ))),
        }
    }
}

/// The segment in the title of a startup process that found no more WAL. "recovering" stands there
/// when the last place it looked was a segment in `pg_wal` that ends in the middle.
fn wanted_segment(title: &str, parse: impl Fn(&str) -> Option<WalSegment>) -> Option<WalSegment> {
    let mut parts = ["waiting for ", "recovering "].into_iter().filter_map(|word| {
        let (_, wanted) = title.split_once(word)?;
        parse(wanted.split_whitespace().next()?)
    });
    parts.next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::SegmentSize;

    #[test]
    fn titles() {
        let parse = |name: &str| WalSegment::parse(name, SegmentSize::DEFAULT).ok();
        let cases = [
            // Seen with 15, 17 and 18; the kernel pads with blanks.
            ("postgres: startup waiting for 00000001000000000000000E   ", Some(14)),
            ("postgres: main: startup waiting for 00000001000000000000000E", Some(14)),
            ("postgres: startup recovering 00000001000000000000000E", Some(14)),
            ("postgres: startup waiting for something", None),
            ("", None),
        ];
        for (title, expect) in cases {
            let number = wanted_segment(title, parse).map(|segment| segment.number());
            assert_eq!(number, expect, "{title:?}");
        }
    }
}
