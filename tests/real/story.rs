//! The main job, end to end, the way a person does it.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::support::client::Http;
use crate::support::instance::Instance;
use crate::support::jobs::id_of;
use crate::support::rows::Rows;
use crate::support::{SOON, until};

#[test]
fn full_diff_incr_damage_and_a_restore_that_brings_back_every_row() {
    let mut instance = Instance::new();
    instance.env.remove("HEADREST_ADMIN_TOKEN");
    instance.start();
    use_generated_token(&mut instance);
    instance.wait_ready();
    assert_eq!(instance.wait_first_backup()["state"], "succeeded");
    first_start_made_everything(&instance);
    assert_eq!(instance.control("Latest checkpoint's TimeLineID"), "1");

    let mut rows = Rows::in_new_table(&instance.sql, "orders");
    let full = instance.good_backup("full");
    rows.add(100);
    let diff = instance.good_backup("diff");
    rows.add(100);
    let incr = instance.good_backup("incr");
    rows.add(100);
    labels_build_upon_each_other(&full, &diff, &incr);
    let file = rows.file();

    instance.stop_server();
    assert_eq!(instance.http.probe("/livez"), Some(200));
    assert_eq!(instance.http.probe("/readyz"), Some(503));
    fs::remove_file(instance.data_dir().join(&file)).expect("the table's file");

    let restore = instance.good_restore();
    rows.check();
    assert_eq!(restore["result"]["set"], incr["result"]["label"]);
    assert_eq!(restore["result"]["timeline"], 2);

    // It is an ordinary server again.
    rows.add(100);
    rows.check();
    assert_eq!(instance.sql.run("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    assert_eq!(instance.sql.run("SHOW unix_socket_directories"), shown(&instance, "sock"));
    assert_eq!(instance.sql.run("SHOW listen_addresses"), "127.0.0.1");
    TcpStream::connect(("127.0.0.1", instance.sql.port)).expect("it listens on TCP again");
    let settings = fs::read_to_string(instance.data_dir().join("postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("restore_command"), "{settings}");
    for signal in ["recovery.signal", "standby.signal"] {
        assert!(!instance.data_dir().join(signal).exists(), "{signal} is left");
    }
    assert_eq!(instance.server()["fenced_by"], Value::Null);

    // And it is backed up and restored again, on the new timeline.
    instance.good_backup("incr");
    rows.add(100);
    assert_eq!(instance.good_restore()["result"]["timeline"], 3);
    rows.check();
}

fn use_generated_token(instance: &mut Instance) {
    let file = instance.root.join("state/admin-token");
    let token = until("the token's file is there", SOON, || fs::read_to_string(&file).ok());
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others can read the token");
    let stranger = Http::new(instance.http_port(), None);
    assert_eq!(stranger.get("/api/v1/jobs").problem(401), "unauthenticated");
    assert!(!instance.log().contains(token.trim()), "the token is in the log");
    instance.http = Http::new(instance.http_port(), Some(token.trim().to_owned()));
}

/// Unasked: the stanza, a check, a full backup, in this order.
fn first_start_made_everything(instance: &Instance) {
    let mut jobs = instance.jobs();
    jobs.reverse();
    let kinds: Vec<_> = jobs.iter().map(|job| job["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["stanza-create", "check", "backup"]);
    for job in &jobs {
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(job)));
        assert_eq!(job["trigger"], "event:first-start");
    }
    assert_eq!(jobs[2]["result"]["type"], "full");
}

fn labels_build_upon_each_other(full: &Value, diff: &Value, incr: &Value) {
    let label = |job: &Value| job["result"]["label"].as_str().unwrap().to_owned();
    let full = label(full);
    assert!(full.ends_with('F'), "{full}");
    assert!(label(diff).starts_with(&full) && label(diff).ends_with('D'), "{}", label(diff));
    assert!(label(incr).starts_with(&full) && label(incr).ends_with('I'), "{}", label(incr));
}

fn shown(instance: &Instance, name: &str) -> String {
    instance.root.join(name).display().to_string()
}
