//! The segments in which the branch left older timelines, for prepared transactions.
//!
//! When PostgreSQL replays the checkpoint of a shutdown it reads the prepared transactions once more, from
//! the segment of the timeline that the checkpoint is on. Recovery itself takes the segment of the newer
//! timeline, which begins with a copy of it. Where the older one is not in `pg_wal` PostgreSQL ends with
//! "requested WAL segment … has already been removed" (seen with 15 in a random walk).

use std::fs;

use super::super::plans::add_histories;
use super::Run;
use crate::domain::timeline::Timelines;
use crate::domain::{Lsn, WalSegment};
use crate::pgbackrest::log::Level;
use crate::postgres::pg_wal;

impl Run<'_> {
    /// Makes the segment without which PostgreSQL has just ended, up to where its timeline was left: what
    /// was written to it after that is no part of the branch. Answers whether it did.
    pub(super) async fn provide_left_segment(&mut self, reason: &str) -> bool {
        let Some(name) = missing_segment(reason) else { return false };
        let pg_wal = self.side.data_dir.join("pg_wal");
        let to = pg_wal.join(name);
        let Some(wanted) = self.journal.left_in.get(name).filter(|_| !to.exists()) else {
            return false;
        };
        let Some(left_at) = self.left_at(name) else { return false };
        // The status first: a server must never archive this as a whole segment.
        let made = pg_wal::set_status(&pg_wal, name, false).and_then(|()| {
            pg_wal::copy_until(&pg_wal.join(wanted), &to, left_at, self.segment_size())
        });
        let (text, is_made) = match made {
            Ok(()) => (
                format!("made WAL segment {name} up to {left_at}: prepared transactions need it"),
                true,
            ),
            Err(error) => (format!("cannot make WAL segment {name} from {wanted}: {error}"), false),
        };
        self.recorder.say(if is_made { Level::Info } else { Level::Warn }, text).await;
        is_made
    }

    /// Where the branch left the timeline of a segment, in this segment.
    fn left_at(&self, name: &str) -> Option<Lsn> {
        let segment = WalSegment::parse(name, self.segment_size()).ok()?;
        let mut timelines = Timelines::default();
        let pg_wal = self.side.data_dir.join("pg_wal");
        add_histories(&[&pg_wal, &self.histories_dir()], &mut timelines);
        let branch = timelines.branch(self.journal.timeline?);
        let stretch = branch.stretches().iter().find(|part| part.timeline == segment.timeline())?;
        stretch.until.filter(|until| (segment.start()..segment.end()).contains(until))
    }

    /// Removes the segments that were made. The server is down, and its prepared transactions are in files.
    pub(super) fn remove_left_segments(&self) {
        let pg_wal = self.side.data_dir.join("pg_wal");
        for name in self.journal.left_in.keys() {
            let status = pg_wal.join("archive_status").join(name);
            let own =
                [pg_wal.join(name), status.with_extension("done"), status.with_extension("ready")];
            for path in own.into_iter().filter(|path| path.exists()) {
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!("cannot remove {}: {error}", path.display());
                }
            }
        }
    }
}

/// The segment without which PostgreSQL has ended, by its message (`lc_messages` is C).
fn missing_segment(reason: &str) -> Option<&str> {
    let (_, rest) = reason.split_once("requested WAL segment ")?;
    let (path, _) = rest.split_once(" has already been removed")?;
    path.rsplit('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgresql_misses() {
        let seen = "PostgreSQL exited with code 1; it said: FATAL:  requested WAL segment \
                    pg_wal/000000030000000000000007 has already been removed";
        assert_eq!(missing_segment(seen), Some("000000030000000000000007"));
        let short = "requested WAL segment 000000030000000000000007 has already been removed";
        assert_eq!(missing_segment(short), Some("000000030000000000000007"));
        assert_eq!(missing_segment("could not open file \"pg_wal/1\""), None);
    }
}
