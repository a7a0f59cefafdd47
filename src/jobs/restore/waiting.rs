//! What a recovering server waits for: the end of the WAL, or a segment that should be there.

use std::time::Duration;

use tokio::time::Instant;

use super::super::archive::Archive;
use super::super::catalog::Freshness;
use super::Run;
use super::recover::Following;
use crate::domain::restore::Awaiting;
use crate::domain::{Lsn, WalSegment};
use crate::pgbackrest::info::StanzaStatus;
use crate::pgbackrest::log::Level;
use crate::postgres::client::RecoveryFacts;
use crate::postgres::pgdata;
use crate::process::inspect;

/// How often what is waited for is said.
pub(super) const SAY_EVERY: Duration = Duration::from_secs(30);
/// How long recovery may stand before consistency, where only its title tells what it does, until
/// that is said.
const SAY_BEFORE_CONSISTENCY: Duration = Duration::from_secs(5);
/// How long a standstill must last to count. That the server sleeps before its next try says that
/// every source has failed already; a second look makes sure that it was not in between.
const STANDSTILL: Duration = Duration::from_millis(100);

/// What a server that waits for WAL waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// For this segment, beyond everything there is: the end.
    AtTheEnd(WalSegment),
    /// For one that should be there.
    AtGap(WalSegment),
}

/// A standstill: where, and since when.
pub(super) type Still = Option<(Option<Lsn>, Instant)>;

impl Run<'_> {
    /// Whether the server waits for WAL, has for a while, and for which.
    pub(super) fn standstill(&self, facts: &RecoveryFacts, still: &mut Still) -> Option<Waiting> {
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
        let wanted = self.wanted_by(&title)?;
        let end = self.journal.archived_until.as_deref();
        let end = end.and_then(|name| WalSegment::parse(name, size).ok());
        // By position, whatever the timeline: a recovery that crosses timelines names both.
        Some(match end {
            Some(end) if wanted.number() <= end.number() => Waiting::AtGap(wanted),
            Some(_) | None => Waiting::AtTheEnd(wanted),
        })
    }

    /// The segment that a startup process with this title waits for. It tells the file that it tried
    /// last, which may be one that it is not given.
    fn wanted_by(&self, title: &str) -> Option<WalSegment> {
        let size = self.segment_size();
        let parse = |name: &str| WalSegment::parse(name, size).ok();
        let told = wanted_segment(title, parse)?;
        let instead = self.journal.left_in.get(&told.to_string());
        Some(instead.and_then(|name| parse(name)).unwrap_or(told))
    }

    /// Why the end may not be the end: the archive is asked once more, now that the server says
    /// that it has everything. `None` when there is no doubt.
    pub(super) async fn doubt(&mut self, wanted: WalSegment) -> Option<(String, Option<Awaiting>)> {
        if self.kept_until().is_some_and(|kept| wanted.number() < kept.number()) {
            let text = format!("waiting for WAL {wanted}: later WAL was kept, this is missing");
            return Some((text, Some(Awaiting::Gap)));
        }
        let unsure = |why: &str| {
            Some((
                format!("waiting for the repository, to be sure that {wanted} is the end: {why}"),
                None,
            ))
        };
        let stanza = self.journal.stanza.clone();
        let seen = match self.context.catalog.observe(&stanza, Freshness::New).await {
            Ok(seen) if matches!(seen.stanza.status.meaning(), StanzaStatus::Other(_)) => {
                return unsure(&seen.stanza.status.message);
            }
            Ok(seen) => seen,
            Err(error) => return unsure(&error.reason),
        };
        let size = self.segment_size();
        let system_id = self.journal.system_id.as_deref();
        let archives =
            self.context.archives.look(&stanza, &seen.stanza, system_id, size, false).await;
        let archive = match archives {
            Ok(archives) => Archive::union(archives.values(), size),
            Err(error) => return unsure(&error.reason),
        };
        let branch = archive.timelines.branch(self.journal.timeline?);
        let last = branch.last(size, |timeline| archive.segments.last(timeline, size));
        let there = archive.segments.has(branch.segment(wanted.number(), size));
        let last = last.filter(|last| last.number() > wanted.number() || there)?;
        let text = format!(
            "waiting for WAL {wanted}, which the archive should have: it goes on to {last}"
        );
        Some((text, Some(Awaiting::Gap)))
    }

    /// Before consistency nobody can connect; the title of the startup process is all there is.
    pub(super) async fn look_before_consistency(&mut self, following: &mut Following) {
        let mut titles = pgdata::servers_in(&self.side.data_dir)
            .into_iter()
            .filter_map(|pid| inspect::title(pid.as_raw_nonzero().get()));
        let Some(title) = titles.find(|title| title.contains(": startup")) else { return };
        let changed = following.title.as_ref().is_none_or(|(known, _)| *known != title);
        if changed {
            following.title = Some((title, Instant::now()));
            return;
        }
        let Some((title, since)) = &following.title else { return };
        if since.elapsed() < SAY_BEFORE_CONSISTENCY {
            return;
        }
        let waits = title.contains("waiting for ");
        let doing = self.wanted_by(title);
        let text = match doing {
            Some(segment) => format!(
                "recovery stands at WAL {segment} and is not consistent yet: the archive does not \
                 have that segment, or it is damaged"
            ),
            None => "PostgreSQL starts and is not consistent yet".to_owned(),
        };
        if let Some(segment) = doing.filter(|_| waits) {
            self.wait_for(Some(Awaiting::Gap), Some(segment)).await;
        }
        self.waiting_for = Some(text.clone());
        self.recorder.stands_at(&text).await;
        if following.said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            following.said = Some(Instant::now());
            self.recorder.say(Level::Warn, text).await;
        }
    }

    pub(super) async fn say_gap(&mut self, segment: WalSegment) {
        let text = format!(
            "waiting for WAL {segment}, which the archive should have and does not, or cannot give: \
             recovery goes on as soon as it is back, and nothing is promoted without it unless \
             somebody accepts the gap"
        );
        let waiting = format!("waiting for WAL {segment}");
        self.recorder.stands_at(&waiting).await;
        self.waiting_for = Some(waiting);
        self.recorder.say(Level::Warn, text).await;
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
