//! What a restore to a moment is refused for, before anything is touched: the same server runs on,
//! no job was made, and what is told instead can be had.

use std::fs;
use std::process::{Command, Stdio};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::support::fake::Fake;
use crate::support::files::{self, postgres_program};
use crate::support::instance::Instance;
use crate::support::jobs::{BACKUPS, RESTORES, id_of};
use crate::support::moments::{PLANS, at, checks, plan_request, request};
use crate::support::rows::Rows;
use crate::support::small_disk::SmallDisk;
use crate::support::{SOON, until};

/// What a refusal must leave as it is.
#[derive(Debug, PartialEq)]
struct Untouched {
    postmaster: Option<i32>,
    state: Value,
    jobs: usize,
    journal: Option<Value>,
}

impl Untouched {
    fn of(instance: &Instance) -> Self {
        Self {
            postmaster: instance.postmaster(),
            state: instance.server()["state"].clone(),
            jobs: instance.jobs().len(),
            journal: instance.journal(),
        }
    }
}

/// Asks for a plan and a restore, which must both be refused like this; answers the problem.
#[track_caller]
fn refused(instance: &Instance, target: &Value, more: &Value, status: u16, code: &str) -> Value {
    let before = Untouched::of(instance);
    let plan = instance.http.post(PLANS, &plan_request(target, more));
    assert_eq!(plan.problem(status), code, "{target} {more}");
    let restore = instance.http.post(RESTORES, &request(target, more));
    assert_eq!(restore.problem(status), code, "{target} {more}");
    assert_eq!(Untouched::of(instance), before, "{target} {more}");
    restore.json()
}

/// The same where something else can be had, which a plan must take.
#[track_caller]
fn refused_with_nearest(instance: &Instance, target: &Value, more: &Value, code: &str) -> String {
    let problem = refused(instance, target, more, 422, code);
    let nearest = problem["nearest"].as_str().unwrap_or_else(|| panic!("no nearest: {problem:#}"));
    let kind = if nearest.contains('T') {
        "time"
    } else if nearest.contains('/') {
        "lsn"
    } else {
        "xid"
    };
    let plan = instance.plan(&json!({ "type": kind, "value": nearest }), more);
    assert_eq!(plan["refused"], false, "{nearest}: {plan:#}");
    nearest.to_owned()
}

/// Asks for a restore that a check must refuse; answers that check.
#[track_caller]
fn refused_by(instance: &Instance, more: &Value, check: &str) -> Value {
    let latest = json!({ "type": "latest" });
    let before = Untouched::of(instance);
    let plan = instance.plan(&latest, more);
    assert_eq!(plan["refused"], true, "{plan:#}");
    assert!(checks(&plan, "fail").contains(&check.to_owned()), "{plan:#}");
    let reply = instance.http.post(RESTORES, &request(&latest, more));
    let (status, code) =
        if check == "space" { (507, "insufficient-space") } else { (409, "restore-refused") };
    assert_eq!(reply.problem(status), code, "{more}");
    assert_eq!(Untouched::of(instance), before, "{more}");
    let all = reply.json()["checks"].as_array().unwrap().clone();
    let found = all.into_iter().find(|found| found["id"] == check);
    found.unwrap_or_else(|| panic!("{check} is not in {}", reply.body))
}

#[test]
fn what_cannot_be_reached_is_refused_and_the_nearest_is_told() {
    let instance = Instance::beating();
    let first = instance.wait_first_backup();
    instance.wait_restorable(&first);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let (early, at_early) = (instance.sql.now(), rows.clone());
    rows.add(10);
    let second = instance.good_backup("full");
    instance.wait_restorable(&second);
    rows.add(10);
    instance.switch_wal();

    let none = json!({});
    let second_set = json!({ "set": second["result"]["label"] });
    let moment = |backup: &Value| Instance::first_moment(backup).to_string();
    let second_of = SignedDuration::from_secs(1);
    // Before the end of the chosen set, though an older one could do it.
    let too_early = "target-before-backup";
    let nearest = refused_with_nearest(&instance, &at(early), &second_set, too_early);
    assert_eq!(nearest, moment(&second));
    let stopped = Instance::first_moment(&second) - second_of;
    refused_with_nearest(&instance, &at(stopped), &second_set, too_early);
    let label = second["result"]["label"].as_str().unwrap();
    let detail = instance.http.get(&format!("{BACKUPS}/{label}")).expect(200).json();
    let lsn = |value: &str| json!({ "type": "lsn", "value": value });
    let start = lsn(detail["wal"]["lsn_start"].as_str().unwrap());
    let nearest = refused_with_nearest(&instance, &start, &second_set, too_early);
    assert_eq!(nearest, detail["wal"]["lsn_stop"]);
    // Before every set.
    for before in [second_of, SignedDuration::from_hours(24)] {
        let target = at(Instance::first_moment(&first) - before);
        assert_eq!(refused_with_nearest(&instance, &target, &none, too_early), moment(&first));
    }
    refused_with_nearest(&instance, &lsn("0/1000028"), &none, too_early);
    // Not there yet.
    let outside = "target-outside-window";
    let hour = SignedDuration::from_hours(1);
    let nearest = refused_with_nearest(&instance, &at(instance.sql.now() + hour), &none, outside);
    let lag = instance.sql.now().duration_since(nearest.parse().unwrap());
    assert!(lag < SignedDuration::from_secs(5), "{lag:?} ago is not near");
    refused_with_nearest(&instance, &lsn("FF/0"), &none, outside);
    let next = instance.sql.run("SELECT pg_snapshot_xmax(pg_current_snapshot())");
    let next: u64 = next.parse().unwrap();
    let xid = json!({ "type": "xid", "value": (next + 100_000).to_string() });
    refused_with_nearest(&instance, &xid, &none, outside);
    // What nobody knows.
    let name = json!({ "type": "name", "value": "nobody-made-this" });
    refused(&instance, &name, &none, 422, outside);
    let latest = json!({ "type": "latest" });
    refused(&instance, &latest, &json!({ "timeline": 9 }), 422, outside);
    let unknown = json!({ "set": "20200101-000000F" });
    refused(&instance, &latest, &unknown, 404, "no-such-backup");
    refused(&instance, &latest, &json!({ "repo": 2 }), 404, "no-such-backup");
    rows.check();

    // After the end of a timeline that was left, and of a set that the new one has no part of.
    let late = instance.sql.now();
    instance.restore_to(&at(early), &none);
    at_early.check();
    let original = json!({ "timeline": 1 });
    instance.plan(&at(late), &original);
    refused_with_nearest(&instance, &at(instance.sql.now()), &original, outside);
    let off = json!({ "set": label, "timeline": 2 });
    refused(&instance, &latest, &off, 422, outside);
    at_early.check();
}

/// Even where Headrest knows hardly any commit: none but its own before the first backup has ended.
#[test]
fn what_is_told_instead_can_be_had_on_an_idle_server_too() {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let (none, outside) = (json!({}), "target-outside-window");
    for target in [
        at(instance.sql.now() + SignedDuration::from_hours(1)),
        json!({ "type": "xid", "value": "1000000" }),
        json!({ "type": "lsn", "value": "FF/0" }),
    ] {
        refused_with_nearest(&instance, &target, &none, outside);
    }
}

#[test]
fn a_stopped_server_cannot_be_restored_to_a_moment_after_its_end() {
    let instance = Instance::beating();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.switch_wal();
    instance.stop_server();
    let end = Timestamp::now();
    let second = SignedDuration::from_secs(1);
    until("it has been down for a while", SOON, || {
        (Timestamp::now() > end + second * 2).then_some(())
    });
    let none = json!({});
    let nearest =
        refused_with_nearest(&instance, &at(end + second), &none, "target-outside-window");
    assert_eq!(instance.servers(), [], "it was started");
    instance.restore_to(&json!({ "type": "time", "value": nearest }), &none);
    rows.check();
}

/// As only root can make it: a directory that the server's user cannot replace.
#[test]
fn what_could_not_be_replaced_is_found_before_anything_stops() {
    let instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    if rustix::process::geteuid().is_root() {
        let strange = instance.data_dir().join("base/lost+found");
        fs::create_dir(&strange).unwrap();
        let check = refused_by(&instance, &json!({}), "owned-entries");
        assert!(check["detail"].as_str().unwrap().contains("lost+found"), "{check}");
        let accepting = json!({ "accept": ["wal-gap", "wal-loss", "other-system"] });
        refused_by(&instance, &accepting, "owned-entries");
        rows.check();
        fs::remove_dir(&strange).unwrap();
    }
    instance.good_restore();
    rows.check();
}

#[test]
fn the_cluster_of_somebody_else_is_not_replaced() {
    let mut instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    assert!(instance.stop().success());
    fs::rename(instance.data_dir(), instance.root.join("data-before")).unwrap();
    let mut initdb = Command::new(postgres_program("initdb"));
    initdb.args(["--username=postgres", "--auth=trust", "--locale=C.UTF-8", "--no-sync"]);
    initdb.arg("--pgdata").arg(instance.data_dir());
    initdb.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    instance.user.make_directory(&instance.data_dir(), 0o700);
    instance.user.run_as(&mut initdb);
    assert!(initdb.status().expect("initdb").success());
    instance.start();
    instance.sql.until_answers("SELECT pg_is_in_recovery()", "f");
    let mut others = Rows::in_new_table(&instance.sql, "others");
    others.add(10);
    let check = refused_by(&instance, &json!({}), "other-system");
    assert_eq!(check["acceptable"], true, "{check}");
    others.check();

    // Unless somebody says that it is to be replaced.
    let accepting = json!({ "accept": ["other-system"] });
    let job = instance.restore_to(&json!({ "type": "latest" }), &accepting);
    rows.check();
    // Of what was replaced there was never a backup.
    let undo = format!("/api/v1/restores/{}/undo", id_of(&job));
    let reply = instance.http.post(&undo, &json!({ "confirm": "main" }));
    assert_eq!(reply.problem(409), "nothing-to-undo");
}

/// The database was larger when it was backed up than what the disk has now.
#[test]
fn too_little_space_is_found_before_anything_stops() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can mount a small file system: nothing is tested");
        return;
    }
    let mut disk = SmallDisk::around(Instance::new(), 300);
    disk.hold_data_dir();
    let instance = &mut disk.instance;
    let args = format!(
        "{} -c max_wal_size=48MB -c min_wal_size=32MB",
        instance.env["HEADREST_POSTGRES__ARGS"]
    );
    instance.set("HEADREST_POSTGRES__ARGS", args);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    // Nearly empty pages: much in the table, little in the WAL.
    instance.sql.run("CREATE TABLE big (id integer) WITH (fillfactor = 10)");
    instance.sql.run("INSERT INTO big SELECT generate_series(1, 250000)");
    let big = instance.sql.run("SELECT pg_relation_size('big') >> 20");
    assert!(big.parse::<u32>().unwrap() > 80, "the table has only {big} MB");
    instance.good_backup("full");
    instance.sql.run("DROP TABLE big");
    instance.sql.run("CHECKPOINT");
    rows.add(10);

    let filling = disk.fill(16);
    let instance = &disk.instance;
    let check = refused_by(instance, &json!({}), "space");
    assert_eq!(check["acceptable"], false, "{check}");
    rows.add(10);
    rows.check();
    fs::remove_file(filling).unwrap();
    instance.good_restore();
    rows.check();
}

/// Whatever is sent as a part of a target: nothing of it reaches a file of settings or a program.
#[test]
fn hostile_values_are_refused_as_what_they_are() {
    let (instance, fake) = Fake::with_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let (ran, mark) = (instance.root.join("spool/ran"), instance.root.join("spool/mark"));
    let real = files::pgbackrest();
    fake.on("restore", &format!("echo ran >> '{}'; exec {} \"$@\"", ran.display(), real.display()));
    let before = Untouched::of(&instance);

    let touch = format!("touch {}", mark.display());
    let settings = format!("'\nrecovery_end_command = '{touch}");
    let endings = [
        settings.as_str(),
        "'",
        "\"",
        "\\",
        "\n",
        "\u{0}",
        " --type=none",
        "; $(touch /x)",
        "' OR '1'='1",
        "\r\n#",
    ];
    let mut cases: Vec<(Value, &str)> = Vec::new();
    for ending in endings {
        let target = |kind: &str, good: &str| json!({ "target": { "type": kind, "value": format!("{good}{ending}") } });
        cases.push((target("name", "before-release"), "target.value"));
        cases.push((target("time", "2026-11-20T10:00:00Z"), "target.value"));
        cases.push((target("lsn", "0/16B6C50"), "target.value"));
        cases.push((target("xid", "742"), "target.value"));
        cases.push((target(&format!("time{ending}"), "2026-11-20T10:00:00Z"), "target.type"));
        let latest = json!({ "type": "latest" });
        for (field, good) in [("timeline", "1"), ("set", "20261120-101500F")] {
            let body = json!({ "target": latest, field: format!("{good}{ending}") });
            cases.push((body, field));
        }
        if ending.contains(char::is_control) {
            let body = json!({ "target": latest, "databases": [format!("shop{ending}")] });
            cases.push((body, "databases"));
        }
        let body = json!({ "target": latest, "on_reached": format!("pause{ending}") });
        cases.push((body, "on_reached"));
        let body = json!({ "target": latest, "accept": [format!("wal-gap{ending}")] });
        cases.push((body, "accept"));
    }
    for value in ["0x2E6", "-1", "2", "007", "1e3", "18446744073709551616", ""] {
        cases.push((json!({ "target": { "type": "xid", "value": value } }), "target.value"));
    }
    for value in ["2026-11-20T10:00:00", "2026-11-20", "now", "infinity", "epoch", "today", ""] {
        cases.push((json!({ "target": { "type": "time", "value": value } }), "target.value"));
    }
    for value in ["../../../etc/passwd", "latest", "--repo1-host=example.com", "", "*"] {
        cases.push((json!({ "target": { "type": "latest" }, "set": value }), "set"));
    }
    for (body, field) in &cases {
        for path in [PLANS, RESTORES] {
            let mut body = body.clone();
            if path == RESTORES {
                body["confirm"] = json!("main");
            }
            let reply = instance.http.post(path, &body);
            assert_eq!(reply.problem(422), "invalid-field", "{body}");
            assert_eq!(reply.json()["field"], **field, "{body}: {}", reply.body);
        }
    }
    // A database may be called anything: that there is none of that name is found in the set.
    for name in ["shop'", "shop --type=none", "--type=none", "$(touch /x)", "shop\" OR \"1"] {
        refused_by(&instance, &json!({ "databases": [name] }), "databases");
    }
    // Nor is such a name given to a restore point.
    for ending in endings {
        let body = json!({ "name": format!("x{ending}") });
        let reply = instance.http.post("/api/v1/stanzas/main/restore-points", &body);
        assert_eq!(reply.problem(422), "invalid-field", "{body}");
    }
    assert_eq!(Untouched::of(&instance), before);
    assert!(!ran.exists(), "a restore was begun");
    assert!(!mark.exists(), "a command of ours was run");
    assert_eq!(instance.journal(), None);
    rows.check();
    instance.good_restore();
    rows.check();
    assert!(ran.exists(), "the test would not have noticed");
    assert!(!mark.exists(), "a command of ours was run");
}

#[test]
fn a_plan_changes_nothing_and_is_carried_out_only_while_it_holds() {
    let instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let before = Untouched::of(&instance);
    let latest = json!({ "type": "latest" });
    let carry_out = |plan: &str, more: &Value| {
        let mut body = json!({ "plan": plan, "confirm": "main", "backup_after": false });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        instance.http.post_and_wait(RESTORES, &body, 120)
    };
    let first = instance.plan(&latest, &json!({}));
    assert_eq!(first["refused"], false, "{first:#}");
    assert_eq!(first["data_lost"], Value::Null, "{first:#}");
    assert_eq!(json!([first["set"]]), json!(instance.labels()), "{first:#}");
    assert_eq!(first["timeline"], 1, "{first:#}");
    let command = first["command"].to_string();
    assert!(command.contains("--set=") && command.contains("--delta"), "{command}");
    // The same again is the same plan.
    assert_eq!(instance.plan(&latest, &json!({}))["hash"], first["hash"]);
    for nobody in ["01a21390-3847-77af-aece-f19c71ca0d14", "no-id", "../x", ""] {
        assert_eq!(carry_out(nobody, &json!({})).problem(409), "plan-expired", "{nobody}");
    }
    let id = id_of(&first);
    let both = carry_out(id, &json!({ "target": latest }));
    assert_eq!(both.problem(422), "invalid-field");
    assert_eq!(carry_out(id, &json!({ "confirm": "mian" })).problem(422), "confirmation-required");
    assert_eq!(Untouched::of(&instance), before);

    // A newer backup would be restored now.
    instance.good_backup("full");
    let jobs = instance.jobs().len();
    let stale = carry_out(id, &json!({}));
    assert_eq!(stale.problem(409), "plan-stale");
    let detail = stale.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(first["set"].as_str().unwrap()), "{detail}");
    assert_eq!(instance.jobs().len(), jobs, "a stale plan became a job");
    assert_eq!(instance.postmaster(), before.postmaster);

    // What grows all the time does not make it stale.
    let second = instance.plan(&latest, &json!({}));
    rows.add(10);
    instance.switch_wal();
    rows.add(10);
    let job = carry_out(id_of(&second), &json!({})).expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id_of(&job)));
    assert_eq!(job["result"]["set"], second["set"], "{job:#}");
    instance.wait_ready();
    rows.check();
    // Another timeline, another plan.
    assert_eq!(carry_out(id_of(&second), &json!({})).problem(409), "plan-stale");
    rows.check();
}
