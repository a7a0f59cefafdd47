//! The recovery window: the moments that a repository can bring back, per timeline.
//!
//! From the end of its earliest backup to the newest known commit whose WAL is archived, interrupted
//! where segments are missing. What is not archived yet does not count, though a restore would save
//! it: when the disk is lost, it is too.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::archive::Gap;
use super::plan::{Catalogue, Set};
use super::timeline::Branch;
use super::{Lsn, RepoKey, Timeline};

/// Moments without interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub from: Timestamp,
    /// The last.
    pub to: Timestamp,
}

/// What one repository can bring back on one timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The repository with the backups.
    pub repo: RepoKey,
    /// The timeline.
    pub timeline: Timeline,
    /// Whether the server is on it.
    pub is_current: bool,
    /// The moments, ascending; empty when there is no backup to begin with.
    pub ranges: Vec<Range>,
    /// What is missing of the WAL.
    pub gaps: Vec<Gap>,
}

impl Window {
    /// The first moment.
    pub fn from(&self) -> Option<Timestamp> {
        self.ranges.first().map(|range| range.from)
    }

    /// The last moment.
    pub fn to(&self) -> Option<Timestamp> {
        self.ranges.last().map(|range| range.to)
    }
}

/// The windows of every repository, newest timeline first.
pub fn windows(catalogue: &Catalogue) -> Vec<Window> {
    let repos: BTreeSet<RepoKey> = catalogue.sets.iter().map(|set| set.repo).collect();
    let on_timelines = catalogue.archived.timelines().map(|(timeline, _)| timeline);
    let timelines: BTreeSet<Timeline> = on_timelines.chain(catalogue.current).collect();
    let pairs = timelines.iter().rev().flat_map(|t| repos.iter().map(move |r| (*t, *r)));
    pairs.map(|(timeline, repo)| window(catalogue, repo, timeline)).collect()
}

fn window(catalogue: &Catalogue, repo: RepoKey, timeline: Timeline) -> Window {
    // What is only in pg_wal does not count.
    let archived = Catalogue { local: super::archive::Segments::default(), ..catalogue.clone() };
    let branch = archived.timelines.branch(timeline);
    let of_repo = archived.sets.iter().filter(|set| set.repo == repo);
    // What cannot be restored brings no moment back.
    let of_repo = of_repo.filter(|set| set.judgement.state.can_be_restored());
    let mut sets: Vec<&Set> =
        of_repo.filter(|s| branch.holds(s.archive_start.timeline(), s.lsn_stop)).collect();
    sets.sort_by_key(|set| set.lsn_stop);
    let mut found = Window {
        repo,
        timeline,
        is_current: catalogue.current == Some(timeline),
        ranges: Vec::new(),
        gaps: Vec::new(),
    };
    let (Some(first), Some(end)) = (sets.first(), archived.end_of(&branch)) else { return found };
    let first = first.archive_start.number();
    found.gaps = archived.gaps(&branch, first, end.number());
    // Between two gaps: the stretch from the first set in it to the last commit in it.
    let mut begin = first;
    let cuts = found.gaps.iter().map(|gap| (gap.first.number(), gap.last.number() + 1));
    for (stop, next) in cuts.chain([(end.number() + 1, u64::MAX)]) {
        found.ranges.extend(stretch(&archived, &branch, &sets, begin, stop));
        begin = next;
    }
    found
}

/// The moments of the segments from `begin` up to, not including, `stop`.
fn stretch(
    catalogue: &Catalogue,
    branch: &Branch,
    sets: &[&Set],
    begin: u64,
    stop: u64,
) -> Option<Range> {
    let size = catalogue.segment_size;
    let within = |lsn: Lsn| (begin..stop).contains(&size.number_before(lsn));
    let whole = |set: &&&Set| set.archive_start.number() >= begin && within(set.lsn_stop);
    let set = sets.iter().filter(whole).min_by_key(|set| set.stopped_at)?;
    let from = set.reachable_from();
    let commits = catalogue.samples_on(branch).filter(|sample| within(sample.lsn));
    let last = commits.map(|sample| sample.at).max();
    let ends = sets.iter().filter(whole).map(|set| set.reachable_from()).max();
    Some(Range { from, to: last.max(ends).unwrap_or(from).max(from) })
}
