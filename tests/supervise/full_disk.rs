//! The disk that holds the WAL is full.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use crate::running;
use crate::support::rows::Rows;
use crate::support::small_disk::SmallDisk;
use crate::support::{PATIENCE, SOON, until, within};

#[test]
fn a_full_disk_of_wal_makes_no_loop_and_is_recovered_from() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this must be tested, as root");
        eprintln!("only root can mount a small file system: nothing is tested");
        return;
    }
    let (instance, _fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let disk = SmallDisk::around(instance, 120);
    let instance = &disk.instance;
    instance.stop_server();
    let (old, new) = (instance.data_dir().join("pg_wal"), disk.place().join("wal"));
    let copied = Command::new("cp").arg("-a").args([&old, &new]).status().unwrap();
    assert!(copied.success());
    fs::remove_dir_all(&old).unwrap();
    symlink(&new, &old).unwrap();
    instance.order("start");
    instance.wait_server("ready");
    rows.add(10);
    let filling = disk.fill(0);
    // More than the segments that are there can take.
    let much =
        "CREATE TABLE much AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, 200000) g";
    assert!(instance.sql.attempt(much).is_err(), "there was room");
    let server = instance.wait_server("failed");
    let reason = server["reason"].as_str().unwrap();
    assert!(reason.contains("pg_wal is full") && reason.contains("32 MiB"), "{server}");
    let restarts = &server["restarts"];
    assert!(restarts.as_u64().unwrap() <= 1, "{server}");
    assert_eq!(instance.http.probe("/livez"), Some(200));
    assert_eq!(instance.http.probe("/readyz"), Some(503));
    let started = within(Duration::from_secs(5), || instance.servers().into_iter().next());
    assert!(started.is_none(), "it was started on a full disk: {started:?}");
    assert_eq!(instance.server()["restarts"], *restarts);
    // A little is not enough.
    fs::remove_file(&filling).unwrap();
    let filling = disk.fill(20);
    assert!(within(Duration::from_secs(3), || instance.servers().into_iter().next()).is_none());
    fs::remove_file(&filling).unwrap();
    until("it is started by itself", SOON, || {
        (instance.server()["state"] != "failed").then_some(())
    });
    instance.wait_server_for("ready", PATIENCE);
    rows.check();
    rows.add(10);
    rows.check();
}
