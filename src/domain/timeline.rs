//! Timelines: how the branches of the WAL hang together, read from history files.
//!
//! ```text
//!   timeline 1  ----o-----------o------>        a restore to the first o made timeline 2,
//!                   `-- 2 ----->                one to the second made timeline 3
//!                               `-- 3 ---->
//! ```
//! A *branch* is the way from the root to one timeline: for 3 above, timeline 1 up to the second o,
//! then timeline 3. Recovery follows one branch, so a backup is of use for a target only when it
//! ends on that branch. Pure; who reads the files is `jobs::archive`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Lsn, SegmentSize, Timeline, WalSegment};

/// A history file (`NNNNNNNN.history`): the ancestors of a timeline, oldest first, each with the
/// position where it was left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History(Vec<(Timeline, Lsn)>);

/// A history file that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of a timeline history is not \"timeline, position, reason\"")]
pub struct InvalidHistory {
    /// The line, from 1.
    pub line: usize,
}

impl History {
    /// Reads a history file (PostgreSQL source, `readTimeLineHistory`): a timeline, the position
    /// where the next one began, a reason; `#` begins a comment.
    pub fn parse(text: &str) -> Result<Self, InvalidHistory> {
        let mut ancestors: Vec<(Timeline, Lsn)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let invalid = || InvalidHistory { line: number + 1 };
            let mut parts = line.split_whitespace();
            let timeline = parts.next().and_then(|part| part.parse().ok()).ok_or_else(invalid)?;
            let until = parts.next().and_then(|part| part.parse().ok()).ok_or_else(invalid)?;
            if ancestors.last().is_some_and(|(before, _)| *before >= timeline) {
                return Err(invalid());
            }
            ancestors.push((timeline, until));
        }
        Ok(Self(ancestors))
    }

    /// The file's text, with a reason of our own.
    pub fn to_text(&self) -> String {
        let line = |(timeline, until): &(Timeline, Lsn)| format!("{timeline}\t{until}\tunknown\n");
        self.0.iter().map(line).collect()
    }

    /// The timeline that it branched off from.
    pub fn parent(&self) -> Option<(Timeline, Lsn)> {
        self.0.last().copied()
    }
}

/// All history files that are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timelines(BTreeMap<Timeline, History>);

impl Timelines {
    /// Adds a history.
    pub fn insert(&mut self, timeline: Timeline, history: History) {
        self.0.insert(timeline, history);
    }

    /// The history of a timeline, if it is known.
    pub fn history(&self, timeline: Timeline) -> Option<&History> {
        self.0.get(&timeline)
    }

    /// All that have a history, ascending.
    pub fn known(&self) -> impl Iterator<Item = Timeline> {
        self.0.keys().copied()
    }

    /// The branch that ends in a timeline. Without its history only the timeline itself is on it.
    pub fn branch(&self, tip: Timeline) -> Branch {
        let mut stretches = Vec::new();
        let mut from = Lsn::new(0);
        for (timeline, until) in self.0.get(&tip).map_or(&[][..], |history| &history.0) {
            stretches.push(Stretch { timeline: *timeline, from, until: Some(*until) });
            from = *until;
        }
        stretches.push(Stretch { timeline: tip, from, until: None });
        Branch { stretches }
    }
}

/// A part of a branch that is on one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The timeline.
    pub timeline: Timeline,
    /// Where the branch comes to it.
    pub from: Lsn,
    /// Where the branch leaves it; `None` for the tip.
    pub until: Option<Lsn>,
}

/// The way from the root to one timeline, oldest stretch first; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    stretches: Vec<Stretch>,
}

impl Branch {
    /// The timeline it ends in.
    pub fn tip(&self) -> Timeline {
        self.stretches.last().map_or(Timeline::FIRST, |stretch| stretch.timeline)
    }

    /// Its parts.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// Whether something that happened at `lsn` while the server was on `timeline` is part of it.
    pub fn holds(&self, timeline: Timeline, lsn: Lsn) -> bool {
        self.stretches.iter().any(|stretch| {
            stretch.timeline == timeline && stretch.until.is_none_or(|until| lsn <= until)
        })
    }

    /// Whether a timeline is part of it.
    pub fn includes(&self, timeline: Timeline) -> bool {
        self.stretches.iter().any(|stretch| stretch.timeline == timeline)
    }

    /// The last of the segments on this branch; `last` tells the last that there is of a timeline. What
    /// a timeline has after the branch left it is no part of it.
    pub fn last(
        &self,
        size: SegmentSize,
        last: impl Fn(Timeline) -> Option<WalSegment>,
    ) -> Option<WalSegment> {
        self.stretches.iter().rev().find_map(|stretch| {
            let last = last(stretch.timeline)?;
            let Some(until) = stretch.until else { return Some(last) };
            // The segment in which it was left is the next timeline's to have.
            let number = (until.get() / size.get()).checked_sub(1)?;
            WalSegment::numbered(stretch.timeline, number.min(last.number()), size)
        })
    }

    /// The file that recovery wants first for the stretch of WAL with this number: the newest
    /// timeline that had begun by then (PostgreSQL source, `XLogFileReadAnyTLI`).
    pub fn segment(&self, number: u64, size: SegmentSize) -> WalSegment {
        let begun = |stretch: &&Stretch| stretch.from.get() / size.get() <= number;
        let stretch = self.stretches.iter().rev().find(begun);
        let timeline = stretch.map_or(Timeline::FIRST, |stretch| stretch.timeline);
        WalSegment::containing(timeline, Lsn::new(number.saturating_mul(size.get())), size)
    }

    /// The segments of older timelines in which the branch left them. Recovery must not be given
    /// them: the new timeline's copy has all that is on the branch, and where that is missing PostgreSQL
    /// would take the old one and replay what was written to it after the branch had left. Each with
    /// the segment that is wanted instead.
    pub fn left_in(&self, size: SegmentSize) -> Vec<(WalSegment, WalSegment)> {
        let left = self.stretches.iter().filter_map(|stretch| {
            let number = stretch.until?.get() / size.get();
            let left = WalSegment::numbered(stretch.timeline, number, size)?;
            Some((left, self.segment(number, size)))
        });
        left.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> Timeline {
        Timeline::try_from(number).unwrap()
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn history_files() {
        let text = "1\t0/5000000\tno recovery target specified\n\n# a comment\n\
                    3\t0/70000A0\tbefore 2026-11-20 10:00:00+00\n";
        let history = History::parse(text).unwrap();
        assert_eq!(history.parent(), Some((timeline(3), lsn("0/70000A0"))));
        assert_eq!(History::parse("").unwrap().parent(), None);
        for (bad, line) in [("x", 1), ("1", 1), ("1 0/1 a\n1 0/2 b", 2), ("0 0/1 a", 1)] {
            assert_eq!(History::parse(bad), Err(InvalidHistory { line }), "{bad:?}");
        }
    }

    #[test]
    fn branches() {
        let mut timelines = Timelines::default();
        timelines.insert(timeline(2), History::parse("1 0/5000000 x").unwrap());
        timelines.insert(timeline(3), History::parse("1 0/7800000 x").unwrap());
        timelines.insert(timeline(4), History::parse("1 0/5000000 x\n2 0/9000000 y").unwrap());
        let size = SegmentSize::DEFAULT;
        let one = |number| WalSegment::numbered(timeline(1), number, size);
        let four = timelines.branch(timeline(4));
        assert_eq!(four.tip(), timeline(4));
        for (on, at, expect) in [
            (1, "0/4000000", true),
            (1, "0/5000000", true),
            (1, "0/5000001", false),
            (2, "0/8000000", true),
            (3, "0/7000000", false),
            (4, "F/0", true),
        ] {
            assert_eq!(four.holds(timeline(on), lsn(at)), expect, "{on} {at}");
        }
        assert_eq!(four.segment(4, size).to_string(), "000000010000000000000004");
        assert_eq!(four.segment(5, size).to_string(), "000000020000000000000005");
        assert_eq!(four.segment(200, size).to_string(), "0000000400000000000000C8");
        // What timeline 1 wrote after it was left is no part of the branch.
        let archived = |number| move |on| (on == timeline(1)).then(|| one(number)).flatten();
        let last = |number| four.last(size, archived(number)).map(|last| last.number());
        assert_eq!((last(3), last(9)), (Some(3), Some(4)));
        // In the middle of a segment: the new timeline has a copy of its beginning.
        let three = timelines.branch(timeline(3));
        assert_eq!(three.segment(7, size).to_string(), "000000030000000000000007");
        let wanted = WalSegment::numbered(timeline(3), 7, size).unwrap();
        assert_eq!(three.left_in(size), [(one(7).unwrap(), wanted)]);
        assert_eq!(four.left_in(size).len(), 2);
        // A timeline whose history nobody has.
        assert_eq!(timelines.branch(timeline(9)).stretches().len(), 1);
    }
}
