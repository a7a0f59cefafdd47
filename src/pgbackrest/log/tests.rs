//! Lines of pgBackRest's log as they were recorded.

use proptest::prelude::*;

use super::*;
use crate::process::lines::LineSplitter;

macro_rules! recorded {
    ($version:literal, $name:literal) => {
        include_bytes!(concat!(
            "../../../tests/fixtures/pgbackrest/",
            $version,
            "/log-",
            $name,
            ".txt"
        ))
    };
}

fn parse(log: &[u8]) -> Vec<LogLine> {
    let mut parser = LineParser::new();
    LineSplitter::new().feed(log).iter().filter_map(|line| parser.push(line)).collect()
}

fn milestones(log: &[u8]) -> Vec<Milestone> {
    parse(log).iter().filter_map(milestone).collect()
}

#[test]
fn lines() {
    use Level::{Error, Info, Warn};
    let log = b"2026-11-20 11:12:11.549 P00   INFO: a: b\n\n\
        P01  ERROR: [032]: bad\n                 \tHINT: two\nWARN: three\n      HINT: four\n\
        ssh: five\n  six\n2026-11-20 11:12:11.549 P100 ASSERT: [025]: seven\n";
    let got: Vec<_> =
        parse(log).into_iter().map(|l| (l.time.is_some(), l.process, l.level, l.text)).collect();
    let expect = [
        (true, Some(0), Info, "a: b"),
        (false, Some(1), Error, "[032]: bad"),
        (false, Some(1), Error, "HINT: two"),
        (false, None, Warn, "three"),
        (false, None, Warn, "HINT: four"),
        (false, None, Warn, "ssh: five"),
        (false, None, Warn, "six"),
        (true, Some(100), Error, "[025]: seven"),
    ];
    assert_eq!(got, expect.map(|(a, b, c, d)| (a, b, c, d.to_owned())));
    let first = parse(log)[0].time.unwrap();
    assert_eq!(first.to_string(), "2026-11-20T11:12:11.549");
    assert!(parse(b"  HINT: first\n")[0].level == Warn && Error < Warn);
}

#[test]
fn backups_of_each_version() {
    for (log, version, mib_tenths) in [
        (recorded!("2.45", "backup-diff-without-full").as_slice(), "2.45", 221),
        (recorded!("2.55.1", "backup-diff-without-full"), "2.55.1", 223),
        (recorded!("2.60.0", "backup-diff-without-full"), "2.60.0", 226),
    ] {
        let all = milestones(log);
        let (command, version) = ("backup".to_owned(), version.to_owned());
        assert_eq!(all[0], Milestone::CommandBegin { command, version });
        assert_eq!(all[1], Milestone::BecameFull { requested: Some(BackupType::Diff) });
        let (mut percents, mut ends, mut made) = (Vec::new(), 0, Vec::new());
        for milestone in all {
            match milestone {
                Milestone::FileProgress { percent, .. } => percents.push(percent),
                Milestone::CommandEnd { .. } => ends += 1,
                Milestone::NewBackupLabel(label) => made.push((label.backup_type(), None)),
                Milestone::BackupSize { kind, size_bytes_approx, file_total: Some(900..) } => {
                    made.push((kind, size_bytes_approx));
                }
                other => assert!(matches!(
                    other,
                    Milestone::CommandBegin { .. } | Milestone::BecameFull { .. }
                )),
            }
        }
        assert!(percents.len() > 5 && percents.is_sorted());
        assert_eq!((percents.last(), ends), (Some(&10_000), 2));
        let size = Some(mib_tenths * 1024 * 1024 / 10);
        assert_eq!(made, [(BackupType::Full, None), (BackupType::Full, size)]);
    }
    let last = Milestone::LastBackupLabel("20261120-111222F".parse().unwrap());
    assert!(milestones(recorded!("2.45", "backup-diff")).contains(&last));
}

#[test]
fn restores_and_errors() {
    for log in [recorded!("2.45", "restore-delta").as_slice(), recorded!("2.60.0", "restore-delta")]
    {
        let all = milestones(log);
        assert!(matches!(&all[1], Milestone::RestoreSet(l) if l.backup_type() == BackupType::Incr));
        let kind = ProgressKind::Restore;
        assert!(
            all.iter().any(|m| matches!(m, Milestone::FileProgress { kind: k, .. } if *k == kind))
        );
    }
    for (log, expect) in [
        (recorded!("2.45", "error-032").as_slice(), 32),
        (recorded!("2.45", "error-056"), 56),
        (recorded!("2.55.1", "error-032"), 32),
        (recorded!("2.60.0", "error-075"), 75),
    ] {
        let all = milestones(log);
        assert!(all.iter().any(|m| matches!(m, Milestone::Error { code, .. } if *code == expect)));
        if let Some(Milestone::CommandEnd { outcome, .. }) = all.last() {
            assert_eq!(*outcome, CommandOutcome::Aborted { code: expect });
        } else {
            assert_eq!(expect, 32, "{all:?}");
        }
    }
}

#[test]
fn a_terminated_backup() {
    for (log, command) in [
        (recorded!("2.45", "backup-terminated").as_slice(), Some("backup".to_owned())),
        (recorded!("2.60.0", "backup-terminated"), None),
    ] {
        let outcome = CommandOutcome::Terminated { signal: Some("SIGTERM".to_owned()) };
        assert_eq!(milestones(log).pop(), Some(Milestone::CommandEnd { command, outcome }));
    }
}

#[test]
fn single_lines() {
    let check = |line: &str, expect: Option<Milestone>| {
        assert_eq!(milestone(&LineParser::new().push(line).unwrap()), expect, "{line}");
    };
    let file = |percent, size_bytes_approx| {
        Some(Milestone::FileProgress { percent, size_bytes_approx, kind: ProgressKind::Backup })
    };
    check(
        "P01 DETAIL: backup file /a (9B, 1%) b (bundle 1/40, 8KB, 3.4%) checksum 0aF",
        file(340, Some(8192)),
    );
    check("P01   INFO: backup file h:/pg/a (1.5GB, 100.00%)", file(10_000, Some(1_610_612_736)));
    check("P01 DETAIL: match file from prior backup /a (8B, 999%)", file(10_000, Some(8)));
    check("P01 DETAIL: backup file /a (8QB, 1.23%)", file(123, None));
    check("P01 DETAIL: backup file /a (8B, x%)", None);
    check("P00   INFO: new backup label = latest", None);
    check("P00  ERROR: [xx]: text", None);
    let dropped = Milestone::DroppedWal { file: "00".to_owned() };
    check("WARN: dropped WAL file '00' because archive queue exceeded 1GB", Some(dropped));
    let label = "20261120-100000F";
    let new = Milestone::NewBackupLabel(label.parse().unwrap());
    check(&format!("P00   INFO: [DRY-RUN] new backup label = {label}"), Some(new));
    for (text, signal) in [("[SIGTERM]", Some("SIGTERM")), ("from child process", None)] {
        let outcome = CommandOutcome::Terminated { signal: signal.map(str::to_owned) };
        let end = Milestone::CommandEnd { command: Some("backup".to_owned()), outcome };
        check(&format!("P00   INFO: backup command end: terminated on signal {text}"), Some(end));
    }
}

proptest! {
    #[test]
    fn any_line_is_safe(line in "(2026-11-20 11:12:11.549 )?(P0[01] )?( *[A-Z]{4,5}: )?\\PC{0,80}") {
        if let Some(line) = LineParser::new().push(&line) {
            let _ = milestone(&line);
        }
    }
}

#[test]
fn errors_are_told_whole() {
    let output = "2026-11-20 11:12:56.346 P00   WARN: repo1: [FileOpenError] cannot\n\
                  2026-11-20 11:12:56.350 P00  ERROR: [103]: unable to find a valid repository:\n\
                                              repo1: [HostConnectError] timeout\n\
                                              HINT: is it there?\n";
    let expect = "unable to find a valid repository:\nrepo1: [HostConnectError] timeout\n\
                  HINT: is it there?";
    let spaced = output.replace("repo1: [Host", "      repo1: [Host").replace("HINT", "      HINT");
    assert_eq!(errors_of(&spaced), expect);
    assert_eq!(errors_of("sh: 1: x: not found\n"), "sh: 1: x: not found");
    assert_eq!(errors_of(""), "");
}
