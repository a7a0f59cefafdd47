//! Retention against cases by hand, and against a model that is written another way.

mod holds;
mod removing;

use std::time::Duration;

use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A label as pgBackRest makes it.
fn stamp(time: Timestamp) -> String {
    time.strftime("%Y%m%d-%H%M%S").to_string()
}

/// A history in repository 1: kinds with the moments at which they ended. An incr builds upon the
/// backup before it, a diff upon the full before it.
fn history(backups: &[(BackupType, Timestamp)]) -> Vec<Held> {
    let mut found: Vec<Held> = Vec::new();
    for (kind, time) in backups {
        let full = found.iter().rev().find(|held| is_full(held)).map(|held| held.label.clone());
        let (label, needs) = match (kind, full) {
            (BackupType::Full, _) | (_, None) => (format!("{}F", stamp(*time)), Vec::new()),
            (BackupType::Diff, Some(full)) => (format!("{full}_{}D", stamp(*time)), vec![full]),
            (BackupType::Incr, Some(full)) => {
                let prior = found.last().unwrap();
                let mut needs = vec![full.clone(), prior.label.clone()];
                needs.extend(prior.needs.iter().cloned());
                (format!("{full}_{}I", stamp(*time)), needs)
            }
        };
        found.push(Held {
            label: label.parse().unwrap(),
            repo: RepoKey::FIRST,
            stopped_at: Some(*time),
            needs,
            own_bytes: Some(1),
            bad: false,
        });
    }
    found
}

fn rules(policy: Policy) -> Rules {
    Rules {
        policy,
        timezone: TimeZone::UTC,
        counts: BTreeMap::new(),
        pins: BTreeSet::new(),
        in_use: BTreeMap::new(),
        holds: Vec::new(),
    }
}

fn counted(full: Option<FullRetention>, diff: Option<u32>) -> Rules {
    let counts = BTreeMap::from([(RepoKey::FIRST, Counts { full, diff })]);
    Rules { counts, ..rules(Policy::default()) }
}

const NOW: &str = "2026-12-01T00:00:00Z";

fn kept(backups: &[Held], rules: &Rules) -> Vec<usize> {
    let plans = plan(backups, rules, at(NOW));
    let verdicts = plans.iter().flat_map(|plan| &plan.verdicts);
    let kept: BTreeSet<&BackupLabel> =
        verdicts.filter(|verdict| verdict.is_kept()).map(|verdict| &verdict.label).collect();
    (0..backups.len()).filter(|n| kept.contains(&backups[*n].label)).collect()
}

use BackupType::{Diff, Full, Incr};

#[test]
fn each_rule_alone() {
    // Fulls on Sundays, incrs on other days, 2026-11-01 (a Sunday) to 2026-11-30.
    let days: Vec<(BackupType, Timestamp)> = (1..=30)
        .map(|day| {
            let kind = if day % 7 == 1 { Full } else { Incr };
            (kind, at(&format!("2026-11-{day:02}T02:00:00Z")))
        })
        .collect();
    let month = history(&days);
    let with = |policy: Policy| kept(&month, &rules(policy));
    let all: Vec<usize> = (0..30).collect();
    assert_eq!(with(Policy::default()), all, "nothing is configured");
    assert_eq!(with(Policy { daily: Some(0), ..Policy::default() }), all, "zero is off");
    // The newest is the 30th, an incr upon the full of the 29th.
    assert_eq!(with(Policy { daily: Some(1), ..Policy::default() }), [28, 29]);
    assert_eq!(with(Policy { daily: Some(3), ..Policy::default() })[..], all[21..]);
    // The newest of the week before is Sunday's full (ISO weeks end with Sunday).
    assert_eq!(with(Policy { weekly: Some(2), ..Policy::default() }), [28, 29]);
    assert_eq!(with(Policy { weekly: Some(3), ..Policy::default() }), [21, 28, 29]);
    assert_eq!(with(Policy { monthly: Some(9), ..Policy::default() }), [28, 29]);
    assert_eq!(kept(&month, &counted(Some(FullRetention::Count(2)), None))[..], all[21..]);
    assert_eq!(kept(&month, &counted(Some(FullRetention::Count(9)), None)), all);
    // Older than ten days before the 1st of December: the full of the 15th; it and newer ones.
    assert_eq!(kept(&month, &counted(Some(FullRetention::Days(10)), None))[..], all[14..]);
    assert_eq!(kept(&month, &counted(None, Some(1))), all, "there are no diffs");
}

/// Seen with `expire --dry-run` of 2.45 (tests/real/retention.rs has the first).
#[test]
fn a_count_of_diffs_takes_diffs_and_what_builds_upon_them() {
    let day = |day: u32| at(&format!("2026-11-{day:02}T02:00:00Z"));
    let of = |kinds: &[BackupType]| {
        let with_days = kinds.iter().zip(1..).map(|(kind, n)| (*kind, day(n)));
        history(&with_days.collect::<Vec<_>>())
    };
    let chain = of(&[Full, Incr, Diff, Incr, Diff]);
    let two = Some(FullRetention::Count(2));
    for full in [None, two] {
        assert_eq!(kept(&chain, &counted(full, Some(1))), [0, 1, 4], "{full:?}");
        assert_eq!(kept(&chain, &counted(full, Some(2))), [0, 1, 2, 3, 4], "{full:?}");
    }
    // A full counts as a diff.
    let chain = of(&[Full, Diff, Full, Incr]);
    assert_eq!(kept(&chain, &counted(two, Some(1))), [0, 2, 3]);
    // Where fulls have no count, the days alone decide about them.
    let mut rules = counted(None, Some(1));
    rules.policy.daily = Some(1);
    assert_eq!(kept(&chain, &rules), [2, 3]);
    rules.counts.clear();
    rules.counts.insert(RepoKey::FIRST, Counts { full: two, diff: None });
    assert_eq!(kept(&chain, &rules), [0, 1, 2, 3]);
}

#[test]
fn what_is_damaged_counts_for_nothing() {
    let day = |day: u32| at(&format!("2026-11-{day:02}T02:00:00Z"));
    let days: Vec<_> = (1..=5).map(|n| (Full, day(n))).collect();
    let mut backups = history(&days);
    let daily = |n: u32| rules(Policy { daily: Some(n), ..Policy::default() });
    let two = counted(Some(FullRetention::Count(2)), None);
    assert_eq!(kept(&backups, &daily(2)), [3, 4]);
    for bad in [2, 3] {
        backups[bad].bad = true;
    }
    // As if they were good, and as if they were not there.
    assert_eq!(kept(&backups, &daily(2)), [1, 3, 4]);
    assert_eq!(kept(&backups, &two), [1, 3, 4]);
    backups[4].bad = true;
    assert_eq!(kept(&backups, &daily(1)), [1, 4]);
    assert_eq!(kept(&backups, &two), [0, 1, 3, 4]);
    let told = plan(&backups, &daily(1), at(NOW)).remove(0);
    assert_eq!(told.verdicts[4].reasons[..2], [Reason::Newest, Reason::NewestFull]);
    assert_eq!(told.verdicts[1].reasons[..2], [Reason::NewestGood, Reason::NewestFull]);
    assert_eq!(told.wal_from.as_ref(), Some(&backups[1].label));
    // A pin keeps it nevertheless, and the last good one cannot be removed by name.
    let mut pinned = daily(1);
    pinned.pins.insert(backups[3].label.clone());
    assert_eq!(kept(&backups, &pinned), [1, 3, 4]);
    backups[0].bad = true;
    let remove = |at: usize| removal(&backups, &daily(1), &backups[at].label, None);
    assert!(matches!(remove(1), Err(Refused::LastFull(..))));
    assert!(remove(0).is_ok() && remove(4).is_ok());
    // With nothing that is good the newest stays.
    backups[1].bad = true;
    assert_eq!(kept(&backups, &two), [3, 4]);
}

#[test]
fn what_builds_upon_a_damaged_full_keeps_it() {
    let day = |day: u32| at(&format!("2026-11-{day:02}T02:00:00Z"));
    let mut backups =
        history(&[(Full, day(1)), (Full, day(2)), (Diff, day(3)), (Full, day(4)), (Diff, day(5))]);
    backups[1].bad = true;
    let two = counted(Some(FullRetention::Count(2)), None);
    assert_eq!(kept(&backups, &two), [0, 1, 2, 3, 4]);
    // And with it the one before, which is good.
    backups[2].bad = true;
    assert_eq!(kept(&backups, &two), [0, 1, 2, 3, 4]);
}

#[test]
fn days_without_end_keep_everything() {
    let backups =
        history(&[(Full, at("2026-11-20T10:00:00Z")), (Full, at("2026-11-21T10:00:00Z"))]);
    for days in [9_999_998, u32::MAX] {
        assert_eq!(kept(&backups, &counted(Some(FullRetention::Days(days)), None)), [0, 1]);
    }
}

#[test]
fn reasons_are_told() {
    let backups = history(&[
        (Full, at("2026-11-20T10:00:00Z")),
        (Incr, at("2026-11-20T12:00:00Z")),
        (Incr, at("2026-11-20T14:00:00Z")),
        (Full, at("2026-11-21T10:00:00Z")),
    ]);
    let mut rules = rules(Policy { daily: Some(1), weekly: Some(1), ..Policy::default() });
    let told = |rules: &Rules| -> Vec<String> {
        let plan = plan(&backups, rules, at(NOW)).remove(0);
        let line = |verdict: &Verdict| match verdict.doom {
            Some(doom) => format!("- {doom}"),
            None => verdict.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        plan.verdicts.iter().map(line).collect()
    };
    let doomed = "- no day, week, month or year of [retention] keeps it";
    let newest = "newest backup, newest full, daily 2026-11-21, weekly 2026-W47";
    assert_eq!(told(&rules), [doomed, doomed, doomed, newest]);
    let label = |at: usize| backups[at].label.clone();
    rules.pins.insert(label(1));
    assert_eq!(told(&rules), [&format!("needed by {}", label(1)), "pinned", doomed, newest]);
    let one = plan(&backups, &rules, at(NOW)).remove(0);
    assert_eq!(one.removals, [Removal { set: label(2), removes: vec![label(2)] }]);
    assert_eq!(one.wal_fulls(), 1, "a pin does not keep all WAL since then");
    rules.pins.clear();
    rules.in_use.insert(label(0), "restore 7".to_owned());
    assert_eq!(told(&rules)[..2], ["in use by restore 7", doomed]);
    // One call removes both.
    let one = plan(&backups, &rules, at(NOW)).remove(0);
    assert_eq!(one.wal_fulls(), 2, "a restore may go on to any moment");
    assert_eq!(one.removals, [Removal { set: label(1), removes: vec![label(1), label(2)] }]);
}

/// `expire` counts all fulls that are there, those that go with them.
#[test]
fn wal_is_counted_over_all_that_is_there() {
    let backups = history(&[
        (Full, at("2026-11-20T10:00:00Z")),
        (Full, at("2026-11-21T10:00:00Z")),
        (Full, at("2026-11-21T12:00:00Z")),
        (Diff, at("2026-11-21T14:00:00Z")),
    ]);
    let label = |at: usize| backups[at].label.clone();
    let rules = rules(Policy { daily: Some(2), ..Policy::default() });
    let plan = plan(&backups, &rules, at(NOW)).remove(0);
    assert_eq!(plan.doomed().collect::<Vec<_>>(), [&label(1)]);
    assert_eq!(plan.wal_fulls(), 2);
    let limit = |own| plan.wal_limit(own).map(|limit| (limit.from, limit.count));
    assert_eq!(limit(None), Some((label(0), 3)));
    assert_eq!(limit(Some((2, ArchiveType::Full))), Some((label(0), 3)));
    assert_eq!(limit(Some((1, ArchiveType::Full))), Some((label(2), 1)));
    assert_eq!(limit(Some((3, ArchiveType::Diff))), Some((label(0), 4)));
    assert_eq!(limit(Some((1, ArchiveType::Incr))), Some((label(3), 1)));
    for none in [0, 3, u32::MAX] {
        assert_eq!(limit(Some((none, ArchiveType::Full))), None, "{none}");
    }
}

#[test]
fn days_are_those_of_the_time_zone() {
    // In Berlin both are on the 21st, in UTC on two days.
    let backups =
        history(&[(Full, at("2026-11-20T23:30:00Z")), (Full, at("2026-11-21T12:00:00Z"))]);
    let utc = rules(Policy { daily: Some(2), ..Policy::default() });
    assert_eq!(kept(&backups, &utc), [0, 1]);
    let berlin = Rules { timezone: TimeZone::fixed(jiff::tz::offset(1)), ..utc };
    assert_eq!(kept(&backups, &berlin), [1]);
}

/// A thousand backups over five years.
fn five_years() -> Vec<Held> {
    let begin = at("2021-12-01T02:00:00Z");
    let backups: Vec<_> = (0..1000i64)
        .map(|n| {
            let kind = match n {
                n if n % 28 == 0 => Full,
                n if n % 7 == 0 => Diff,
                _ => Incr,
            };
            (kind, begin + jiff::SignedDuration::from_hours(n * 43))
        })
        .collect();
    history(&backups)
}

#[test]
fn a_thousand_backups_are_planned_at_once() {
    let backups = five_years();
    let gfs = Policy { daily: Some(14), weekly: Some(5), monthly: Some(12), yearly: Some(3) };
    let rules = rules(gfs);
    // The time of this thread alone, the best of a few: other programs run on this machine, too.
    let used = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let best = (0..7)
        .map(|_| {
            let begin = used();
            let plans = plan(&backups, &rules, at(NOW));
            assert!(plans[0].doomed().count() > 500, "{}", plans[0].doomed().count());
            used().saturating_sub(begin)
        })
        .min();
    assert!(best < Some(Duration::from_millis(50)), "{best:?}");
}

/// What must be kept, from the definition: for each period the backups in it, for each backup the
/// chain below it.
fn model(backups: &[Held], rules: &Rules) -> BTreeSet<BackupLabel> {
    let newest = |of: &dyn Fn(&Held) -> bool| {
        backups.iter().filter(|b| of(b)).max_by_key(|b| (b.stopped_at, b.label.clone()))
    };
    let mut kept: BTreeSet<BackupLabel> = BTreeSet::new();
    let is_full = |b: &Held| !b.label.as_str().contains('_');
    kept.extend(newest(&|_| true).map(|b| b.label.clone()));
    kept.extend(newest(&|b: &Held| !b.bad).map(|b| b.label.clone()));
    kept.extend(newest(&is_full).map(|b| b.label.clone()));
    kept.extend(newest(&|b: &Held| is_full(b) && !b.bad).map(|b| b.label.clone()));
    kept.extend(rules.pins.iter().cloned());
    let formats = [
        (rules.policy.daily, "%Y-%m-%d"),
        (rules.policy.weekly, "%G-%V"),
        (rules.policy.monthly, "%Y-%m"),
        (rules.policy.yearly, "%Y"),
    ];
    for (count, format) in formats {
        let name = |b: &Held| {
            let zoned = b.stopped_at.unwrap().to_zoned(rules.timezone.clone());
            zoned.strftime(format).to_string()
        };
        for good_only in [false, true] {
            let counts = |b: &Held| !(good_only && b.bad);
            let mut periods: Vec<String> = backups.iter().filter(|b| counts(b)).map(name).collect();
            periods.sort();
            periods.dedup();
            for period in periods.iter().rev().take(count.unwrap_or(0) as usize) {
                let of_period = newest(&|b: &Held| counts(b) && name(b) == *period);
                kept.extend(of_period.map(|b| b.label.clone()));
            }
        }
    }
    loop {
        let needed: Vec<BackupLabel> = backups
            .iter()
            .filter(|b| kept.contains(&b.label))
            .flat_map(|b| b.needs.clone())
            .filter(|label| !kept.contains(label))
            .collect();
        if needed.is_empty() {
            break;
        }
        kept.extend(needed);
    }
    kept.retain(|label| backups.iter().any(|b| b.label == *label));
    kept
}

fn histories() -> impl Strategy<Value = Vec<Held>> {
    let one = (0..3usize, 1..200_000i64);
    proptest::collection::vec(one, 0..80).prop_map(|steps| {
        let mut time = at("2024-12-20T00:00:00Z");
        let backups: Vec<_> = steps
            .into_iter()
            .map(|(kind, minutes)| {
                // Mostly near each other, sometimes far.
                let minutes = if minutes % 5 == 0 { minutes / 4 } else { minutes % 3000 + 1 };
                time += jiff::SignedDuration::from_mins(minutes);
                (BackupType::ALL[kind], time)
            })
            .collect();
        history(&backups)
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let count = || proptest::option::of(0..9u32);
    (count(), count(), count(), count()).prop_map(|(daily, weekly, monthly, yearly)| Policy {
        daily,
        weekly,
        monthly,
        yearly,
    })
}

proptest! {
    #[test]
    fn keeps_what_the_model_keeps(
        mut backups in histories(),
        bad in proptest::collection::vec(0..80usize, 0..30),
        policy in policies(),
        pins in proptest::collection::vec(0..80usize, 0..4),
        hours in -11..13i8,
    ) {
        for at in bad {
            if let Some(backup) = backups.get_mut(at) {
                backup.bad = true;
            }
        }
        let pins = pins.iter().filter_map(|n| backups.get(*n)).map(|b| b.label.clone()).collect();
        let timezone = TimeZone::fixed(jiff::tz::offset(hours));
        let rules = Rules { timezone, pins, ..rules(policy) };
        let plans = plan(&backups, &rules, at(NOW));
        let verdicts: Vec<&Verdict> = plans.iter().flat_map(|plan| &plan.verdicts).collect();
        prop_assert_eq!(verdicts.len(), backups.len(), "every backup has a verdict");
        let kept: BTreeSet<BackupLabel> =
            verdicts.iter().filter(|v| v.is_kept()).map(|v| v.label.clone()).collect();
        let expect = if policy.is_set() {
            model(&backups, &rules)
        } else {
            backups.iter().map(|b| b.label.clone()).collect()
        };
        prop_assert_eq!(kept, expect);
    }

    /// Carried out as pgBackRest does it (a set goes with all whose prior or reference it is), the
    /// calls remove exactly what is doomed, and each says exactly what it removes.
    #[test]
    fn the_calls_remove_what_is_doomed_and_nothing_else(
        backups in histories(),
        policy in policies(),
        full in proptest::option::of(1..5u32),
        diff in proptest::option::of(1..5u32),
        pins in proptest::collection::vec(0..80usize, 0..4),
    ) {
        let mut rules = counted(full.map(FullRetention::Count), diff);
        rules.policy = policy;
        rules.pins =
            pins.iter().filter_map(|n| backups.get(*n)).map(|b| b.label.clone()).collect();
        for plan in plan(&backups, &rules, at(NOW)) {
            let mut left: Vec<Held> = backups.clone();
            for call in &plan.removals {
                let mut gone = BTreeSet::from([call.set.clone()]);
                for backup in &left {
                    if backup.needs.iter().any(|needed| gone.contains(needed)) {
                        gone.insert(backup.label.clone());
                    }
                }
                prop_assert!(left.iter().any(|b| b.label == call.set), "{} twice", call.set);
                prop_assert_eq!(&gone, &call.removes.iter().cloned().collect());
                left.retain(|backup| !gone.contains(&backup.label));
            }
            let left: BTreeSet<&BackupLabel> = left.iter().map(|b| &b.label).collect();
            let kept = plan.verdicts.iter().filter(|v| v.is_kept()).map(|v| &v.label).collect();
            prop_assert_eq!(left, kept);
            let fulls = backups.iter().filter(|b| is_full(b)).count();
            prop_assert!(plan.wal_fulls() as usize <= fulls);
            prop_assert!(fulls == 0 || plan.wal_fulls() > 0);
            // Before the calls pgBackRest counts from the same full as after them.
            let mut labels: Vec<_> = backups.iter().filter(|b| is_full(b)).map(|b| &b.label).collect();
            labels.sort_by(|a, b| b.cmp(a));
            let limit = plan.wal_limit(None);
            let told = limit.as_ref().map(|limit| labels[limit.count as usize - 1]);
            prop_assert_eq!(told, plan.wal_from.as_ref());
        }
    }

    /// As pgBackRest's source does it: fulls beyond their count with all of theirs, then of the fulls
    /// and diffs that are left the diffs beyond theirs, each with what builds upon it.
    #[test]
    fn counts_alone_remove_what_pgbackrest_removes(
        backups in histories(),
        full in proptest::option::of(1..5usize),
        diff in proptest::option::of(1..5usize),
    ) {
        let mut left: Vec<&Held> = backups.iter().collect();
        let fulls: Vec<&Held> = backups.iter().filter(|b| is_full(b)).collect();
        for gone in fulls.iter().rev().skip(full.unwrap_or(usize::MAX)) {
            left.retain(|backup| backup.label.full_label() != gone.label);
        }
        let mut counted_as_diff: Vec<&Held> = left.clone();
        counted_as_diff.retain(|b| b.label.backup_type() != Incr);
        let beyond = counted_as_diff.iter().rev().skip(diff.unwrap_or(usize::MAX));
        for gone in beyond.filter(|b| !is_full(b)) {
            left.retain(|b| b.label != gone.label && !b.needs.contains(&gone.label));
        }
        let as_u32 = |count: usize| u32::try_from(count).unwrap();
        let rules = counted(full.map(|n| FullRetention::Count(as_u32(n))), diff.map(as_u32));
        let kept = kept(&backups, &rules).into_iter().map(|at| &backups[at].label);
        prop_assert_eq!(
            kept.collect::<BTreeSet<_>>(),
            left.iter().map(|b| &b.label).collect::<BTreeSet<_>>()
        );
    }

    #[test]
    fn counts_keep_at_least_the_newest(backups in histories(), n in 1..9u32) {
        let counted = counted(Some(FullRetention::Count(n)), None);
        let kept = kept(&backups, &counted);
        let fulls = kept.iter().filter(|at| is_full(&backups[**at])).count();
        let all = backups.iter().filter(|b| is_full(b)).count();
        prop_assert_eq!(fulls, all.min(n as usize));
    }
}
