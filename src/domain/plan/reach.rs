//! What can be reached: on which timeline a target is, by which position it is passed, what of the
//! WAL in between is there.

use jiff::Timestamp;

use super::super::archive::Gap;
use super::super::recovery::{RecoveryTarget, TargetTimeline, Xid};
use super::super::timeline::Branch;
use super::super::{Lsn, Timeline, WalSegment};
use super::{Catalogue, Lost, Moment, Place, RestorePoint, Sample, Unreachable, Wish};

/// How late a branch reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Up to this moment it is known what was committed.
    pub certain: Option<Timestamp>,
    /// There may be commits up to here.
    pub possible: Option<Timestamp>,
}

impl Catalogue {
    /// The timeline whose branch is followed.
    pub(super) fn timeline_for(&self, wish: &Wish) -> Result<Timeline, Unreachable> {
        let newest = self.all_timelines().last().copied().unwrap_or(Timeline::FIRST);
        let current = self.current.unwrap_or(newest);
        match wish.timeline {
            Some(TargetTimeline::Current) => return Ok(current),
            Some(TargetTimeline::Latest) => return Ok(newest.max(current)),
            Some(TargetTimeline::Number(number)) => {
                let known = number == current || self.all_timelines().contains(&number);
                return if known { Ok(number) } else { Err(Unreachable::UnknownTimeline(number)) };
            }
            None => {}
        }
        let own = self.timelines.branch(current);
        Ok(match &wish.target {
            RecoveryTarget::Time { value, .. } => {
                // Before the first backup nothing can be reached: what is nearest is said of its
                // timeline.
                let first = self.sets.iter().min_by_key(|set| set.stopped_at);
                match first.filter(|set| *value < set.reachable_from()) {
                    Some(first) => first.archive_start.timeline(),
                    None => self.timeline_at(*value, current),
                }
            }
            RecoveryTarget::Name { .. } => match self.point(wish, &own) {
                Some(point) if !own.holds(point.timeline, point.lsn) => point.timeline,
                Some(_) | None => current,
            },
            RecoveryTarget::Immediate => {
                let set = wish.set.as_ref().and_then(|label| {
                    self.sets.iter().find(|set| set.label == *label).map(|set| &set.archive_start)
                });
                match set {
                    Some(start) if !own.includes(start.timeline()) => start.timeline(),
                    Some(_) | None => current,
                }
            }
            RecoveryTarget::Latest | RecoveryTarget::Lsn { .. } | RecoveryTarget::Xid { .. } => {
                current
            }
        })
    }

    /// The timeline that the server was on at a moment. What other servers made of the same archive
    /// (a clone that was promoted into it) does not count.
    fn timeline_at(&self, at: Timestamp, current: Timeline) -> Timeline {
        let mut ours: Vec<Timeline> = if self.current.is_none() && self.trail.is_empty() {
            self.all_timelines()
        } else {
            let own = self.timelines.branch(current);
            let ancestors = own.stretches().iter().map(|stretch| stretch.timeline);
            ancestors.chain(self.trail.iter().copied()).collect()
        };
        ours.sort_unstable();
        ours.dedup();
        let first = ours.first().copied().unwrap_or(current);
        let born = |timeline: Timeline| self.born.get(&timeline).copied();
        let alive = ours.into_iter().filter(|timeline| born(*timeline).is_some_and(|b| b <= at));
        alive.max_by_key(|timeline| (born(*timeline), *timeline)).unwrap_or(first)
    }

    /// Every timeline that the archive, a history file or the trail knows, ascending.
    fn all_timelines(&self) -> Vec<Timeline> {
        let archived = self.archived.timelines().map(|(timeline, _)| timeline);
        let mut all: Vec<Timeline> =
            archived.chain(self.timelines.known()).chain(self.trail.iter().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The restore point that is meant: one on the branch before one elsewhere, the newest first.
    fn point(&self, wish: &Wish, branch: &Branch) -> Option<&RestorePoint> {
        let RecoveryTarget::Name { value } = &wish.target else { return None };
        let named = self.points.iter().filter(|point| point.name == *value);
        named.max_by_key(|point| (branch.holds(point.timeline, point.lsn), point.at))
    }

    /// Where the target is, `None` when every set is early enough; and why it may not exist.
    pub(super) fn place(
        &self,
        wish: &Wish,
        branch: &Branch,
    ) -> Result<(Option<Place>, Option<String>), Unreachable> {
        match &wish.target {
            RecoveryTarget::Latest | RecoveryTarget::Immediate => Ok((None, None)),
            RecoveryTarget::Time { value, .. } => self.place_of_time(wish, *value, branch),
            RecoveryTarget::Lsn { value, .. } => {
                let end = self.end_lsn(branch);
                if let Some(end) = end.filter(|end| *value > *end) {
                    return Err(past_end(wish, branch, Moment::Lsn(end)));
                }
                let place = Place { set_before: Moment::Lsn(*value), reached_by: Some(*value) };
                Ok((Some(place), None))
            }
            RecoveryTarget::Xid { value, .. } => self.place_of_xid(wish, *value, branch),
            RecoveryTarget::Name { .. } => match self.point(wish, branch) {
                Some(point) if branch.holds(point.timeline, point.lsn) => {
                    let place =
                        Place { set_before: Moment::Lsn(point.lsn), reached_by: Some(point.lsn) };
                    Ok((Some(place), None))
                }
                Some(_) | None => unknown_place(wish),
            },
        }
    }

    fn place_of_time(
        &self,
        wish: &Wish,
        at: Timestamp,
        branch: &Branch,
    ) -> Result<(Option<Place>, Option<String>), Unreachable> {
        let reach = self.reach(branch);
        let newest_set = self.newest_set_on(branch);
        if newest_set.is_none() && wish.set.is_none() {
            return Err(Unreachable::NoBackup);
        }
        let nearest = reach.certain.max(newest_set).unwrap_or(self.now).min(self.now);
        if at > self.now {
            let (target, nearest) = (wish.target.clone(), Moment::Time(nearest));
            return Err(Unreachable::InFuture { target, nearest });
        }
        let mut uncertain = None;
        if reach.certain.is_none_or(|certain| at > certain) {
            if reach.possible.is_none_or(|possible| at > possible) {
                return Err(past_end(wish, branch, Moment::Time(nearest)));
            }
            uncertain = Some(format!(
                "the last commit that is known on timeline {} is of {nearest}; if there is none \
                 after the target, recovery stops at the end of the WAL and asks what to do",
                branch.tip()
            ));
        }
        let after = self.samples_on(branch).find(|sample| sample.at > at);
        let reached_by = after.map(|sample| sample.lsn);
        Ok((Some(Place { set_before: Moment::Time(at), reached_by }), uncertain))
    }

    fn place_of_xid(
        &self,
        wish: &Wish,
        xid: Xid,
        branch: &Branch,
    ) -> Result<(Option<Place>, Option<String>), Unreachable> {
        let newest = self.samples_on(branch).map(|sample| sample.xid).max();
        // A server that is down cannot be asked what it gave out after the last sample.
        let live = self.live.filter(|_| self.is_current(branch));
        let end = live.map(|live| live.next_xid);
        if end.is_some_and(|next| xid.get() >= next) {
            // As a time: of the newest transaction it is not known that it ended after a backup.
            let newest_set = self.newest_set_on(branch);
            let nearest = self.reach(branch).certain.max(newest_set).unwrap_or(self.now);
            return Err(past_end(wish, branch, Moment::Time(nearest.min(self.now))));
        }
        // It was given out after every smaller one, so it ended after those were.
        let before = self.samples_on(branch).filter(|sample| sample.xid < xid.get()).last();
        let Some(before) = before else { return unknown_place(wish) };
        let after = self.samples_on(branch).find(|sample| sample.xid > xid.get());
        let uncertain = (after.is_none() && end.is_none()).then(|| {
            let newest = newest.unwrap_or_default();
            format!("the newest transaction that is known is {newest}; {xid} may not exist")
        });
        // A long transaction may end after ones with a larger id: no position is certain.
        Ok((Some(Place { set_before: Moment::Time(before.at), reached_by: None }), uncertain))
    }

    /// How late a branch reaches.
    pub fn reach(&self, branch: &Branch) -> Reach {
        let tip = branch.tip();
        let has = |sample: &&Sample| self.holds_wal(sample, branch);
        let known = self.samples_on(branch).filter(has).map(|sample| sample.at).max();
        if self.is_current(branch) && self.live.is_some() {
            // It can still commit: the restore itself does before it stops the server.
            return Reach { certain: Some(self.now), possible: Some(self.now) };
        }
        // All its WAL is there, so until then the last commit in it was the last there was.
        let last_alive = self.last_alive.filter(|_| self.is_current(branch));
        let ended = self.ended.get(&tip).copied();
        let certain = known.max(last_alive).max(ended);
        let archived = self.archived_at.get(&tip).copied();
        // When a backup ended the server was there.
        let backed_up = self.newest_set_on(branch);
        Reach { certain, possible: certain.max(archived).max(backed_up) }
    }

    /// The first moment that the newest set on a branch can be restored to.
    fn newest_set_on(&self, branch: &Branch) -> Option<Timestamp> {
        let sets = self.sets.iter();
        let on_branch = sets.filter(|s| branch.holds(s.archive_start.timeline(), s.lsn_stop));
        on_branch.map(super::Set::reachable_from).max()
    }

    /// Whether the WAL of a commit is in the archive, or will be before the restore begins.
    fn holds_wal(&self, sample: &Sample, branch: &Branch) -> bool {
        self.has(branch, self.segment_size.number_before(sample.lsn))
    }

    fn has(&self, branch: &Branch, number: u64) -> bool {
        let segment = branch.segment(number, self.segment_size);
        self.archived.has(segment) || self.local.has(segment)
    }

    /// Whether a branch is the one that the server is on.
    pub fn is_current(&self, branch: &Branch) -> bool {
        self.current == Some(branch.tip())
    }

    /// Known commits on a branch, in order of time.
    pub fn samples_on<'a>(&'a self, branch: &'a Branch) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(|sample| branch.holds(sample.timeline, sample.lsn))
    }

    /// The last segment of a branch that there is.
    pub fn end_of(&self, branch: &Branch) -> Option<WalSegment> {
        branch.last(self.segment_size, |timeline| {
            let archived = self.archived.last(timeline, self.segment_size);
            archived.max(self.local.last(timeline, self.segment_size))
        })
    }

    fn end_lsn(&self, branch: &Branch) -> Option<Lsn> {
        match self.live.filter(|_| self.is_current(branch)) {
            Some(live) => Some(live.lsn),
            None => self.end_of(branch).map(|last| last.end()),
        }
    }

    /// The runs of missing segments from one number to another, both included.
    pub fn gaps(&self, branch: &Branch, first: u64, last: u64) -> Vec<Gap> {
        let size = self.segment_size;
        let mut gaps: Vec<Gap> = Vec::new();
        for number in (first..=last).filter(|number| !self.has(branch, *number)) {
            let segment = branch.segment(number, size);
            match gaps.last_mut() {
                Some(gap)
                    if gap.last.number() + 1 == number
                        && gap.last.timeline() == segment.timeline() =>
                {
                    gap.last = segment;
                }
                _ => gaps.push(Gap { first: segment, last: segment }),
            }
        }
        gaps
    }

    pub(super) fn lost(&self, wish: &Wish, branch: &Branch, place: Option<Place>) -> Option<Lost> {
        let current = self.current?;
        if wish.target == RecoveryTarget::Latest && branch.tip() == current {
            return None;
        }
        let size = self.segment_size;
        let first = match place.map(|place| (place.set_before, place.reached_by)) {
            Some((Moment::Lsn(lsn), _)) => Some(lsn),
            Some((Moment::Time(at), _)) => {
                self.samples_on(branch).filter(|sample| sample.at <= at).last().map(|s| s.lsn)
            }
            None => None,
        };
        let first = first.map(|lsn| branch.segment(lsn.get() / size.get(), size));
        let last = match self.live {
            Some(live) => Some(WalSegment::containing(current, live.lsn, size)),
            None => self.end_of(&self.timelines.branch(current)),
        };
        Some(Lost { first, last })
    }
}

fn past_end(wish: &Wish, branch: &Branch, nearest: Moment) -> Unreachable {
    Unreachable::PastEnd { target: wish.target.clone(), timeline: branch.tip(), nearest }
}

/// Where nothing is known, only somebody who names the set can take the responsibility.
fn unknown_place(wish: &Wish) -> Result<(Option<Place>, Option<String>), Unreachable> {
    if wish.set.is_none() {
        return Err(Unreachable::UnknownPlace(wish.target.clone()));
    }
    let text = format!(
        "where {} is in the WAL is not known: if it is before the end of the chosen backup, or does \
         not exist, recovery goes on to the end of the WAL and asks what to do",
        wish.target
    );
    Ok((None, Some(text)))
}
