//! Tests of the restore's phases, its journal and what a boot does with one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::prelude::*;

use super::super::recovery::{OnReached, RecoveryTarget};
use super::super::{JobId, Lsn, RepoKey};
use super::*;

fn journal(phase: Phase) -> Journal {
    let at = Timestamp::from_second(1_700_000_000).unwrap();
    let pinned = Pinned {
        set: "20261120-101500F".parse().unwrap(),
        repo: RepoKey::FIRST,
        timeline: Timeline::try_from(3).unwrap(),
        wal_end: None,
        left_in: BTreeMap::new(),
        ended: None,
        system_id: None,
        position: None,
        plan: String::new(),
        planned_at: None,
    };
    let (stanza, target) = ("main".parse().unwrap(), RecoveryTarget::Latest);
    let accepted = Journal::accepted(JobId::new(at), stanza, "test".into(), target, pinned, at);
    Journal {
        phase,
        pgdata: "/data".into(),
        pgdata_identity: (1, 2),
        system_id: Some("7300000000000000001".into()),
        segment_bytes: Some(16 << 20),
        ..accepted
    }
}

fn control(timeline: u32, out_of_recovery: bool) -> ControlFacts {
    ControlFacts { timeline: Timeline::try_from(timeline).unwrap(), out_of_recovery }
}

#[test]
fn boot_table() {
    use BootAction as B;
    let cases = [
        (Phase::Accepted, Some(control(3, true)), B::Abort),
        (Phase::Draining, Some(control(3, true)), B::Abort),
        (Phase::Restoring, None, B::RestoreAgain),
        (Phase::Restoring, Some(control(3, true)), B::RestoreAgain),
        (Phase::Restored, Some(control(3, false)), B::Recover),
        // The backup was taken "in production": that is what a fresh restore shows.
        (Phase::Restored, Some(control(3, true)), B::Recover),
        (Phase::Restored, Some(control(2, true)), B::Recover),
        (Phase::Recovering, Some(control(3, false)), B::Recover),
        (Phase::Recovering, None, B::RestoreAgain),
        (Phase::Recovering, Some(control(4, true)), B::RestoreAgain),
        (Phase::Verified, Some(control(3, false)), B::Recover),
        (Phase::Promoting, Some(control(3, false)), B::RestoreAgain),
        (Phase::Promoting, Some(control(4, false)), B::RestoreAgain),
        (Phase::Promoting, Some(control(4, true)), B::Unfence),
        (Phase::Promoting, None, B::RestoreAgain),
        (Phase::Unfencing, None, B::Unfence),
        (Phase::NeedsOperator, Some(control(3, true)), B::StayDown),
        (Phase::Done, Some(control(4, true)), B::Nothing),
        (Phase::Aborted, Some(control(3, true)), B::Nothing),
    ];
    for (phase, facts, expect) in cases {
        assert_eq!(on_boot(&journal(phase), facts), expect, "{phase} {facts:?}");
    }
}

proptest! {
    /// Whatever is asked for in whatever order: once files were restored, "aborted" is only reached
    /// from a restoring that touched nothing, and "done" is only reached through promotion and unfencing.
    #[test]
    fn no_way_around(steps in proptest::collection::vec(
        proptest::sample::select(Phase::ALL.to_vec()), 0..60)
    ) {
        let mut phase = Phase::Accepted;
        let mut seen = vec![phase];
        for step in steps {
            if let Ok(next) = phase.transition(step) {
                if !phase.data_is_intact() && next == Phase::Aborted {
                    prop_assert_eq!(phase, Phase::Restoring);
                }
                phase = next;
                seen.push(next);
            }
        }
        if phase == Phase::Done {
            for must in [Phase::Restoring, Phase::Restored, Phase::Promoting, Phase::Unfencing] {
                prop_assert!(seen.contains(&must));
            }
        }
    }

    #[test]
    fn an_unfencing_restore_is_never_run_again(timeline in 1u32..9, out: bool) {
        let action = on_boot(&journal(Phase::Unfencing), Some(control(timeline, out)));
        prop_assert_eq!(action, BootAction::Unfence);
    }
}

#[test]
fn forward_only_when_certain() {
    let at = |second| Timestamp::from_second(second).unwrap();
    let time = |second| RecoveryTarget::Time { value: at(second), exclusive: false };
    let lsn = |value| RecoveryTarget::Lsn { value: Lsn::new(value), exclusive: false };
    let name = RecoveryTarget::Name { value: "p".parse().unwrap() };
    let to = |target: &RecoveryTarget, timeline: u32| NewTarget {
        target: target.clone(),
        on_reached: OnReached::Pause,
        pinned: Pinned {
            set: "20261120-101500F".parse().unwrap(),
            repo: RepoKey::FIRST,
            timeline: Timeline::try_from(timeline).unwrap(),
            wal_end: None,
            left_in: BTreeMap::new(),
            ended: None,
            system_id: None,
            position: None,
            plan: String::new(),
            planned_at: None,
        },
    };
    let replayed = Some(Lsn::new(500));
    for (old, new, timeline, expect) in [
        (time(10), time(11), 3, true),
        (time(10), time(10), 3, true),
        (time(10), time(9), 3, false),
        (time(10), time(11), 2, false),
        (time(10), RecoveryTarget::Latest, 3, true),
        (time(10), lsn(500), 3, true),
        (time(10), lsn(499), 3, false),
        (time(10), name.clone(), 3, false),
        (RecoveryTarget::Immediate, name, 3, true),
        (RecoveryTarget::Latest, time(11), 3, false),
    ] {
        let journal = Journal { target: old.clone(), ..journal(Phase::Verified) };
        assert_eq!(journal.is_forward(&to(&new, timeline), replayed), expect, "{old} {new}");
    }
    let mut moved = journal(Phase::Verified);
    moved.retarget(to(&time(11), 2));
    assert_eq!((moved.target, moved.on_reached), (time(11), OnReached::Pause));
}

#[test]
fn a_second_restore_inherits_what_only_the_first_knows() {
    let mut earlier = journal(Phase::NeedsOperator);
    earlier.kept_wal = Some("/state/kept".into());
    let mut next = journal(Phase::Accepted);
    (next.timeline, next.system_id) = (None, None);
    next.inherit(&earlier);
    assert_eq!(next.kept_wal, earlier.kept_wal);
    assert_eq!(next.timeline, earlier.timeline);

    let mut fresh = journal(Phase::Accepted);
    fresh.inherit(&Journal { phase: Phase::Done, ..earlier });
    assert_eq!(fresh.kept_wal, None);
}
