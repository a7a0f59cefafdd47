//! Faults of every kind: each turns the health to its level, is told once, and once more when it is
//! healed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::archive::{Damage, Damaged};
use crate::support::instance::Instance;
use crate::support::small_disk::SmallDisk;
use crate::support::told::Told;
use crate::support::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// A running instance that looks often, with a backup, and what it told.
fn watched(prepare: impl FnOnce(&mut Instance)) -> (Instance, Told) {
    let mut instance = Instance::new();
    let told = Told::by(&mut instance);
    instance.set("HEADREST_HEALTH__INTERVAL", "2s");
    // The disk of the machine is not what is tested.
    instance.set("HEADREST_HEALTH__DISK_FREE_WARN", "2");
    instance.set("HEADREST_HEALTH__DISK_FREE_FAIL", "1");
    prepare(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    wait_check(&instance, "wal-gap", "pass");
    (instance, told)
}

fn check(instance: &Instance, name: &str) -> Option<Value> {
    let reply = instance.http.get("/api/v1/health");
    let health = reply.json();
    let failing = health["status"] == "fail";
    assert_eq!(reply.status, if failing { 503 } else { 200 }, "{health:#}");
    let checks = health["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).cloned()
}

/// Waits until a check has this status.
#[track_caller]
pub(crate) fn wait_check(instance: &Instance, name: &str, status: &str) -> Value {
    let mut last = None;
    let found = crate::support::within(PATIENCE, || {
        last = check(instance, name);
        last.clone().filter(|check| check["status"] == status)
    });
    found.unwrap_or_else(|| panic!("{name} is not {status}: {last:#?}"))
}

fn switch(instance: &Instance) -> String {
    let path = "/api/v1/stanzas/main/wal/switch";
    instance.sql.run("SELECT pg_logical_emit_message(true, 'test', 'x')");
    let switched = instance.http.post(path, &json!({})).expect(200).json();
    switched["segment"].as_str().unwrap().to_owned()
}

/// After three failures it sleeps for a minute, unless there is something new.
fn wake_archiver(instance: &Instance) {
    instance.sql.run("SELECT pg_logical_emit_message(true, 'test', 'x'), pg_switch_wal()");
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Below it nobody but root can make a file until it is opened again.
fn archive_dir(instance: &Instance) -> std::path::PathBuf {
    let timeline = instance.root.join("repo/archive/main");
    let id = fs::read_dir(timeline).unwrap().flatten().find(|entry| entry.path().is_dir());
    id.unwrap().path().join("0000000100000000")
}

#[test]
fn broken_archiving_warns_then_fails_and_is_told_until_it_works_again() {
    let (instance, told) = watched(|instance| instance.set("HEADREST_HEALTH__ARCHIVER_FAIL", "6s"));
    let directory = archive_dir(&instance);
    chmod(&directory, 0o555);
    let segment = {
        instance.sql.run("SELECT pg_logical_emit_message(true, 'test', 'x')");
        instance.sql.run("SELECT pg_walfile_name(pg_switch_wal())")
    };
    let warned = wait_check(&instance, "archiver", "warn");
    assert!(warned["detail"].as_str().unwrap().contains(&segment), "{warned}");
    assert!(warned["hint"].as_str().unwrap().contains("/log"), "{warned}");
    wait_check(&instance, "archiver", "fail");
    chmod(&directory, 0o750);
    wake_archiver(&instance);
    wait_check(&instance, "archiver", "pass");
    told.wait_for(&[
        "wal.failing warning health:archiving",
        "wal.failing critical health:archiving",
        "wal.recovered info health:archiving",
    ]);
}

#[test]
fn an_unreadable_repository_is_told_once_and_not_as_a_fault_of_archiving_too() {
    let (instance, told) = watched(|_| {});
    let repo = instance.root.join("repo");
    chmod(&repo, 0o000);
    wake_archiver(&instance);
    let failed = wait_check(&instance, "repository", "fail");
    assert!(failed["detail"].as_str().unwrap().len() > 10, "{failed}");
    // Archiving fails as well, which everybody who asks is told.
    wait_check(&instance, "archiver", "warn");
    let nagios = instance.http.get("/api/v1/health?format=nagios").expect(503).body;
    assert!(nagios.starts_with("HEADREST CRITICAL - repository: "), "{nagios}");
    chmod(&repo, 0o750);
    wait_check(&instance, "repository", "pass");
    wake_archiver(&instance);
    wait_check(&instance, "archiver", "pass");
    told.wait_for(&[
        "repo.unavailable critical health:repository",
        "repo.recovered info health:repository",
    ]);
}

#[test]
fn a_deleted_segment_fails_until_a_new_backup_makes_what_follows_safe() {
    let (instance, told) = watched(|_| {});
    let segments = [switch(&instance), switch(&instance), switch(&instance)];
    let _damaged = Damaged::make(&instance, &segments[1], Damage::Missing);
    let failed = wait_check(&instance, "wal-gap", "fail");
    assert!(failed["detail"].as_str().unwrap().contains(&segments[1]), "{failed}");
    let healed = wait_check(&instance, "wal-gap", "pass");
    assert!(
        healed["detail"].as_str().unwrap().contains(&segments[1]),
        "it is not forgotten: {healed}"
    );
    told.wait_for(&["wal.gap critical health:wal-gap", "wal.recovered info health:wal-gap"]);
    let jobs = instance.jobs();
    let asked: Vec<_> = jobs.iter().filter(|job| job["trigger"] == "event:wal-gap").collect();
    assert_eq!(asked.len(), 1, "{asked:#?}");
    assert_eq!(
        (&asked[0]["result"]["type"], &asked[0]["state"]),
        (&json!("full"), &json!("succeeded"))
    );
}

#[test]
fn dropped_wal_is_a_gap_although_postgresql_takes_it_for_archived() {
    let (instance, told) =
        watched(|instance| instance.set("PGBACKREST_ARCHIVE_PUSH_QUEUE_MAX", "20MB"));
    let directory = archive_dir(&instance);
    chmod(&directory, 0o555);
    for _ in 0..4 {
        wake_archiver(&instance);
    }
    let failed = wait_check(&instance, "wal-gap", "fail");
    assert!(failed["detail"].as_str().unwrap().contains("0000000100000000"), "{failed}");
    chmod(&directory, 0o750);
    wait_check(&instance, "wal-gap", "pass");
    let gaps: Vec<_> =
        told.health().into_iter().filter(|line| line.ends_with("health:wal-gap")).collect();
    assert_eq!(gaps.first().map(String::as_str), Some("wal.gap critical health:wal-gap"));
    until("the end is told", PATIENCE, || {
        told.health().iter().any(|l| l == "wal.recovered info health:wal-gap").then_some(())
    });
    let told = told.health();
    let gaps = told.iter().filter(|line| line.ends_with("health:wal-gap")).count();
    assert_eq!(gaps, 2, "{told:?}");
}

#[test]
fn a_disk_that_is_nearly_full_fails_and_is_well_with_room_again() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this must be tested, as root");
        eprintln!("only root can mount a small file system: nothing is tested");
        return;
    }
    let mut instance = Instance::new();
    let told = Told::by(&mut instance);
    instance.set("HEADREST_HEALTH__DISK_FREE_WARN", "2");
    instance.set("HEADREST_HEALTH__DISK_FREE_FAIL", "1");
    let mut disk = SmallDisk::around(instance, 400);
    let repo = disk.place().join("repo");
    disk.instance.user.make_directory(&repo, 0o750);
    disk.instance.set("PGBACKREST_REPO1_PATH", repo.display().to_string());
    disk.instance.start();
    disk.instance.wait_ready();
    disk.instance.wait_first_backup();
    let of_repository = |status: &str| {
        let what = format!("the disk of the repository is {status}");
        until(&what, PATIENCE, || {
            let health = disk.instance.http.get("/api/v1/health").json();
            let checks = health["checks"].as_array()?.clone();
            checks.into_iter().find(|check| {
                check["name"] == "disk-space"
                    && check["of"] == "repository"
                    && check["status"] == status
            })
        })
    };
    of_repository("pass");
    let filling = disk.fill(2);
    of_repository("fail");
    fs::remove_file(filling).unwrap();
    of_repository("pass");
    told.wait_for(&[
        "health.changed critical health:disk-space:repository",
        "health.changed info health:disk-space:repository",
    ]);
}

#[test]
fn a_damaged_page_warns_until_a_backup_finds_none() {
    let (instance, told) = watched(|_| {});
    let rows = "CREATE TABLE t AS SELECT g, repeat('x', 100) FROM generate_series(1, 2000) g";
    instance.sql.run(rows);
    let path = instance.sql.run("SELECT pg_relation_filepath('t')");
    instance.stop_server();
    let file = instance.data_dir().join(path);
    let mut bytes = fs::read(&file).unwrap();
    for byte in &mut bytes[8192 + 4000..8192 + 4100] {
        *byte ^= 0x55;
    }
    fs::write(&file, bytes).unwrap();
    instance.order("start");
    instance.wait_ready();
    let backup = instance.backup(&json!({ "type": "full" }));
    assert_eq!(
        (&backup["state"], &backup["error"]["code"]),
        (&json!("warned"), &json!("page-checksum-errors"))
    );
    let warned = wait_check(&instance, "page-checksums", "warn");
    let label = backup["result"]["label"].as_str().unwrap();
    assert!(warned["detail"].as_str().unwrap().contains(label), "{warned}");
    assert_eq!(instance.http.get("/api/v1/health").status, 200);
    instance.http.get("/api/v1/health?strict=1").expect(503);
    // The health reports no condition that began and ended between two of its looks.
    let store = rusqlite::Connection::open(instance.root.join("state/headrest.db")).unwrap();
    crate::support::until("the condition is known", PATIENCE, || {
        let known =
            "SELECT count(*) FROM conditions WHERE name = 'page-checksums' AND level = 'warn'";
        store.query_row(known, [], |row| row.get::<_, u32>(0)).ok().filter(|count| *count == 1)
    });
    instance.sql.run("DROP TABLE t");
    instance.good_backup("full");
    wait_check(&instance, "page-checksums", "pass");
    // Its job tells of the damage, and the health of the end.
    let damage = format!("backup.warned warning job:{}", backup["id"].as_str().unwrap());
    let of_pages = || -> Vec<String> {
        let is_it = |line: &String| line.contains("page-checksums") || line.contains("warned");
        told.all().into_iter().filter(is_it).collect()
    };
    let both = crate::support::within(PATIENCE, || (of_pages().len() == 2).then_some(()));
    assert!(
        both.is_some(),
        "expected the two events of the damage and no others: {:#?}",
        told.all()
    );
    assert_eq!(of_pages(), [damage.as_str(), "health.changed info health:page-checksums"]);
}

#[test]
fn a_missed_schedule_warns_until_it_ran_and_a_doctor_says_so() {
    let (mut instance, told) = watched(|_| {});
    // Once a day, and not soon, whatever the time is.
    let now = instance.http.get("/api/v1/health").json()["at"].as_str().unwrap().to_owned();
    let hour: u32 = now[11..13].parse().unwrap();
    let cron = format!("0 {} * * *", (hour + 12) % 24);
    let schedule = json!({"name": "daily", "type": "incr", "cron": cron, "within_s": 0});
    instance.http.post("/api/v1/schedules", &schedule).expect(201);
    instance.stop();
    // As if Headrest had been down for two days.
    let store = rusqlite::Connection::open(instance.root.join("state/headrest.db")).unwrap();
    let state: String = store
        .query_row("SELECT state FROM schedule_states WHERE name = 'daily'", [], |row| row.get(0))
        .unwrap();
    let mut state: Value = serde_json::from_str(&state).unwrap();
    let decided: jiff::Timestamp = state["decided"].as_str().unwrap().parse().unwrap();
    let before = decided.checked_sub(jiff::SignedDuration::from_hours(48)).unwrap();
    state["decided"] = json!(before.to_string());
    store
        .execute("UPDATE schedule_states SET state = ?1 WHERE name = 'daily'", [state.to_string()])
        .unwrap();
    // And one that only a later version can read.
    let odd = "INSERT INTO schedules VALUES ('odd', '{\"kind\": \"drill\"}', 1, 0)";
    store.execute(odd, []).unwrap();
    drop(store);
    instance.start();
    instance.wait_ready();
    let of_odd = || {
        let health = instance.http.get("/api/v1/health").json();
        let checks = health["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|check| check["of"] == "odd").map(|check| check["detail"].clone())
    };
    let told_of_odd = until("the odd one is told", PATIENCE, of_odd);
    assert!(told_of_odd.as_str().unwrap().contains("it does not run"), "{told_of_odd}");
    let delete = instance.http.request(reqwest::Method::DELETE, "/api/v1/schedules/odd");
    crate::support::client::send(delete).expect(204);
    until("it is gone", PATIENCE, || of_odd().is_none().then_some(()));
    let warned = wait_check(&instance, "schedule", "warn");
    assert!(warned["detail"].as_str().unwrap().contains("was missed"), "{warned}");
    let shown = instance.http.get("/api/v1/schedules/daily").expect(200).json();
    assert_eq!(
        (&shown["missed_count"], &shown["verdicts"][0]["verdict"]),
        (&json!(2), &json!("missed"))
    );
    let (code, text) = instance.doctor();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("schedule daily: WARNING (the run of "), "{text}");
    assert!(text.contains("archiver: OK"), "{text}");
    let job = instance.http.post("/api/v1/schedules/daily/run", &json!({})).expect(202).json();
    instance.wait_job(job["id"].as_str().unwrap());
    wait_check(&instance, "schedule", "pass");
    until("the end is told", PATIENCE, || {
        told.health().iter().any(|line| line.starts_with("health.changed info")).then_some(())
    });
    let mut lines = told.health();
    lines.retain(|line| line.ends_with(":daily"));
    assert_eq!(
        lines,
        [
            "backup.missed warning health:schedule:daily",
            "health.changed info health:schedule:daily",
        ]
    );
    assert_eq!(instance.doctor().0, Some(0));
    instance.stop();
    assert_eq!(instance.doctor().0, Some(3), "nothing can be told");
}
