//! Which WAL segments there are, as ranges, and where some are missing.

use std::collections::BTreeMap;

use super::{SegmentSize, Timeline, WalSegment};

/// Segment numbers of one timeline, as ascending ranges that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// The ranges, first and last number, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Whether a number is in one of them.
    pub fn contains(&self, number: u64) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= number);
        after.checked_sub(1).is_some_and(|at| number <= self.0[at].1)
    }

    /// The largest number.
    pub fn last(&self) -> Option<u64> {
        self.0.last().map(|(_, last)| *last)
    }
}

impl FromIterator<u64> for Ranges {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut numbers: Vec<u64> = numbers.into_iter().collect();
        numbers.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for number in numbers {
            match ranges.last_mut() {
                Some((_, last)) if number <= last.saturating_add(1) => *last = number,
                _ => ranges.push((number, number)),
            }
        }
        Self(ranges)
    }
}

/// Segments by timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segments(BTreeMap<Timeline, Ranges>);

impl Segments {
    /// The ranges of one timeline.
    pub fn of(&self, timeline: Timeline) -> Option<&Ranges> {
        self.0.get(&timeline)
    }

    /// Every timeline that has any, ascending.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = (Timeline, &Ranges)> {
        self.0.iter().map(|(timeline, ranges)| (*timeline, ranges))
    }

    /// Whether a segment is there.
    pub fn has(&self, segment: WalSegment) -> bool {
        self.of(segment.timeline()).is_some_and(|ranges| ranges.contains(segment.number()))
    }

    /// Every segment, ascending by timeline.
    pub fn each(&self, size: SegmentSize) -> impl Iterator<Item = WalSegment> + '_ {
        self.timelines().flat_map(move |(timeline, ranges)| {
            let numbers = ranges.iter().flat_map(|(first, last)| first..=last);
            numbers.filter_map(move |number| WalSegment::numbered(timeline, number, size))
        })
    }

    /// The last segment of a timeline.
    pub fn last(&self, timeline: Timeline, size: SegmentSize) -> Option<WalSegment> {
        let number = self.of(timeline)?.last()?;
        WalSegment::numbered(timeline, number, size)
    }
}

impl FromIterator<WalSegment> for Segments {
    fn from_iter<I: IntoIterator<Item = WalSegment>>(segments: I) -> Self {
        let mut numbers: BTreeMap<Timeline, Vec<u64>> = BTreeMap::new();
        for segment in segments {
            numbers.entry(segment.timeline()).or_default().push(segment.number());
        }
        Self(
            numbers.into_iter().map(|(timeline, all)| (timeline, Ranges::from_iter(all))).collect(),
        )
    }
}

/// Missing segments: the first and the last of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first that is missing.
    pub first: WalSegment,
    /// The last that is missing.
    pub last: WalSegment,
}

impl Gap {
    /// How many segments are missing.
    pub fn segments(&self) -> u64 {
        self.last.number() - self.first.number() + 1
    }
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            return write!(f, "WAL segment {} is missing", self.first);
        }
        write!(f, "WAL segments {} to {} are missing", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_hold_what_was_put_in(numbers in proptest::collection::btree_set(0u64..60, 0..40)) {
            let ranges = Ranges::from_iter(numbers.clone());
            let there: BTreeSet<u64> = (0..70).filter(|n| ranges.contains(*n)).collect();
            prop_assert_eq!(&there, &numbers);
            prop_assert_eq!(ranges.last(), numbers.last().copied());
            let pairs: Vec<_> = ranges.iter().collect();
            prop_assert!(pairs.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        }
    }

    #[test]
    fn segments_by_timeline() {
        let size = SegmentSize::DEFAULT;
        let parse = |name: &str| WalSegment::parse(name, size).unwrap();
        let (one, two) = ("000000010000000000000003", "000000020000000000000003");
        let segments = Segments::from_iter([parse(one), parse(two), parse(one)]);
        assert!(segments.has(parse(one)) && !segments.has(parse("000000010000000000000004")));
        assert_eq!(segments.last(Timeline::FIRST, size), Some(parse(one)));
        assert_eq!(segments.timelines().count(), 2);
        let gap = Gap { first: parse(one), last: parse("000000010000000000000005") };
        assert_eq!((gap.segments(), gap.to_string().contains(" to ")), (3, true));
    }
}
