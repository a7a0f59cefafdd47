//! Every moment gets exactly one verdict, whatever the clock, the machine and the jobs do.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::super::{MissedPolicy, Schedule, ScheduleKind, Zone};
use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn secs(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

fn schedule(cron: &str) -> Schedule {
    let (name, stanza) = ("nightly".parse().unwrap(), "main".parse().unwrap());
    Schedule::new(name, stanza, ScheduleKind::Diff, cron.parse().unwrap())
}

/// A scheduler with a clock that is set by hand.
struct Bench {
    schedule: Schedule,
    state: State,
    now: Timestamp,
    world: World,
    told: Vec<Told>,
    starts: Vec<Timestamp>,
}

impl Bench {
    fn new(schedule: Schedule, now: &str) -> Self {
        let (now, world) = (at(now), World::Clear);
        let state = State::new(now);
        Self { schedule, state, now, world, told: Vec::new(), starts: Vec::new() }
    }

    fn job(&self) -> Option<JobId> {
        match self.state.run.as_ref().map(|run| &run.step) {
            Some(Step::Running { job }) => Some(*job),
            _ => None,
        }
    }

    fn tick(&mut self, now: Timestamp) {
        self.now = now;
        let turn = self.schedule.tick(&self.state, now, &self.world);
        // What is stored is read again, as after a restart.
        let stored = serde_json::to_string(&turn.state).unwrap();
        self.state = serde_json::from_str(&stored).unwrap();
        self.told.extend(turn.told);
        if turn.start {
            self.starts.push(now);
            let (state, told) = self.state.clone().started(JobId::new(now));
            self.state = state;
            self.told.extend(told);
        }
    }

    fn later(&mut self, by: SignedDuration) {
        self.tick(self.now + by);
    }

    fn end(&mut self, outcome: Outcome) -> Option<Next> {
        let job = self.job()?;
        let (state, next) = self.state.clone().ended(&self.schedule, job, outcome, self.now)?;
        self.state = state;
        Some(next)
    }

    fn verdicts(&self) -> Vec<(Verdict, u64)> {
        self.told.iter().map(|told| (told.verdict, told.slots.count)).collect()
    }
}

#[test]
fn on_time_once_and_not_again_when_the_clock_goes_back() {
    let mut bench = Bench::new(schedule("0 2 * * *"), "2026-11-20T01:59:00Z");
    for _ in 0..600 {
        bench.later(secs(1));
        bench.end(Outcome::Succeeded);
    }
    assert_eq!(bench.starts, [at("2026-11-20T02:00:00Z")]);
    // An hour back, and through two o'clock once more.
    bench.tick(bench.now - secs(3600));
    for _ in 0..120 {
        bench.later(secs(60));
    }
    assert_eq!(bench.starts.len(), 1);
    // An hour ahead over the next moment: it is late and runs once.
    bench.tick(at("2026-11-21T01:30:00Z"));
    bench.later(secs(3600));
    assert_eq!(bench.starts.last(), Some(&at("2026-11-21T02:30:00Z")));
    assert_eq!(bench.verdicts(), [(Verdict::Run, 1), (Verdict::Run, 1)]);
}

#[test]
fn a_stall_loses_nothing_even_when_missed_runs_are_skipped() {
    let skip = Schedule { missed: MissedPolicy::Skip, ..schedule("0 2 * * *") };
    let mut bench = Bench::new(skip.clone(), "2026-11-20T01:59:30Z");
    bench.later(secs(150));
    assert_eq!(bench.verdicts(), [(Verdict::Run, 1)]);
    // An hour is more than a stall.
    let mut bench = Bench::new(skip, "2026-11-20T01:59:30Z");
    bench.later(secs(3600));
    assert_eq!(bench.verdicts(), [(Verdict::Missed, 1)]);
}

#[test]
fn at_the_exact_moment_of_a_restart_it_runs_once() {
    let mut bench = Bench::new(schedule("0 2 * * *"), "2026-11-20T01:00:00Z");
    for _ in 0..3 {
        bench.tick(at("2026-11-20T02:00:00Z"));
    }
    assert_eq!(bench.starts.len(), 1);
    // Intent was stored, and then the power failed: it is started now.
    let mut bench = Bench::new(schedule("0 2 * * *"), "2026-11-20T01:00:00Z");
    let turn = bench.schedule.tick(&bench.state, at("2026-11-20T02:00:00Z"), &World::Clear);
    assert!(turn.start);
    bench.state = turn.state;
    bench.tick(at("2026-11-20T02:03:00Z"));
    assert_eq!(bench.verdicts(), [(Verdict::Run, 1)]);
}

#[test]
fn after_an_outage_one_run_makes_up_for_all() {
    let mut bench = Bench::new(schedule("0 * * * *"), "2026-11-20T00:30:00Z");
    bench.tick(at("2026-11-20T05:10:00Z"));
    assert_eq!(bench.verdicts(), [(Verdict::Coalesced, 4), (Verdict::Run, 1)]);
    assert_eq!(bench.told[0].slots.last, at("2026-11-20T04:00:00Z"));
    let mut bench = Bench::new(
        Schedule { within: secs(3600), ..schedule("0 2 * * *") },
        "2026-11-20T00:30:00Z",
    );
    bench.tick(at("2026-11-23T04:00:00Z"));
    assert_eq!(bench.verdicts(), [(Verdict::Missed, 4)]);
}

#[test]
fn what_still_runs_takes_the_next_moment_with_it() {
    let mut bench = Bench::new(schedule("*/5 * * * *"), "2026-11-20T00:04:00Z");
    bench.later(secs(60));
    bench.later(secs(600));
    assert_eq!(bench.verdicts(), [(Verdict::Run, 1), (Verdict::Coalesced, 2)]);
}

#[test]
fn failures_are_tried_again_with_longer_waits_and_then_given_up() {
    let mut bench = Bench::new(schedule("0 2 * * *"), "2026-11-20T01:59:00Z");
    bench.later(secs(60));
    let (mut waits, mut foretold) = (Vec::new(), Vec::new());
    while let Some(Next::Again(at)) = bench.end(Outcome::Failed) {
        waits.push(at.duration_since(bench.now).as_secs());
        bench.tick(at - secs(1));
        assert_eq!(bench.job(), None, "not before its time");
        foretold.push(bench.schedule.tries_again(&bench.state, at));
        bench.tick(at);
    }
    assert_eq!(foretold, [true, true, false], "the last try is known to be the last");
    assert_eq!(waits, [60, 300, 900]);
    assert_eq!((bench.starts.len(), bench.state.run.clone()), (4, None));
    assert_eq!(bench.verdicts(), [(Verdict::Run, 1)]);
    assert!(bench.state.trouble.as_ref().unwrap().text.contains("failed after 4 tries"));
    bench.tick(at("2026-11-21T02:00:00Z"));
    bench.end(Outcome::Succeeded);
    assert_eq!(bench.state.trouble, None);
    // What somebody cancelled is not tried again.
    let mut bench = Bench::new(schedule("0 2 * * *"), "2026-11-20T01:59:00Z");
    bench.later(secs(60));
    assert_eq!(bench.end(Outcome::Cancelled), Some(Next::Served));
}

#[test]
fn a_try_is_the_last_when_the_next_moment_comes_before_another() {
    let mut bench = Bench::new(schedule("*/5 * * * *"), "2026-11-20T01:59:00Z");
    let first = at("2026-11-20T02:00:00Z");
    assert!(!bench.schedule.tries_again(&bench.state, first), "nothing is served");
    bench.tick(first);
    let starting = |attempts| {
        let run = Run { slot: first, due: first, attempts, step: Step::Starting };
        State { run: Some(run), ..bench.state.clone() }
    };
    assert!(bench.schedule.tries_again(&starting(0), first));
    // Five minutes after the second try is after the next moment.
    assert!(!bench.schedule.tries_again(&starting(1), first + secs(60)));
    let paused = State { paused: true, ..starting(0) };
    assert!(!bench.schedule.tries_again(&paused, first));
}

#[test]
fn what_cannot_start_waits_and_is_missed_in_the_end() {
    let mut bench = Bench::new(schedule("0 2 * * *"), "2026-11-20T01:59:00Z");
    bench.world = World::Blocked("PostgreSQL is recovering".to_owned());
    bench.later(secs(60));
    assert!(
        matches!(&bench.state.run.as_ref().unwrap().step, Step::Held { why } if why.contains("recovering"))
    );
    bench.world = World::Clear;
    bench.later(secs(7200));
    assert_eq!(bench.verdicts(), [(Verdict::Run, 1)]);
    let mut bench = Bench::new(schedule("0 2 * * *"), "2026-11-20T01:59:00Z");
    bench.world = World::Blocked("PostgreSQL is down".to_owned());
    bench.later(secs(60));
    bench.later(secs(6 * 3600 + 1));
    assert_eq!(bench.verdicts(), [(Verdict::Missed, 1)]);
    assert_eq!(bench.told[0].reason, "PostgreSQL is down");
    assert!(bench.state.trouble.as_ref().unwrap().text.contains("was missed: PostgreSQL is down"));
    bench.world = World::Unfit("a standby".to_owned());
    bench.tick(at("2026-11-21T02:00:00Z"));
    assert_eq!(bench.told[1].verdict, Verdict::Skipped);
}

#[test]
fn paused_means_paused() {
    let mut bench = Bench::new(schedule("0 * * * *"), "2026-11-20T00:30:00Z");
    bench.state.paused = true;
    bench.later(secs(2 * 3600));
    assert_eq!(bench.verdicts(), [(Verdict::Skipped, 2)]);
    bench.state.paused = false;
    bench.later(secs(60));
    assert_eq!(bench.starts.len(), 0, "what was skipped stays skipped");
}

#[test]
fn jitter_is_the_same_every_time_and_different_from_day_to_day() {
    let schedule = Schedule { jitter: secs(600), ..schedule("0 2 * * *") };
    let (mut slot, mut lates) = (at("2026-11-20T00:00:00Z"), std::collections::BTreeSet::new());
    for _ in 0..30 {
        let (next, due) = schedule.next_due(slot).unwrap();
        assert_eq!(due, schedule.due(next));
        let late = due.duration_since(next);
        assert!(!late.is_negative() && late <= secs(600));
        lates.insert(late);
        slot = next;
    }
    assert!(lates.len() > 15, "{lates:?}");
}

#[test]
fn a_clock_that_was_decades_ahead_does_not_end_all_backups() {
    let mut bench = Bench::new(schedule("0 2 * * *"), "2099-01-01T00:00:00Z");
    bench.tick(at("2026-11-20T01:59:00Z"));
    bench.later(secs(60));
    assert_eq!(bench.starts.len(), 1);
}

#[test]
fn a_clock_that_was_decades_behind_for_a_moment_fires_nothing_twice() {
    let mut bench = Bench::new(schedule("0 2 * * *"), "2026-11-20T02:30:00Z");
    bench.tick(at("2020-01-01T00:00:00Z"));
    bench.tick(at("2026-11-20T02:31:00Z"));
    assert_eq!(bench.verdicts(), []);
    bench.tick(at("2026-11-21T02:00:00Z"));
    assert_eq!(bench.verdicts(), [(Verdict::Run, 1)]);
}

#[test]
fn what_fails_more_often_than_it_can_be_tried_again_is_told() {
    let mut bench = Bench::new(schedule("* * * * *"), "2026-11-20T00:00:30Z");
    bench.later(secs(30));
    bench.end(Outcome::Failed);
    bench.later(secs(60));
    assert!(bench.state.trouble.as_ref().unwrap().text.contains("(1 tries)"));
    bench.end(Outcome::Succeeded);
    assert_eq!(bench.state.trouble, None);
}

#[test]
fn years_of_minutes_are_decided_at_once() {
    let mut bench = Bench::new(schedule("* * * * *"), "2020-01-01T00:00:00Z");
    let begun = std::time::Instant::now();
    bench.tick(at("2026-11-20T00:00:00Z"));
    assert!(begun.elapsed() < std::time::Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(bench.starts.len(), 1);
    assert_eq!(bench.state.decided, at("2026-11-20T00:00:00Z"));
}

/// What happens between two looks.
#[derive(Debug, Clone)]
enum Happening {
    Wait(i64),
    ClockBack(i64),
    Ended(Outcome),
    Blocked(bool),
    Unfit,
    Paused(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (1i64..180).prop_map(Happening::Wait),
        2 => (180i64..30_000).prop_map(Happening::Wait),
        1 => (100_000i64..2_000_000).prop_map(Happening::Wait),
        2 => (1i64..=3600).prop_map(Happening::ClockBack),
        4 => proptest::sample::select(Outcome::ALL.to_vec()).prop_map(Happening::Ended),
        2 => any::<bool>().prop_map(Happening::Blocked),
        1 => Just(Happening::Unfit),
        1 => any::<bool>().prop_map(Happening::Paused),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_moment_is_run_coalesced_missed_or_skipped_and_only_one_of_them(
        cron in proptest::sample::select(vec![
            "*/7 * * * *", "0 * * * *", "30 2 * * *", "0 0 1 * SUN", "15,45 1-3 * * *", "@weekly",
        ]),
        zone in proptest::sample::select(vec![
            "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC",
        ]),
        begin in 0i64..360,
        skip in any::<bool>(),
        within in 0i64..100_000,
        jitter in prop_oneof![Just(0i64), 1i64..7_200],
        happenings in proptest::collection::vec(happening(), 1..60),
    ) {
        let missed = if skip { MissedPolicy::Skip } else { MissedPolicy::RunOnce };
        let schedule = Schedule {
            timezone: zone.parse::<Zone>().unwrap(),
            missed,
            within: secs(within),
            jitter: secs(jitter),
            ..schedule(cron)
        };
        let from = at("2026-01-01T00:00:00Z") + secs(begin * 86_400);
        let mut bench = Bench::new(schedule.clone(), &from.to_string());
        let mut latest = from;
        for happening in happenings {
            match happening {
                Happening::Wait(seconds) => bench.later(secs(seconds)),
                Happening::ClockBack(seconds) => bench.tick(bench.now - secs(seconds)),
                Happening::Ended(outcome) => { bench.end(outcome); }
                Happening::Blocked(true) => bench.world = World::Blocked("down".to_owned()),
                Happening::Unfit => bench.world = World::Unfit("standby".to_owned()),
                Happening::Blocked(false) => bench.world = World::Clear,
                Happening::Paused(paused) => bench.state.paused = paused,
            }
            latest = latest.max(bench.now);
        }
        // Every verdict, moment by moment.
        let mut verdicts: BTreeMap<Timestamp, Vec<Verdict>> = BTreeMap::new();
        for told in &bench.told {
            let (mut slot, mut count) = (told.slots.first, 1);
            verdicts.entry(slot).or_default().push(told.verdict);
            while slot < told.slots.last {
                slot = schedule.next_due(slot).unwrap().0;
                verdicts.entry(slot).or_default().push(told.verdict);
                count += 1;
            }
            prop_assert_eq!(count, told.slots.count, "{:?}", told);
        }
        let held = bench.state.run.as_ref().filter(|run| run.attempts == 0).map(|run| run.slot);
        let mut slot = from;
        while let Some((next, _)) = schedule.next_due(slot).filter(|(next, _)| *next <= bench.state.decided) {
            let expect = usize::from(Some(next) != held);
            let got = verdicts.remove(&next).unwrap_or_default();
            prop_assert_eq!(got.len(), expect, "{} has {:?}", next, got);
            slot = next;
        }
        prop_assert!(verdicts.is_empty(), "no such moments: {:?}", verdicts);
        // And none that is due is undecided.
        bench.tick(latest);
        let undecided = schedule.next_due(bench.state.decided).filter(|(_, due)| *due <= latest);
        prop_assert_eq!(undecided, None);
        // A run starts neither too early nor too late.
        for start in &bench.starts {
            prop_assert!(*start >= from);
        }
    }
}
