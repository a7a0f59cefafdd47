//! Headrest is told to stop.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::running;
use crate::support::events::Events;
use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::process;
use crate::support::rows::Rows;
use crate::support::{PATIENCE, SOON, until};

/// A backup that, when it is told to end, takes a moment and writes down whether the server is
/// still there.
fn begin_slow_backup(instance: &Instance, fake: &Fake) -> String {
    let (seen, file) = (instance.root.join("log/seen"), instance.data_dir().join("postmaster.pid"));
    fake.on(
        "backup",
        &format!(
            "trap 'sleep 0.5; sed -n 8p {} > {}; exit 63' TERM; while :; do sleep 0.1; done",
            file.display(),
            seen.display()
        ),
    );
    let id = instance.begin_backup("full");
    until("it runs", SOON, || {
        instance.processes().into_iter().find(|p| p.title.ends_with(" backup"))
    });
    id
}

fn stops_in_order(signal: Signal) {
    let (mut instance, fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let id = begin_slow_backup(&instance, &fake);
    // Neither a client's long query nor an open stream holds it up.
    let sql = instance.sql.clone();
    let client = std::thread::spawn(move || sql.attempt("SELECT pg_sleep(1000)"));
    until("the query runs", SOON, || {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'";
        (instance.sql.run(count) != "0").then_some(())
    });
    let stream = Events::of(instance.http.stream("/api/v1/events", &[]));
    stream.next(SOON).expect("a first event");

    let began = Instant::now();
    process::signal(instance.pid(), signal);
    let status = instance.wait_exit();
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(instance.processes(), [], "somebody is left");
    let seen = fs::read_to_string(instance.root.join("log/seen")).unwrap_or_default();
    assert_eq!(seen.trim(), "ready", "the server was not left alone until the backup had ended");
    assert_eq!(instance.control("Database cluster state"), "shut down");
    assert!(client.join().unwrap().is_err());
    stream.take_until(SOON, |_| false);

    fake.on("backup", "exit 0");
    let job = instance.start_and_wait_for(&id);
    assert_eq!(job["state"], "interrupted", "{job:#}");
    instance.wait_ready();
    rows.check();
}

#[test]
fn sigterm_ends_backups_then_the_server_then_headrest() {
    stops_in_order(Signal::TERM);
}

#[test]
fn sigint_ends_backups_then_the_server_then_headrest() {
    stops_in_order(Signal::INT);
}

#[test]
fn a_second_signal_hurries() {
    let (mut instance, fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    fake.on("backup", "trap '' TERM INT; while :; do sleep 0.1; done");
    let id = instance.begin_backup("full");
    until("it runs", SOON, || {
        instance.processes().into_iter().find(|p| p.title.ends_with(" backup"))
    });
    process::signal(instance.pid(), Signal::TERM);
    until("new jobs are refused, or nobody listens any more", SOON, || {
        let status = instance.http.probe("/api/v1/jobs");
        (status != Some(200) || instance.log().contains("SIGTERM")).then_some(())
    });
    let began = Instant::now();
    process::signal(instance.pid(), Signal::INT);
    let status = instance.wait_exit();
    assert!(began.elapsed() < Duration::from_secs(6), "no hurry: {:?}", began.elapsed());
    assert_eq!(status.signal(), None, "{status}");
    assert_eq!(instance.processes(), [], "somebody is left");
    fake.on("backup", "exit 0");
    assert_eq!(instance.start_and_wait_for(&id)["state"], "interrupted");
    instance.wait_ready();
    rows.check();
}

/// Stopped while PostgreSQL is down, backing off or has never been ready.
#[test]
fn it_ends_at_once_when_there_is_no_server() {
    let (mut instance, _fake) = running();
    instance.stop_server();
    let began = Instant::now();
    assert_eq!(instance.stop().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // It starts with the server again: being stopped by hand is not remembered for ever.
    instance.start();
    instance.wait_ready();
}

/// Stopped during a restore, it goes on with it at the next start.
#[test]
fn a_restore_that_was_stopped_is_taken_up_again() {
    let mut instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.stop_server();
    fs::remove_dir_all(instance.data_dir().join("base")).unwrap();
    let id = instance.begin_restore();
    until("files are being replaced", SOON, || {
        (instance.journal_phase() == "restoring").then_some(())
    });
    assert_eq!(instance.stop().code(), Some(0));
    assert_eq!(instance.processes(), [], "somebody is left");
    let job = instance.start_and_wait_for(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    rows.check();
}

/// Ended while initdb runs, by a crash or in order: a cluster that is cut short is never taken for
/// one, and one that is whole is used.
#[test]
fn an_initdb_that_was_cut_short_is_never_started() {
    for signal in [Signal::KILL, Signal::TERM] {
        let mut instance = Instance::new();
        let _fake = Fake::installed_in(&mut instance);
        instance.spawn();
        until("initdb runs", SOON, || {
            (fs::read_dir(instance.data_dir()).unwrap().count() > 3).then_some(())
        });
        process::signal(instance.pid(), signal);
        let status = instance.wait_exit();
        assert_eq!(status.signal(), (signal == Signal::KILL).then_some(9), "{status}");
        until("initdb is gone, too", SOON, || instance.processes().is_empty().then_some(()));
        let before = fs::read_dir(instance.data_dir()).unwrap().count();
        instance.start();
        let server = until("it is decided", PATIENCE, || {
            let server = instance.server();
            ["ready", "failed"].contains(&server["state"].as_str().unwrap()).then_some(server)
        });
        if server["state"] == "failed" {
            let reason = server["reason"].as_str().unwrap();
            assert!(reason.contains("cut short"), "{reason}");
            assert!(before > 0, "an empty PGDATA is not made a cluster: {reason}");
            assert_eq!(fs::read_dir(instance.data_dir()).unwrap().count(), before);
            assert_eq!(instance.servers(), []);
            // What it says to do is enough.
            for entry in fs::read_dir(instance.data_dir()).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
                    .unwrap();
            }
            instance.order("start");
        }
        instance.wait_ready();
        let mut rows = Rows::in_new_table(&instance.sql, "t");
        rows.add(10);
        rows.check();
    }
}
