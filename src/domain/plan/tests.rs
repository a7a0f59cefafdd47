//! Tables and properties of the decision.

use proptest::prelude::*;

use super::super::timeline::History;
use super::super::window::windows;
use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn timeline(number: u32) -> Timeline {
    Timeline::try_from(number).unwrap()
}

const SIZE: SegmentSize = SegmentSize::MIN;

/// A server that writes one segment a second: at second n it is in the middle of segment n.
fn lsn(second: i64) -> Lsn {
    Lsn::new(u64::try_from(second).unwrap() * SIZE.get() + SIZE.get() / 2)
}

fn segment(on: u32, number: i64) -> WalSegment {
    WalSegment::containing(timeline(on), lsn(number), SIZE)
}

fn set(on: u32, second: i64) -> Set {
    let stamp = at(second).strftime("%Y%m%d-%H%M%SF").to_string();
    Set {
        label: stamp.parse().unwrap(),
        repo: RepoKey::FIRST,
        stopped_at: at(second),
        lsn_stop: lsn(second),
        archive_start: segment(on, second - 1),
        size_bytes: None,
        judgement: Judgement::UNVERIFIED,
    }
}

fn sample(on: u32, second: i64) -> Sample {
    let xid = 1000 + u64::try_from(second).unwrap();
    Sample { timeline: timeline(on), at: at(second), lsn: lsn(second), xid }
}

/// One timeline of 100 s, a backup at 10, 40 and 70, a sample every ten seconds, running.
fn one_timeline() -> Catalogue {
    Catalogue {
        now: at(100),
        segment_size: SIZE,
        sets: vec![set(1, 10), set(1, 40), set(1, 70)],
        timelines: Timelines::default(),
        born: BTreeMap::new(),
        trail: Vec::new(),
        archived: (1..=99).map(|number| segment(1, number)).collect(),
        archived_at: BTreeMap::from([(timeline(1), at(99))]),
        local: Segments::from_iter([segment(1, 100)]),
        current: Some(timeline(1)),
        live: Some(Live { lsn: lsn(100), next_xid: 1101 }),
        last_alive: None,
        ended: BTreeMap::new(),
        samples: (0..10).map(|n| sample(1, n * 10 + 5)).collect(),
        points: vec![RestorePoint {
            name: "before-release".parse().unwrap(),
            timeline: timeline(1),
            lsn: lsn(45),
            at: at(45),
        }],
    }
}

/// The same after a restore at second 100 to second 50, which made timeline 2 at 105.
fn after_a_restore() -> Catalogue {
    let mut catalogue = one_timeline();
    let history = format!("1\t{}\tbefore 2023-11-14\n", lsn(50));
    catalogue.timelines.insert(timeline(2), History::parse(&history).unwrap());
    catalogue.born.insert(timeline(2), at(105));
    catalogue.trail = vec![timeline(1), timeline(2)];
    catalogue.samples.push(sample(1, 100));
    let on_two = (50..=60).map(|number| segment(2, number));
    catalogue.archived = (1..=100).map(|number| segment(1, number)).chain(on_two).collect();
    catalogue.archived_at.insert(timeline(2), at(115));
    catalogue.local = Segments::default();
    catalogue.current = Some(timeline(2));
    let newest = Sample { timeline: timeline(2), at: at(110), lsn: lsn(58), xid: 1200 };
    catalogue.samples.push(newest);
    catalogue.now = at(120);
    catalogue.live = Some(Live { lsn: lsn(60), next_xid: 1201 });
    catalogue
}

fn wish(target: RecoveryTarget) -> Wish {
    Wish { target, set: None, repo: None, timeline: None }
}

fn to(second: i64) -> Wish {
    wish(RecoveryTarget::Time { value: at(second), exclusive: false })
}

fn chosen(catalogue: &Catalogue, wish: &Wish) -> (i64, u32) {
    let decision = decide(catalogue, wish).unwrap();
    let second = decision.set.stopped_at.as_second() - 1_700_000_000;
    (second, decision.timeline.get())
}

#[test]
fn a_set_that_is_not_damaged_is_preferred() {
    use State::{Damaged, Good, PageErrors, Unreadable, Unverified};
    // Of the backups at 10, 40 and 70; whether WAL between the first two is missing; which is taken,
    // and how many newer ones are passed over.
    let table = [
        ([Unverified, Good, Unverified], false, 70, 0),
        ([Unverified, Unverified, PageErrors], false, 40, 1),
        ([Unverified, PageErrors, PageErrors], false, 10, 2),
        ([PageErrors, PageErrors, Damaged], false, 40, 1),
        ([PageErrors, PageErrors, PageErrors], false, 70, 0),
        ([Damaged, Damaged, Unreadable], false, 40, 1),
        ([Unreadable, Unreadable, Damaged], false, 70, 0),
        ([Unreadable, Unreadable, Unreadable], false, 70, 0),
        ([Unverified, Unreadable, Unreadable], false, 10, 2),
        // The way from the whole one has a gap: it does not reach the target.
        ([Unverified, PageErrors, PageErrors], true, 70, 0),
        ([Unverified, Unreadable, Unreadable], true, 10, 2),
        ([Unverified, Unverified, Damaged], true, 40, 1),
    ];
    for (states, gap, expect, passed_over) in table {
        let mut catalogue = one_timeline();
        for (set, state) in catalogue.sets.iter_mut().zip(states) {
            set.judgement.state = state;
        }
        if gap {
            catalogue.archived =
                (1..=99).filter(|n| *n != 20).map(|number| segment(1, number)).collect();
        }
        let decision = decide(&catalogue, &wish(RecoveryTarget::Latest)).unwrap();
        let second = decision.set.stopped_at.as_second() - 1_700_000_000;
        assert_eq!((second, decision.passed_over.len()), (expect, passed_over), "{states:?} {gap}");
        // Whatever it is worth, one that is named is taken.
        let named = Wish { set: Some(set(1, 70).label), ..wish(RecoveryTarget::Latest) };
        assert_eq!(chosen(&catalogue, &named).0, 70);
    }
}

#[test]
fn the_newest_set_before_the_target() {
    let catalogue = one_timeline();
    for (second, expect) in [(11, 10), (40, 10), (41, 40), (70, 40), (71, 70), (100, 70)] {
        assert_eq!(chosen(&catalogue, &to(second)), (expect, 1), "{second}");
    }
    let latest = wish(RecoveryTarget::Latest);
    assert_eq!(chosen(&catalogue, &latest), (70, 1));
    assert_eq!(decide(&catalogue, &latest).unwrap().lost, None);
    let lsn_target = |value| wish(RecoveryTarget::Lsn { value, exclusive: false });
    assert_eq!(chosen(&catalogue, &lsn_target(lsn(40))), (40, 1));
    assert_eq!(chosen(&catalogue, &lsn_target(Lsn::new(lsn(40).get() - 1))), (10, 1));
    let name = |text: &str| wish(RecoveryTarget::Name { value: text.parse().unwrap() });
    assert_eq!(chosen(&catalogue, &name("before-release")), (40, 1));
    let xid = |value: u64| {
        wish(RecoveryTarget::Xid { value: value.to_string().parse().unwrap(), exclusive: false })
    };
    assert_eq!(chosen(&catalogue, &xid(1043)), (10, 1), "the sample before is of second 35");
    assert_eq!(chosen(&catalogue, &xid(1050)), (40, 1));
    let decision = decide(&catalogue, &to(42)).unwrap();
    assert_eq!(decision.wal_until.unwrap().number(), 45, "up to the sample after it");
    assert_eq!(decision.lost.unwrap().last, Some(segment(1, 100)));
    assert_eq!(decision.uncertain, None);
}

#[test]
fn refusals_name_the_nearest() {
    let catalogue = one_timeline();
    let nearest = |wish: &Wish| decide(&catalogue, wish).unwrap_err().nearest();
    assert_eq!(nearest(&to(5)), Some(Moment::Time(at(11))));
    assert_eq!(nearest(&to(10)), Some(Moment::Time(at(11))));
    assert_eq!(nearest(&to(101)), Some(Moment::Time(at(100))));
    let early = wish(RecoveryTarget::Lsn { value: lsn(3), exclusive: false });
    assert_eq!(nearest(&early), Some(Moment::Lsn(lsn(10))));
    let late = wish(RecoveryTarget::Lsn { value: lsn(101), exclusive: false });
    assert_eq!(nearest(&late), Some(Moment::Lsn(lsn(100))));
    let unborn = RecoveryTarget::Xid { value: "1101".parse().unwrap(), exclusive: false };
    assert_eq!(nearest(&wish(unborn)), Some(Moment::Time(at(100))));
    let late_set = Wish { set: Some(set(1, 70).label), ..to(50) };
    assert_eq!(nearest(&late_set), Some(Moment::Time(at(71))));
    let nowhere = wish(RecoveryTarget::Name { value: "nobody".parse().unwrap() });
    assert!(matches!(decide(&catalogue, &nowhere), Err(Unreachable::UnknownPlace(_))));
    let taken_on = Wish { set: Some(set(1, 40).label), ..nowhere };
    assert!(decide(&catalogue, &taken_on).unwrap().uncertain.is_some());
    let other = Wish { timeline: Some(TargetTimeline::Number(timeline(7))), ..to(50) };
    assert_eq!(decide(&catalogue, &other), Err(Unreachable::UnknownTimeline(timeline(7))));
    let repo = Wish { repo: Some(RepoKey::MAX), ..to(50) };
    assert_eq!(decide(&catalogue, &repo), Err(Unreachable::NoBackupInRepo(RepoKey::MAX)));
}

#[test]
fn a_moment_is_on_the_timeline_of_its_time() {
    let catalogue = after_a_restore();
    // Later than the first restore's target, before the first restore: the old timeline.
    assert_eq!(chosen(&catalogue, &to(80)), (70, 1));
    assert_eq!(chosen(&catalogue, &to(45)), (40, 1));
    // After it: the new one, whose branch does not hold the set of second 70.
    assert_eq!(chosen(&catalogue, &to(110)), (40, 2));
    assert_eq!(chosen(&catalogue, &wish(RecoveryTarget::Latest)), (40, 2));
    let old = Wish {
        timeline: Some(TargetTimeline::Number(timeline(1))),
        ..wish(RecoveryTarget::Latest)
    };
    assert_eq!(chosen(&catalogue, &old), (70, 1));
    // While nobody could commit.
    let refused = decide(&catalogue, &to(103)).unwrap_err();
    assert_eq!(refused.nearest(), Some(Moment::Time(at(100))), "{refused}");
    // A clone that was promoted into the same archive is not ours.
    let mut cloned = after_a_restore();
    cloned.timelines.insert(timeline(3), History::parse("1 0/3000000 clone").unwrap());
    cloned.born.insert(timeline(3), at(112));
    cloned.archived_at.insert(timeline(3), at(119));
    assert_eq!(chosen(&cloned, &to(118)), (40, 2));
}

#[test]
fn before_the_first_backup_the_nearest_moment_is_its_own() {
    // Those of the first timeline have expired.
    let mut catalogue = after_a_restore();
    catalogue.sets = vec![set(2, 58)];
    let refused = decide(&catalogue, &to(3)).unwrap_err();
    assert_eq!(refused.nearest(), Some(Moment::Time(at(59))), "{refused}");
}

#[test]
fn a_timeline_that_was_left_reaches_to_the_birth_of_the_next() {
    let mut catalogue = after_a_restore();
    let nowhere = Wish { timeline: Some(TargetTimeline::Number(timeline(1))), ..to(104) };
    assert!(decide(&catalogue, &nowhere).is_err());
    catalogue.ended.insert(timeline(1), at(105));
    assert_eq!(decide(&catalogue, &nowhere).unwrap().uncertain, None);
}

#[test]
fn a_server_that_is_down_reaches_as_far_as_it_lived() {
    let mut catalogue = one_timeline();
    catalogue.live = None;
    catalogue.last_alive = Some(at(98));
    assert_eq!(decide(&catalogue, &to(98)).unwrap().uncertain, None);
    let refused = decide(&catalogue, &to(100)).unwrap_err();
    assert_eq!(refused.nearest(), Some(Moment::Time(at(98))), "{refused}");
    // Everything of the server is lost: there may be commits that never reached the archive.
    (catalogue.current, catalogue.local, catalogue.last_alive) = (None, Segments::default(), None);
    assert_eq!(chosen(&catalogue, &to(95)), (70, 1));
    assert!(decide(&catalogue, &to(98)).unwrap().uncertain.is_some());
}

#[test]
fn gaps_are_named_and_cut_the_window() {
    let mut catalogue = one_timeline();
    let missing = [50, 51, 85];
    let there = (1..=99).filter(|n| !missing.contains(n)).map(|number| segment(1, number));
    catalogue.archived = there.collect();
    let gaps = decide(&catalogue, &to(65)).unwrap().gaps;
    assert_eq!(gaps, [Gap { first: segment(1, 50), last: segment(1, 51) }]);
    assert_eq!(decide(&catalogue, &to(44)).unwrap().gaps, []);
    // A newer set is beyond the first gap.
    assert_eq!(decide(&catalogue, &wish(RecoveryTarget::Latest)).unwrap().gaps.len(), 1);
    let found = windows(&catalogue);
    let [window] = found.as_slice() else { panic!("{found:?}") };
    let ranges: Vec<_> = window
        .ranges
        .iter()
        .map(|r| (r.from.as_second() - 1_700_000_000, r.to.as_second() - 1_700_000_000))
        .collect();
    assert_eq!(ranges, [(11, 45), (71, 75)]);
    assert_eq!(window.gaps.len(), 2);
}

#[test]
fn windows_after_a_restore() {
    let found = windows(&after_a_restore());
    let facts: Vec<_> = found.iter().map(|w| (w.timeline.get(), w.is_current, w.to())).collect();
    assert_eq!(facts, [(2, true, Some(at(110))), (1, false, Some(at(100)))]);
    assert!(found.iter().all(|window| window.from() == Some(at(11)) && window.gaps.is_empty()));
}

prop_compose! {
    /// Sets, samples, up to three branches, missing segments.
    fn any_catalogue()(
        backups in proptest::collection::vec((1u32..4, 2i64..200), 0..12),
        samples in proptest::collection::btree_set(1i64..200, 0..20),
        forks in (10i64..90, 10i64..190),
        missing in proptest::collection::btree_set(1i64..200, 0..6),
        current in 1u32..4,
        live: bool,
    ) -> Catalogue {
        let mut timelines = Timelines::default();
        let two = format!("1\t{}\tx\n", lsn(forks.0));
        timelines.insert(timeline(2), History::parse(&two).unwrap());
        let three = format!("1\t{}\tx\n", lsn(forks.1));
        timelines.insert(timeline(3), History::parse(&three).unwrap());
        let begin = |on: u32| [0, forks.0, forks.1][on as usize - 1];
        let sets = backups.into_iter().filter(|(on, second)| *second > begin(*on)).map(|(on, second)| set(on, second));
        let segments = (1..=3).flat_map(|on| (begin(on)..=200).map(move |n| (on, n)));
        let archived = segments.filter(|(_, n)| !missing.contains(n)).map(|(on, n)| segment(on, n));
        Catalogue {
            now: at(200),
            segment_size: SIZE,
            sets: sets.collect(),
            timelines,
            born: BTreeMap::from([(timeline(2), at(95)), (timeline(3), at(195))]),
            trail: (1..=current).map(timeline).collect(),
            archived: archived.collect(),
            archived_at: BTreeMap::new(),
            local: Segments::default(),
            current: Some(timeline(current)),
            live: live.then_some(Live { lsn: lsn(200), next_xid: 5000 }),
            last_alive: Some(at(180)),
            ended: BTreeMap::new(),
            samples: samples.into_iter().map(|second| sample(1, second)).collect(),
            points: vec![RestorePoint {
                name: "p".parse().unwrap(), timeline: timeline(1), lsn: lsn(60), at: at(60),
            }],
        }
    }
}

fn any_target() -> impl Strategy<Value = RecoveryTarget> {
    prop_oneof![
        Just(RecoveryTarget::Latest),
        Just(RecoveryTarget::Immediate),
        (0i64..210).prop_map(|s| RecoveryTarget::Time { value: at(s), exclusive: false }),
        (0i64..210).prop_map(|s| RecoveryTarget::Lsn { value: lsn(s), exclusive: false }),
        (900u64..1300).prop_map(|n| RecoveryTarget::Xid {
            value: n.to_string().parse().unwrap(),
            exclusive: false
        }),
        Just(RecoveryTarget::Name { value: "p".parse().unwrap() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Never a set that ended after the target, never a timeline that does not reach it, always
    /// the newest that is left, and every missing segment on the way is told.
    #[test]
    fn a_plan_is_never_a_wrong_one(
        catalogue in any_catalogue(),
        target in any_target(),
        pinned in proptest::option::of(1u32..4),
    ) {
        let wish = Wish {
            timeline: pinned.map(|number| TargetTimeline::Number(timeline(number))),
            ..wish(target)
        };
        let Ok(decision) = decide(&catalogue, &wish) else { return Ok(()) };
        let branch = catalogue.timelines.branch(decision.timeline);
        let early = |set: &Set| match &wish.target {
            RecoveryTarget::Time { value, .. } => set.reachable_from() <= *value,
            RecoveryTarget::Lsn { value, .. } => set.lsn_stop <= *value,
            // The sample's transaction n is committed at second n - 1000.
            RecoveryTarget::Xid { value, .. } => {
                set.stopped_at < at(i64::try_from(value.get()).unwrap() - 1000)
            }
            RecoveryTarget::Name { .. } => set.lsn_stop <= lsn(60),
            RecoveryTarget::Latest | RecoveryTarget::Immediate => true,
        };
        let on_branch = |set: &Set| branch.holds(set.archive_start.timeline(), set.lsn_stop);
        prop_assert!(early(&decision.set) && on_branch(&decision.set));
        if !matches!(wish.target, RecoveryTarget::Xid { .. }) {
            let newest = catalogue.sets.iter().filter(|set| early(set) && on_branch(set));
            prop_assert_eq!(
                newest.map(|set| set.stopped_at).max(), Some(decision.set.stopped_at)
            );
        }
        if let Some(number) = pinned {
            prop_assert_eq!(decision.timeline, timeline(number));
        }
        if let RecoveryTarget::Time { value, .. } = &wish.target {
            prop_assert!(*value <= catalogue.now);
            let reach = catalogue.reach(&branch);
            prop_assert!(reach.certain.max(reach.possible) >= Some(*value));
        }
        if let Some(until) = decision.wal_until {
            for number in decision.set.archive_start.number()..until.number() {
                let file = branch.segment(number, SIZE);
                let told = decision.gaps.iter().any(|gap| {
                    (gap.first.number()..=gap.last.number()).contains(&number)
                });
                prop_assert_eq!(told, !catalogue.archived.has(file));
            }
        }
    }

    /// A refusal that names a moment is right: that moment is taken.
    #[test]
    fn the_nearest_moment_can_be_reached(catalogue in any_catalogue(), second in 0i64..210) {
        let asked = Wish { timeline: Some(TargetTimeline::Current), ..to(second) };
        if let Err(refusal) = decide(&catalogue, &asked)
            && let Some(Moment::Time(nearest)) = refusal.nearest()
        {
            let again = RecoveryTarget::Time { value: nearest, exclusive: false };
            let again = Wish { target: again, ..asked };
            let other = decide(&catalogue, &again);
            prop_assert!(other.is_ok(), "{refusal}, but then {other:?}");
        }
    }

    /// Every moment of a window can be planned for, without a gap.
    #[test]
    fn the_window_keeps_its_promise(catalogue in any_catalogue(), part in 0.0f64..=1.0) {
        for window in windows(&catalogue) {
            for range in &window.ranges {
                let length = range.to.duration_since(range.from).as_secs_f64();
                let moment = range.from + SignedDuration::from_secs_f64((length * part).floor());
                let target = RecoveryTarget::Time { value: moment, exclusive: false };
                let number = TargetTimeline::Number(window.timeline);
                let asked = Wish { timeline: Some(number), ..wish(target) };
                let decision = decide(&catalogue, &asked);
                prop_assert!(decision.is_ok(), "{moment} of {range:?}: {decision:?}");
            }
        }
    }
}
