//! PostgreSQL dies, or does not even start.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::running;
use crate::support::jobs::time;
use crate::support::process::{self, Process};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, SOON, until, within};

#[test]
fn a_killed_postmaster_is_started_again_and_nothing_is_lost() {
    let (instance, _fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    for round in 1..=2 {
        rows.add(100);
        let before = instance.postmaster().unwrap();
        process::signal(before, Signal::KILL);
        until("the API says that it is restarted", SOON, || {
            (instance.server()["restarts"] == round).then_some(())
        });
        instance.wait_server("ready");
        rows.check();
        assert_ne!(instance.postmaster(), Some(before));
        let server = instance.server();
        assert!(server["last_exit"].as_str().unwrap().contains("SIGKILL"), "{server}");
        assert_eq!(server["reason"], Value::Null, "an old reason is still told: {server}");
    }
}

/// PostgreSQL restarts itself then; the supervisor only notices that it was away.
#[test]
fn a_killed_backend_is_the_servers_own_affair() {
    let (instance, _fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(100);
    let postmaster = instance.postmaster();
    let victim = instance.sql.run(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'headrest' \
         UNION ALL SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter' LIMIT 1",
    );
    process::signal(victim.parse().unwrap(), Signal::KILL);
    until("it was away", SOON, || {
        let text = instance.http.get("/api/v1/processes/postgres/log").body;
        text.contains("all server processes terminated; reinitializing").then_some(())
    });
    until("it is back", PATIENCE, || {
        (instance.http.probe("/readyz") == Some(200) && instance.sql.attempt("SELECT 1").is_ok())
            .then_some(())
    });
    rows.check();
    assert_eq!(instance.postmaster(), postmaster);
    assert_eq!(instance.server()["restarts"], 0);
}

/// Hundredths of a second of processor time so far.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_server_that_never_starts_is_tried_ever_more_seldom_and_then_given_up() {
    let (instance, _fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.stop_server();
    let settings = instance.data_dir().join("postgresql.auto.conf");
    let good = fs::read(&settings).unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&settings).unwrap();
    writeln!(file, "shared_preload_libraries = 'there_is_no_such_library'").unwrap();
    instance.order("start");

    let mut delays: Vec<f64> = Vec::new();
    let mut busy = None;
    let server = within(Duration::from_secs(200), || {
        let server = instance.server();
        if server["state"] == "failed" {
            return Some(server);
        }
        let tries = usize::try_from(server["restarts"].as_u64().unwrap()).unwrap();
        if server["state"] == "backing-off" && tries > delays.len() {
            let delay = time(&server["next_start_at"]).duration_since(time(&server["since"]));
            delays.push(delay.as_secs_f64());
            assert!(server["reason"].as_str().unwrap().contains("no_such_library"), "{server}");
            assert_eq!(instance.http.probe("/livez"), Some(200));
            assert_eq!(instance.http.probe("/readyz"), Some(503));
            // The longest waits are left alone, to see what they cost.
            if delay.as_secs() >= 8 && busy.is_none() {
                let (began, before) = (Instant::now(), cpu_ticks(instance.pid()));
                within(Duration::from_secs(6), || None::<()>);
                let used = Duration::from_millis((cpu_ticks(instance.pid()) - before) * 10);
                busy = Some(100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64());
            }
        }
        None
    });
    let server = server.unwrap_or_else(|| panic!("never given up: {}", instance.server()));
    assert!(server["reason"].as_str().unwrap().contains("no_such_library"), "{server}");
    assert_eq!(server["next_start_at"], Value::Null, "{server}");
    assert!(delays.len() >= 5, "{delays:?}");
    assert!(delays.last() > Some(&10.0), "{delays:?}");
    // Growing, up to the jitter, to half a minute at most.
    assert!(delays.windows(2).all(|pair| pair[1] > pair[0] * 0.79), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= 31.0), "{delays:?}");
    let busy = busy.expect("no long delay was seen");
    assert!(busy < 5.0, "{busy} % of a processor while nothing happens");
    assert_eq!(instance.servers(), []);

    // The cause is corrected and somebody says so.
    fs::write(&settings, good).unwrap();
    instance.order("start");
    instance.wait_server("ready");
    rows.check();
}

/// Half a cluster, or something else altogether, is left alone and said.
#[test]
fn what_is_no_database_is_not_started_and_not_touched() {
    let (instance, _fake) = running();
    instance.stop_server();
    let control = instance.data_dir().join("global/pg_control");
    let aside = instance.root.join("pg_control");
    fs::rename(&control, &aside).unwrap();
    instance.order("start");
    let server = instance.wait_server("failed");
    assert!(server["reason"].as_str().unwrap().contains("pg_control"), "{server}");
    assert_eq!(instance.servers(), [] as [Process; 0]);
    assert_eq!(instance.http.probe("/livez"), Some(200));
    assert_eq!(instance.http.probe("/startupz"), Some(503));
    fs::rename(&aside, &control).unwrap();
    instance.order("start");
    instance.wait_server("ready");

    instance.stop_server();
    let version = instance.data_dir().join("PG_VERSION");
    let number = fs::read(&version).unwrap();
    fs::remove_file(&version).unwrap();
    instance.order("start");
    let server = instance.wait_server("failed");
    assert!(server["reason"].as_str().unwrap().contains("PG_VERSION"), "{server}");
    assert!(control.exists(), "it was made anew");
    fs::write(&version, number).unwrap();
    instance.order("start");
    instance.wait_server("ready");
}
