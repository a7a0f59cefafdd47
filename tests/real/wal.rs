//! Commits that the archive does not have.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::process::Signal;
use serde_json::json;

use crate::support::archive::{Damage, Damaged};
use crate::support::fake::Fake;
use crate::support::files::walk;
use crate::support::instance::Instance;
use crate::support::jobs::{RESTORES, accepted, id_of};
use crate::support::moments::checks;
use crate::support::rows::Rows;
use crate::support::{PATIENCE, SOON, process, until};

/// Ends Headrest and the server the hard way, so that the last segment is in nobody's archive.
fn crash_everything(instance: &mut Instance) {
    instance.kill();
    let postmaster = instance.postmaster().expect("a postmaster");
    process::signal(postmaster, Signal::KILL);
    until("all server processes are gone", SOON, || instance.servers().is_empty().then_some(()));
    instance.wait_no_pgbackrest();
}

/// The directories with WAL that restores kept aside.
fn kept_wal(instance: &Instance) -> Vec<PathBuf> {
    let entries = fs::read_dir(instance.root.join("state/restore")).unwrap().flatten();
    let all = entries.map(|entry| entry.path());
    all.filter(|path| path.to_string_lossy().ends_with("-wal")).collect()
}

/// The server stays down: it cannot start any more.
fn break_settings(instance: &Instance) {
    let file = instance.data_dir().join("postgresql.auto.conf");
    let mut settings = fs::OpenOptions::new().append(true).open(&file).unwrap();
    writeln!(settings, "shared_preload_libraries = 'there_is_no_such_library'").unwrap();
}

/// A server that was killed with commits in a segment that is in no archive, and cannot start.
fn crashed() -> (Instance, Rows) {
    let mut instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(100);
    instance.sql.run("SELECT pg_switch_wal()");
    rows.add(100);
    crash_everything(&mut instance);
    break_settings(&instance);
    instance.start();
    instance.wait_server("backing-off");
    (instance, rows)
}

#[test]
fn commits_in_the_unarchived_segment_of_a_killed_server_survive() {
    let (mut instance, mut rows) = crashed();
    instance.good_restore();
    rows.check();

    rows.add(100);
    crash_everything(&mut instance);
    fs::remove_file(instance.data_dir().join("global/pg_control")).unwrap();
    instance.start();
    instance.wait_server("failed");
    instance.good_restore();
    rows.check();
    // What was kept aside for an undo is not kept for ever.
    assert_eq!(kept_wal(&instance).len(), 2);
    for restore in instance.jobs().iter().filter(|job| job["kind"] == "restore") {
        instance.steer(id_of(restore), "release", &json!({})).expect(200);
    }
    for _ in 0..5 {
        instance.good_restore();
    }
    assert_eq!(kept_wal(&instance), [] as [PathBuf; 0]);
    rows.check();
}

/// What only the crashed server's last segment had is needed once more by an undo.
#[test]
fn the_restore_of_a_killed_server_can_be_undone_with_every_commit() {
    let (instance, rows) = crashed();
    let job = instance.good_restore();
    rows.check();
    instance.undo(id_of(&job));
    rows.check();

    // Where it is lost, that is said and not passed over.
    for directory in kept_wal(&instance) {
        fs::remove_dir_all(directory).unwrap();
    }
    let undo = format!("/api/v1/restores/{}/undo", id_of(&job));
    let body = json!({ "confirm": "main", "backup_after": false });
    let refused = instance.http.post_and_wait(&undo, &body, 120).json();
    assert_eq!(refused["error"]["code"], "restore-refused", "{refused:#}");
    assert_eq!(refused["state"], "failed", "{refused:#}");
    rows.check();
}

/// Takes the right to write from a directory tree, or gives it back.
pub(crate) fn set_writable(directory: &Path, writable: bool) {
    let mut all = walk(directory);
    all.push(directory.to_owned());
    for path in all {
        let is_directory = path.is_dir();
        let mode = match (is_directory, writable) {
            (true, true) => 0o750,
            (true, false) => 0o550,
            (false, true) => 0o640,
            (false, false) => 0o440,
        };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    }
}

#[test]
fn commits_survive_a_broken_archive() {
    let instance = Instance::with_full_backup();
    let archive = instance.root.join("repo/archive");
    set_writable(&archive, false);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    for _ in 0..3 {
        rows.add(50);
        instance.sql.run("SELECT pg_switch_wal()");
    }
    rows.add(50);
    until("the archiver fails", PATIENCE, || {
        let failed = instance.sql.run("SELECT failed_count > 0 FROM pg_stat_archiver");
        (failed == "t").then_some(())
    });

    // Either every row is there afterwards, or the restore says why it does not begin.
    let job = instance.restore();
    if job["state"] == "failed" {
        let message = job["error"]["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty(), "refused without a reason: {job:#}");
        assert_eq!(instance.journal_phase(), "aborted", "{job:#}");
    } else {
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(&job)));
    }
    instance.wait_ready();
    rows.check();

    set_writable(&archive, true);
    rows.add(50);
    instance.good_backup("full");
    rows.add(50);
    instance.good_restore();
    rows.check();
}

/// A segment in the middle of the archive is missing: PostgreSQL must not be promoted before it.
#[test]
fn a_gap_in_the_archive_is_waited_at_and_never_promoted() {
    let instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    let mut segments = Vec::new();
    for _ in 0..4 {
        rows.add(20);
        let switch = "SELECT pg_walfile_name(pg_switch_wal())";
        segments.push(instance.sql.run(switch));
    }
    let last = segments.last().unwrap();
    until("the segments are archived", PATIENCE, || {
        let done = instance.sql.run("SELECT last_archived_wal FROM pg_stat_archiver");
        (done >= *last).then_some(())
    });
    let damaged = Damaged::make(&instance, &segments[1], Damage::Missing);

    // PostgreSQL runs and has everything: nobody takes that away without being told.
    let before = instance.postmaster();
    let mut request = Instance::restore_request();
    let refused = instance.http.post(RESTORES, &request);
    assert_eq!(refused.problem(409), "restore-refused");
    assert_eq!(refused.json()["checks"][0]["id"], "wal-gap", "{}", refused.body);
    assert_eq!(instance.postmaster(), before, "the server was touched");
    request["accept"] = json!(["wal-gap"]);
    let id = accepted(&instance.http.post(RESTORES, &request));
    let wanted = segments[1].clone();
    instance.wait_job_until(&id, "says what it waits for", |job| {
        job["progress"]["phase"].as_str().is_some_and(|phase| phase.contains(&wanted))
    });
    assert_eq!(instance.journal_phase(), "recovering");
    assert_eq!(instance.http.probe("/readyz"), Some(503));
    assert_eq!(instance.control("Latest checkpoint's TimeLineID"), "1");

    damaged.repair();
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    rows.check();
}

/// Clients go on committing until the restore cuts them off: what they were told is committed is.
#[test]
fn what_clients_commit_until_they_are_cut_off_survives() {
    let instance = Instance::with_full_backup();
    instance.sql.run("CREATE TABLE t (id integer PRIMARY KEY)");
    for first in [1, 1_000_000] {
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let sql = instance.sql.clone();
                thread::spawn(move || {
                    let mut told = Vec::new();
                    for id in (first + writer..).step_by(2) {
                        match sql.attempt(&format!("INSERT INTO t VALUES ({id})")) {
                            Ok(_) => told.push(id),
                            // Whether this one was committed nobody can say.
                            Err(_) => return (told, id),
                        }
                    }
                    unreachable!("the numbers have no end")
                })
            })
            .collect();
        until("they are at work", SOON, || {
            let count = instance.sql.run(&format!("SELECT count(*) FROM t WHERE id >= {first}"));
            (count.parse::<u32>().unwrap() >= 20).then_some(())
        });
        instance.good_restore();
        let found = instance.sql.run(&format!("SELECT id FROM t WHERE id >= {first}"));
        let found: BTreeSet<u32> = found.lines().map(|line| line.parse().unwrap()).collect();
        let mut possible = BTreeSet::new();
        for writer in writers {
            let (told, uncertain) = writer.join().unwrap();
            let lost: Vec<_> = told.iter().filter(|id| !found.contains(id)).collect();
            assert!(lost.is_empty(), "of {} commits {lost:?} are lost", told.len());
            possible.extend(told);
            possible.insert(uncertain);
        }
        assert!(found.is_subset(&possible), "{:?} was never written", found.difference(&possible));
    }
}

/// How many segments `PostgreSQL` would like to see archived.
pub(crate) fn unarchived(instance: &Instance) -> usize {
    let names = fs::read_dir(instance.data_dir().join("pg_wal/archive_status")).unwrap().flatten();
    names.filter(|entry| entry.file_name().to_string_lossy().ends_with(".ready")).count()
}

/// WAL that was dropped because the archive could not take it in time, and that PostgreSQL takes for
/// archived. Only `pg_wal` has it.
fn dropped() -> (Instance, Fake, String, Rows) {
    let mut instance = Instance::new();
    let fake = Fake::around_the_real_one(&mut instance);
    // Three segments: what a backup switches at its start and end fits in when the archive works.
    instance.set("PGBACKREST_ARCHIVE_PUSH_QUEUE_MAX", "50331648");
    instance.start();
    instance.wait_ready();
    let backup = instance.wait_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.switch_wal();
    set_writable(&instance.root.join("repo/archive"), false);
    for _ in 0..6 {
        rows.add(10);
        instance.sql.run("SELECT pg_switch_wal()");
    }
    until("the segments are dropped", PATIENCE, || (unarchived(&instance) <= 3).then_some(()));
    let log = fs::read_to_string(instance.root.join("state/log/postgres.log")).unwrap();
    assert!(log.contains("dropped WAL file"), "{log}");
    rows.add(10);
    let label = backup["result"]["label"].as_str().unwrap().to_owned();
    (instance, fake, label, rows)
}

#[test]
fn dropped_wal_is_given_back_by_a_restore_that_changes_nothing() {
    let (instance, fake, set, rows) = dropped();
    fake.on("restore", "exit 53");
    let target = json!({ "type": "latest" });
    for _ in 0..2 {
        let id = instance.begin_restore_to(&target, &json!({ "set": set }));
        let job = instance.wait_job(&id);
        assert_eq!(job["restore"]["phase"], "aborted", "{job:#}\n{}", instance.job_log(&id));
        instance.wait_ready();
        rows.check();
        assert_eq!(kept_wal(&instance), Vec::<PathBuf>::new());
    }
    fake.forget("restore");
    set_writable(&instance.root.join("repo/archive"), true);
    instance.restore_to(&target, &json!({ "set": set }));
    rows.check_later();
}

#[test]
fn dropped_wal_is_pushed_before_it_is_lost() {
    let (instance, _fake, set, rows) = dropped();
    set_writable(&instance.root.join("repo/archive"), true);
    let plan = instance.plan(&json!({ "type": "latest" }), &json!({ "set": set }));
    assert!(!checks(&plan, "fail").contains(&"wal-gap".to_owned()), "{plan:#}");
    instance.restore_to(&json!({ "type": "latest" }), &json!({ "set": set }));
    rows.check_later();
    assert_eq!(kept_wal(&instance), Vec::<PathBuf>::new());
    // It is in the archive now: a restore that has nothing but that brings it all back.
    instance.stop_server();
    fs::remove_dir_all(instance.data_dir().join("pg_wal")).unwrap();
    instance
        .restore_to(&json!({ "type": "latest" }), &json!({ "set": set, "accept": ["wal-loss"] }));
    rows.check_later();
}

#[test]
fn dropped_wal_that_no_archive_takes_is_kept() {
    let (instance, _fake, set, mut rows) = dropped();
    let job = instance.restore_to(&json!({ "type": "latest" }), &json!({ "set": set }));
    rows.check_later();
    // Also what an undo needs.
    let mut others = rows.clone();
    others.add_from(1000, 10);
    instance.undo(id_of(&job));
    rows.check_later();
    set_writable(&instance.root.join("repo/archive"), true);
    until("the archiver works again", PATIENCE, || {
        instance.sql.run("SELECT pg_switch_wal()");
        let working = "SELECT last_archived_time > coalesce(last_failed_time, '-infinity') FROM \
                       pg_stat_archiver";
        (instance.sql.run(working) == "t" && unarchived(&instance) == 0).then_some(())
    });
    rows.add(10);
    instance.good_backup("full");
    instance.good_restore();
    rows.check_later();
}
