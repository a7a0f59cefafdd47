//! A server that does not go by itself: the rungs of a stop, and processes that are left behind.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::running;
use crate::support::files::postgres_program;
use crate::support::instance::Instance;
use crate::support::process::{self, Process};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, SOON, until, within};

/// A server process by the beginning of its title, e.g. `postgres: checkpointer`.
#[track_caller]
fn server_process(instance: &Instance, title: &str) -> i32 {
    let found = until(&format!("there is {title}"), SOON, || {
        instance.servers().into_iter().find(|process| process.title.starts_with(title))
    });
    found.pid
}

/// Begins a session that stays, and stops its process. Answers its pid.
#[track_caller]
fn stopped_backend(instance: &Instance) -> i32 {
    let sql = instance.sql.clone();
    thread::spawn(move || sql.attempt("SELECT pg_sleep(1000)"));
    let query = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(1000)'";
    let pid = until("the session is there", SOON, || {
        instance.sql.attempt(query).ok()?.lines().next()?.parse().ok()
    });
    process::signal(pid, Signal::STOP);
    pid
}

/// As long as one process of the old server is there no new one is started; in the end one is.
#[track_caller]
fn waits_for(instance: &Instance, orphan: i32, old: i32) {
    until("a new server is ready", PATIENCE, || {
        // A new postmaster is a child of Headrest; what the old one left may live for a moment.
        let headrest = instance.pid();
        let new = instance.servers().into_iter().any(|p| p.parent == headrest && p.pid != old);
        // In this order: it may end in between, and the new one be started.
        let alive = new && Process::lives(orphan);
        assert!(!alive, "a server was started beside {orphan}: {:#?}", instance.servers());
        let ready = instance.http.probe("/readyz") == Some(200);
        (ready && instance.postmaster() != Some(old)).then_some(())
    });
    assert!(!Process::lives(orphan));
}

/// A process of the server that does not react: fast is not enough, immediate is.
#[test]
fn a_fast_stop_that_hangs_becomes_an_immediate_one() {
    let mut instance = Instance::new();
    let _fake = crate::Fake::installed_in(&mut instance);
    instance.set("HEADREST_POSTGRES__STOP_TIMEOUT", "2s");
    instance.start();
    instance.wait_ready();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    process::signal(server_process(&instance, "postgres: checkpointer"), Signal::STOP);
    let began = Instant::now();
    instance.order("stop");
    instance.wait_server("down");
    assert!(began.elapsed().as_secs() >= 2, "it did not hang");
    assert_eq!(instance.servers(), [], "somebody is left");
    assert!(instance.log().contains("stopping immediately"), "{}", instance.log());
    assert!(!instance.log().contains("killing its postmaster"), "{}", instance.log());
    assert_eq!(instance.control("Database cluster state"), "in production");
    instance.order("start");
    instance.wait_ready();
    rows.check();
}

/// The postmaster itself does not react: the last rung, said aloud, and nobody stays.
#[test]
fn a_postmaster_that_hangs_is_killed_in_the_end() {
    let mut instance = Instance::new();
    let _fake = crate::Fake::installed_in(&mut instance);
    instance.set("HEADREST_POSTGRES__STOP_TIMEOUT", "1s");
    instance.start();
    instance.wait_ready();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    process::signal(instance.postmaster().unwrap(), Signal::STOP);
    process::signal(instance.pid(), Signal::TERM);
    let status = instance.wait_exit();
    assert_eq!(status.code(), Some(0));
    assert_eq!(instance.servers(), [], "somebody is left");
    assert!(instance.log().contains("killing its postmaster"), "{}", instance.log());
    instance.start();
    instance.wait_ready();
    rows.check();
}

#[test]
fn a_stopped_orphan_is_waited_for_and_told_to_go() {
    let (mut instance, _fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    // Its postmaster is killed under a living Headrest,
    let (orphan, old) = (stopped_backend(&instance), instance.postmaster().unwrap());
    process::signal(old, Signal::KILL);
    waits_for(&instance, orphan, old);
    rows.check();
    rows.add(10);
    assert!(instance.log().contains("telling processes"), "{}", instance.log());
    // and together with Headrest.
    let (orphan, old) = (stopped_backend(&instance), instance.postmaster().unwrap());
    instance.kill();
    process::signal(old, Signal::KILL);
    instance.start();
    waits_for(&instance, orphan, old);
    rows.check();
    // A stop is not done as long as one is there.
    let (orphan, old) = (stopped_backend(&instance), instance.postmaster().unwrap());
    process::signal(old, Signal::KILL);
    until("its end is seen", SOON, || (instance.server()["state"] != "ready").then_some(()));
    instance.order("stop");
    until("it is down", PATIENCE, || {
        let down = instance.server()["state"] == "down";
        assert!(!(down && Process::lives(orphan)), "down, with {orphan} at work");
        down.then_some(())
    });
}

/// A shutdown in order that nobody asked Headrest for was somebody's will; any other end was not,
/// whatever its exit code.
#[test]
fn what_somebody_stops_in_order_stays_stopped() {
    let (instance, _fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let pg_ctl = |args: &[&str]| {
        let mut command = Command::new(postgres_program("pg_ctl"));
        command.env_clear().args(args).arg("-D").arg(instance.data_dir()).current_dir("/");
        instance.user.run_as(&mut command);
        let output = command.stdin(Stdio::null()).stdout(Stdio::null());
        assert!(output.status().unwrap().success());
    };
    // `immediate` ends with code 0 as well, and is a crash to those who depend on the server.
    let old = instance.postmaster();
    pg_ctl(&["stop", "-m", "immediate"]);
    until("it is started again", SOON, || (instance.server()["restarts"] == 1).then_some(()));
    instance.wait_server("ready");
    assert_ne!(instance.postmaster(), old);
    rows.check();

    pg_ctl(&["stop", "-m", "fast"]);
    let server = instance.wait_server("down");
    assert!(server["reason"].as_str().unwrap().contains("not by Headrest"), "{server}");
    assert_eq!(server["restarts"], 1, "{server}");
    assert_eq!(within(Duration::from_secs(3), || instance.postmaster()), None);
    instance.order("start");
    instance.wait_server("ready");

    // Who stops it and starts it again by hand goes on under our supervision, with our settings.
    let old = instance.server()["pid"].clone();
    pg_ctl(&["restart", "-w"]);
    until("the new one is taken over", SOON, || {
        let server = instance.server();
        (server["state"] == "ready" && server["pid"] != old).then_some(())
    });
    assert_eq!(instance.server()["adopted"], true);
    assert_eq!(instance.sql.run("SHOW archive_mode"), "on");
    rows.check();
    let server = instance.server();
    assert_eq!((&server["restarts"], &server["reason"]), (&Value::from(1), &Value::Null));
    // One that is started without our settings does not archive, and that is not passed over.
    pg_ctl(&["stop", "-m", "fast"]);
    instance.wait_server("down");
    let log = instance.root.join("log/by-hand");
    let port = format!("-p {} -k {}", instance.sql.port, instance.sql.socket_dir.display());
    pg_ctl(&["start", "-w", "-l", log.to_str().unwrap(), "-o", &port]);
    let server = instance.wait_server("ready");
    let reason = server["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("without archiving"), "{server}");
    assert_eq!(instance.sql.run("SHOW archive_mode"), "off");
    assert_eq!(server["archiver"]["enabled"], false, "{server}");
    assert!(instance.http.get("/").expect(200).body.contains("archive_mode is off"));
    instance.order("restart");
    let server = instance.wait_server("ready");
    assert_eq!(server["reason"], Value::Null, "{server}");
    assert_eq!(instance.sql.run("SHOW archive_mode"), "on");
    rows.check();
    // And stops with it.
    instance.stop_server();
    assert_eq!(instance.control("Database cluster state"), "shut down");
}

/// `recovery_target_action = shutdown`: the server ends itself, because it was told to. Started again it
/// would only do the same.
#[test]
fn a_server_that_was_to_shut_down_at_its_target_is_not_started_again() {
    let (instance, _fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    // What somebody restores by hand: a base backup, to be recovered to its own end.
    let (data, copy) = (instance.data_dir(), instance.root.join("spool/copy"));
    let mut backup = Command::new(postgres_program("pg_basebackup"));
    backup.env_clear().current_dir("/").args(["-U", "postgres", "-X", "fetch", "-c", "fast"]);
    backup.arg("-D").arg(&copy).arg("-h").arg(&instance.sql.socket_dir);
    backup.args(["-p", &instance.sql.port.to_string()]);
    instance.user.run_as(&mut backup);
    assert!(backup.status().unwrap().success());
    instance.stop_server();
    fs::rename(&data, instance.root.join("data-before")).unwrap();
    fs::rename(&copy, &data).unwrap();
    let settings = data.join("postgresql.auto.conf");
    let good = fs::read_to_string(&settings).unwrap();
    let recover = |action: &str| {
        let recovery = format!(
            "{good}restore_command = 'false'\nrecovery_target = 'immediate'\n\
             recovery_target_action = '{action}'\n"
        );
        fs::write(&settings, recovery).unwrap();
    };
    recover("shutdown");
    let signal = data.join("recovery.signal");
    fs::write(&signal, "").unwrap();
    instance.user.own(&signal);
    instance.order("start");
    let server = until("it has shut itself down", PATIENCE, || {
        let server = instance.server();
        let reason = server["reason"].as_str().unwrap_or_default().to_owned();
        (server["state"] == "down" && reason.contains("shut down in order")).then_some(server)
    });
    assert_eq!(server["restarts"], 0, "{server}");
    assert_eq!(instance.control("Database cluster state"), "shut down in recovery");
    assert_eq!(within(Duration::from_secs(3), || instance.postmaster()), None);
    // Somebody decides otherwise.
    recover("promote");
    instance.order("start");
    instance.wait_server("ready");
    rows.check();
}
