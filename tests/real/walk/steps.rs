//! The steps of a walk, drawn at random. What a step refers to is a number that is taken modulo what is
//! there, so that every part of a walk is a walk.

use proptest::prelude::*;

/// How a restore that pauses at its target goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Promote,
    /// To another snapshot, and promoted there.
    Retarget(u32),
    Abandon,
}

/// What happens to a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    Undisturbed,
    Paused(Decision),
    /// Headrest is killed so many milliseconds after it was asked for.
    HeadrestKilled(u16),
    /// And every server process with it.
    AllKilled(u16),
    /// The pgbackrest that runs after so many milliseconds is killed.
    ToolKilled(u16),
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// So many rows in one transaction.
    Commit(u32, u8),
    /// Rows in subtransactions, every other one rolled back.
    Subtransactions(u32),
    Prepare,
    /// The end of a prepared transaction: committed or rolled back.
    EndPrepared(u32, bool),
    BeginLong,
    EndLong(bool),
    CreateTable,
    AlterTable(u32),
    DropTable(u32),
    CreateDatabase,
    DropDatabase(u32),
    CreateTablespace,
    DropTablespace(u32),
    RestorePoint,
    CreateSlot,
    /// full, diff or incr.
    Backup(u8),
    Expire,
    SwitchWal,
    /// The archive takes no WAL any more, or takes it again.
    Outage(bool),
    /// Each archive-get takes so many milliseconds.
    SlowArchive(u16),
    KillServer,
    KillHeadrest,
    /// To the end of the present timeline.
    RestoreLatest(Course),
    /// To a snapshot, asked for in one of several ways.
    RestoreTo(u32, u32, Course),
    Undo,
}

fn course() -> impl Strategy<Value = Course> {
    prop_oneof![
        4 => Just(Course::Undisturbed),
        1 => Just(Course::Paused(Decision::Promote)),
        1 => any::<u32>().prop_map(|n| Course::Paused(Decision::Retarget(n))),
        1 => Just(Course::Paused(Decision::Abandon)),
        1 => (0u16..4000).prop_map(Course::HeadrestKilled),
        1 => (0u16..4000).prop_map(Course::AllKilled),
        1 => (0u16..2000).prop_map(Course::ToolKilled),
    ]
}

/// Any step.
pub(super) fn step() -> impl Strategy<Value = Step> {
    let some = any::<u32>;
    let data = prop_oneof![
        6 => (some(), 1u8..50).prop_map(|(table, count)| Step::Commit(table, count)),
        2 => some().prop_map(Step::Subtransactions),
        2 => Just(Step::Prepare),
        2 => (some(), any::<bool>()).prop_map(|(n, commit)| Step::EndPrepared(n, commit)),
        1 => Just(Step::BeginLong),
        1 => any::<bool>().prop_map(Step::EndLong),
        1 => Just(Step::CreateTable),
        1 => some().prop_map(Step::AlterTable),
        1 => some().prop_map(Step::DropTable),
        1 => Just(Step::CreateDatabase),
        1 => some().prop_map(Step::DropDatabase),
        1 => Just(Step::CreateTablespace),
        1 => some().prop_map(Step::DropTablespace),
        1 => Just(Step::RestorePoint),
        1 => Just(Step::CreateSlot),
    ];
    let upkeep = prop_oneof![
        3 => (0u8..3).prop_map(Step::Backup),
        1 => Just(Step::Expire),
        1 => Just(Step::SwitchWal),
        2 => any::<bool>().prop_map(Step::Outage),
        1 => prop_oneof![Just(0u16), 50u16..300].prop_map(Step::SlowArchive),
        1 => Just(Step::KillServer),
        1 => Just(Step::KillHeadrest),
    ];
    let restores = prop_oneof![
        2 => course().prop_map(Step::RestoreLatest),
        5 => (some(), some(), course()).prop_map(|(n, way, course)| Step::RestoreTo(n, way, course)),
        2 => Just(Step::Undo),
    ];
    prop_oneof![6 => data, 2 => upkeep, 3 => restores]
}
