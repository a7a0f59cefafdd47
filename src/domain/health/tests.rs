//! Each check at its edges.

use super::CheckId as C;
use super::Level::{Fail, Pass, Warn};
use super::*;

const NOW: i64 = 1_795_000_000;

fn at(seconds_ago: i64) -> Timestamp {
    Timestamp::from_second(NOW - seconds_ago).unwrap()
}

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

fn archiving() -> ArchivingFacts {
    ArchivingFacts {
        enabled: true,
        last_archived_at: Some(at(30)),
        timeout: SignedDuration::from_secs(60),
        heartbeat: SignedDuration::from_secs(60),
        ..ArchivingFacts::default()
    }
}

fn repository() -> RepositoryFacts {
    RepositoryFacts {
        last_backup_at: Some(at(HOUR)),
        last_full_at: Some(at(DAY)),
        ..RepositoryFacts::default()
    }
}

fn schedule(trouble: Option<Trouble>) -> ScheduleFacts {
    ScheduleFacts { name: "nightly".to_owned(), kind: JobKind::Backup, trouble, overdue: None }
}

fn server(up: Up) -> ServerFacts {
    ServerFacts {
        up,
        started_at: Some(at(30 * DAY)),
        archiving: Some(archiving()),
        raised: Vec::new(),
    }
}

/// Everything as it should be.
fn well() -> Facts {
    Facts {
        server: Some(server(Up::Writes)),
        repository: Some(Ok(repository())),
        wal: Some(WalFacts::default()),
        verified: Some((at(DAY), None)),
        stop_file: Some(None),
        supported: Some(Ok(())),
        schedules: vec![schedule(None)],
        targets: vec![TargetFacts { name: "ops".to_owned(), waiting: None, given_up_at: None }],
        disks: vec![Disk { what: "PGDATA".to_owned(), free_bytes: 50, total_bytes: 100 }],
        ..Facts::none(at(30 * DAY))
    }
}

fn with_archiving(change: impl FnOnce(&mut ArchivingFacts)) -> Facts {
    let mut facts = well();
    if let Some(archiving) = facts.server.as_mut().and_then(|server| server.archiving.as_mut()) {
        change(archiving);
    }
    facts
}

fn with_repository(change: impl FnOnce(&mut RepositoryFacts)) -> Facts {
    let mut repository = repository();
    change(&mut repository);
    Facts { repository: Some(Ok(repository)), ..well() }
}

/// A restore that waits since so many seconds, or was given up.
fn with_restore(waits: Option<i64>, given_up: Option<&str>) -> Facts {
    let restore = RestoreFacts {
        job: JobId::new(at(DAY)),
        phase: Phase::Recovering,
        waits: waits.map(|seconds| (at(seconds), "waiting for WAL".to_owned(), "advice")),
        given_up: given_up.map(str::to_owned),
    };
    Facts { restore: Some(restore), ..well() }
}

fn judge(facts: &Facts) -> Vec<Check> {
    facts.judge(&Thresholds::default(), at(0))
}

#[test]
fn everything_well_passes_and_every_check_says_so() {
    let checks = judge(&well());
    let bad: Vec<_> = checks.iter().filter(|check| check.level != Level::Pass).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let named: std::collections::BTreeSet<_> = checks.iter().map(|check| check.key.id).collect();
    let expect: std::collections::BTreeSet<_> = CheckId::ALL.iter().copied().collect();
    assert_eq!(named, expect);
}

#[test]
fn each_fault_has_its_check_and_level() {
    let missing = |text: &str| vec![text.to_owned()];
    let wal = |facts: WalFacts| Facts { wal: Some(facts), ..well() };
    let disk = |free| Facts {
        disks: vec![Disk { what: "PGDATA".to_owned(), free_bytes: free, total_bytes: 100 }],
        ..well()
    };
    let down = |up| Facts { server: Some(server(up)), ..well() };
    let table: Vec<(Facts, CheckId, Level)> = vec![
        (with_repository(|r| r.last_backup_at = Some(at(26 * HOUR - 1))), C::LastBackup, Pass),
        (with_repository(|r| r.last_backup_at = Some(at(26 * HOUR))), C::LastBackup, Warn),
        (with_repository(|r| r.last_backup_at = Some(at(50 * HOUR))), C::LastBackup, Fail),
        (with_repository(|r| r.last_backup_at = None), C::LastBackup, Fail),
        (with_repository(|r| r.last_full_at = Some(at(8 * DAY))), C::LastFull, Warn),
        (with_repository(|r| r.last_full_at = Some(at(15 * DAY))), C::LastFull, Fail),
        (with_repository(|r| r.missing = missing("repository 2")), C::Repository, Fail),
        (with_repository(|r| r.troubles = missing("[FileOpenError]")), C::Repository, Fail),
        (Facts { repository: Some(Err("no answer".to_owned())), ..well() }, C::Repository, Fail),
        (
            with_repository(|r| r.damaged = Some("20261120-000000F".to_owned())),
            C::PageChecksums,
            Warn,
        ),
        (with_archiving(|a| a.enabled = false), C::ArchiveMode, Fail),
        (with_archiving(|a| a.foreign_command = Some("true".to_owned())), C::ArchiveCommand, Fail),
        (with_archiving(|a| a.failing = Some((at(1), "5".to_owned()))), C::Archiver, Warn),
        (with_archiving(|a| a.failing = Some((at(599), "5".to_owned()))), C::Archiver, Warn),
        (with_archiving(|a| a.failing = Some((at(600), "5".to_owned()))), C::Archiver, Fail),
        (with_archiving(|a| a.ready = 15), C::WalReady, Pass),
        (with_archiving(|a| a.ready = 16), C::WalReady, Warn),
        (with_archiving(|a| a.ready = 128), C::WalReady, Fail),
        (with_archiving(|a| a.last_archived_at = Some(at(179))), C::WalAge, Pass),
        (with_archiving(|a| a.last_archived_at = Some(at(180))), C::WalAge, Warn),
        (with_archiving(|a| a.last_archived_at = Some(at(600))), C::WalAge, Fail),
        (
            wal(WalFacts { missing: missing("X is missing"), ..WalFacts::default() }),
            C::WalGap,
            Fail,
        ),
        (wal(WalFacts { dropped: Some("X".to_owned()), ..WalFacts::default() }), C::WalGap, Fail),
        (wal(WalFacts { missing_before: missing("X"), ..WalFacts::default() }), C::WalGap, Pass),
        (Facts { verified: Some((at(1), Some("1 file".to_owned()))), ..well() }, C::Verify, Fail),
        (
            Facts {
                server: Some(ServerFacts { raised: missing("x = 5"), ..server(Up::Writes) }),
                ..well()
            },
            C::Postgres,
            Warn,
        ),
        (Facts { stop_file: Some(Some("/tmp/main.stop".to_owned())), ..well() }, C::StopFile, Warn),
        (disk(15), C::DiskSpace, Pass),
        (disk(14), C::DiskSpace, Warn),
        (disk(4), C::DiskSpace, Fail),
        (Facts { supported: Some(Err("2.45 and 18".to_owned())), ..well() }, C::Versions, Fail),
        (down(Up::Busy("recovering".to_owned())), C::Postgres, Pass),
        (down(Up::Held("an operator".to_owned())), C::Postgres, Warn),
        (down(Up::Down("exit 1".to_owned())), C::Postgres, Fail),
        (Facts { not_backed_up: Some("a copy".to_owned()), ..well() }, C::LastBackup, Warn),
        (with_restore(None, None), C::Restore, Pass),
        (with_restore(Some(0), None), C::Restore, Warn),
        (with_restore(Some(HOUR - 1), None), C::Restore, Warn),
        (with_restore(Some(HOUR), None), C::Restore, Fail),
        (with_restore(None, Some("exit 41")), C::Restore, Fail),
    ];
    for (facts, id, level) in table {
        let checks = judge(&facts);
        let found = checks.iter().find(|check| check.key.id == id);
        let found = found.unwrap_or_else(|| panic!("{id} is not judged: {facts:#?}"));
        assert_eq!(found.level, level, "{found:?}");
        assert_eq!(worst(&checks), level, "nothing else is wrong: {checks:#?}");
        assert_eq!(checks.first().map(|check| check.level), Some(level), "worst first");
    }
    let trouble = Some(Trouble { missed: true, text: "missed".to_owned(), told: None });
    let schedules = vec![schedule(trouble)];
    let first = judge(&Facts { schedules, ..well() }).remove(0);
    assert_eq!((first.key.to_string(), first.level), ("schedule:nightly".to_owned(), Warn));
}

#[test]
fn a_backup_that_is_under_way_is_waited_for() {
    let old = with_repository(|r| r.last_backup_at = None);
    for (backing_up, level) in [(false, Fail), (true, Warn)] {
        assert_eq!(worst(&judge(&Facts { backing_up, ..old.clone() })), level);
    }
    let overdue = Some("the run of 2026-11-20T02:00:00Z waits".to_owned());
    let schedules = vec![ScheduleFacts { overdue, ..schedule(None) }];
    assert_eq!(worst(&judge(&Facts { schedules, ..well() })), Warn);
    assert_eq!(worst(&judge(&Facts { disk_hangs: Some(true), ..well() })), Fail);
}

#[test]
fn what_is_not_known_or_does_not_apply_is_not_judged() {
    // A new server has no backup in its first minutes.
    let new = Facts { since: at(60), ..with_repository(|r| r.last_backup_at = None) };
    let level = |facts: &Facts, id| {
        judge(facts).iter().find(|check| check.key.id == id).map(|check| check.level)
    };
    assert_eq!(level(&new, CheckId::LastBackup), Some(Level::Warn));
    // A repository that cannot be read does not tell that there is no backup.
    let unreadable = with_repository(|r| {
        *r = RepositoryFacts { troubles: vec!["no".to_owned()], ..RepositoryFacts::default() };
    });
    assert_eq!(level(&unreadable, CheckId::LastBackup), None);
    // An idle server without heartbeats archives nothing, and a server that just started nothing yet.
    let quiet = with_archiving(|a| {
        (a.heartbeat, a.last_archived_at) = (SignedDuration::ZERO, None);
    });
    assert_eq!(level(&quiet, CheckId::WalAge), None);
    let mut young = with_archiving(|a| a.last_archived_at = Some(at(DAY)));
    if let Some(server) = &mut young.server {
        server.started_at = Some(at(10));
    }
    assert_eq!(level(&young, CheckId::WalAge), Some(Level::Pass));
    // While a restore has the server its settings are the restore's.
    let restoring = Facts { server: Some(server(Up::Busy("restoring".to_owned()))), ..well() };
    assert_eq!(level(&restoring, CheckId::ArchiveMode), None);
    assert_eq!(judge(&Facts::none(at(0))), []);
}

#[test]
fn notifications_that_do_not_arrive_are_seen() {
    let table = [
        (None, None, Pass, "arrive"),
        (Some((3, at(HOUR))), None, Pass, "arrive"),
        (Some((3, at(HOUR + 1))), None, Warn, "3 wait for ops, the oldest since"),
        (None, Some(at(DAY - 1)), Warn, "one for ops was given up at"),
        (None, Some(at(DAY)), Pass, "arrive"),
    ];
    for (waiting, given_up_at, level, detail) in table {
        let target = TargetFacts { name: "ops".to_owned(), waiting, given_up_at };
        let facts = Facts { targets: vec![target], ..well() };
        let checks = facts.judge(&Thresholds::default(), at(0));
        let check = checks.iter().find(|check| check.key.id == C::Notifications).unwrap();
        assert_eq!(check.level, level, "{waiting:?} {given_up_at:?}");
        assert!(check.detail.starts_with(detail), "{}", check.detail);
    }
    // Without targets there is nothing to check.
    let nobody = Facts { targets: Vec::new(), ..well() };
    let checks = nobody.judge(&Thresholds::default(), at(0));
    assert!(checks.iter().all(|check| check.key.id != C::Notifications));
}
