//! Restores from every state a server can be in, and of every layout.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::send;
use crate::support::fake::Fake;
use crate::support::files;
use crate::support::instance::Instance;
use crate::support::jobs::{RESTORES, id_of};
use crate::support::rows::Rows;
use crate::support::{SOON, until};

#[test]
fn a_running_server_is_restored_with_its_last_commit() {
    let instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    let before = instance.postmaster();
    let restore = instance.good_restore();
    rows.check();
    assert_ne!(instance.postmaster(), before, "the server was not even stopped");
    let log = instance.job_log(id_of(&restore));
    assert!(log.contains("restore command end: completed successfully"), "{log}");
}

/// The server cannot start, in three different ways.
#[test]
fn a_server_that_cannot_start_is_restored() {
    let instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");

    rows.add(10);
    instance.stop_server();
    fs::remove_file(instance.data_dir().join("global/pg_control")).unwrap();
    instance.order("start");
    let server = instance.wait_server("failed");
    assert!(server["reason"].as_str().unwrap().contains("pg_control"), "{server}");
    assert_eq!(instance.servers(), [], "started without pg_control");
    instance.good_restore();
    rows.check();

    rows.add(10);
    instance.stop_server();
    let control = instance.data_dir().join("global/pg_control");
    fs::write(&control, vec![0xA5; 8192]).unwrap();
    instance.order("start");
    instance.wait_server("backing-off");
    instance.good_restore();
    rows.check();

    rows.add(10);
    instance.stop_server();
    fs::remove_file(instance.data_dir().join("global/pg_filenode.map")).unwrap();
    // The postmaster lives, but nobody can connect: the answer to the order takes its time.
    let order = instance.http.request(reqwest::Method::POST, "/api/v1/processes/postgres/start");
    let _ = order.timeout(Duration::from_secs(1)).send();
    until("a reason is told", SOON, || {
        let server = instance.server();
        assert_ne!(server["state"], "ready", "{server}");
        server["reason"].as_str().map(str::to_owned)
    });
    instance.good_restore();
    rows.check();
}

/// PGDATA is gone altogether: as after the loss of a disk, with and without a start in between.
#[test]
fn an_emptied_pgdata_is_restored_and_never_taken_for_a_first_start() {
    let mut instance = Instance::with_full_backup();
    let empty = |instance: &Instance| {
        for entry in fs::read_dir(instance.data_dir()).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                fs::remove_dir_all(entry.path()).unwrap();
            } else {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    };
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    instance.stop_server();
    empty(&instance);
    instance.good_restore();
    rows.check();

    rows.add(50);
    assert!(instance.stop().success());
    empty(&instance);
    instance.start();
    let server = instance.wait_server("failed");
    assert!(server["reason"].as_str().unwrap().contains("backups"), "{server}");
    assert_eq!(fs::read_dir(instance.data_dir()).unwrap().count(), 0, "a new cluster was made");
    instance.good_restore();
    rows.check();
}

#[test]
fn a_linked_pg_wal_stays_a_link() {
    let mut instance = Instance::with_full_backup();
    assert!(instance.stop().success());
    let (inside, outside) = (instance.data_dir().join("pg_wal"), instance.root.join("wal"));
    fs::rename(&inside, &outside).unwrap();
    symlink(&outside, &inside).unwrap();
    instance.user.own(&inside);
    instance.start();
    instance.wait_ready();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    instance.good_backup("full");
    rows.add(50);
    instance.good_restore();
    rows.check();
    assert_eq!(fs::read_link(&inside).expect("pg_wal is no link any more"), outside);
    rows.add(50);
    instance.good_backup("incr");
}

#[test]
fn a_tablespace_comes_back_where_it_was() {
    let instance = Instance::with_full_backup();
    let place = instance.root.join("space");
    instance.user.make_directory(&place, 0o700);
    instance.sql.run(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
    let mut rows = Rows::in_tablespace(&instance.sql, "t", "space");
    rows.add(50);
    instance.good_backup("full");
    rows.add(50);
    let file = rows.file();
    assert!(file.starts_with("pg_tblspc/"), "{file}");
    instance.stop_server();
    fs::remove_file(instance.data_dir().join(file)).unwrap();
    instance.good_restore();
    rows.check();
    let location = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'";
    assert_eq!(instance.sql.run(location), place.display().to_string());
}

/// What is wrong with a request is said before anything happens.
#[test]
fn a_restore_that_cannot_go_well_leaves_the_server_alone() {
    let instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let before = instance.postmaster();
    let jobs = instance.jobs().len();
    for body in [
        json!({ "target": { "type": "latest" } }),
        json!({ "target": { "type": "latest" }, "confirm": "mian" }),
    ] {
        let reply = instance.http.post(RESTORES, &body);
        assert_eq!(reply.problem(422), "confirmation-required", "{body}");
    }
    let other = instance.http.post("/api/v1/stanzas/other/restores", &Instance::restore_request());
    assert_eq!(other.problem(404), "no-such-stanza");
    assert_eq!(instance.jobs().len(), jobs, "a refused request became a job");

    // A file that the server's user cannot replace (as root's tests can make one) is found first.
    if rustix::process::geteuid().is_root() {
        let strange = instance.data_dir().join("lost+found");
        fs::create_dir(&strange).unwrap();
        let reply = instance.http.post(RESTORES, &Instance::restore_request());
        assert_eq!(reply.problem(409), "restore-refused");
        let check = &reply.json()["checks"][0];
        assert_eq!(check["id"], "owned-entries", "{check}");
        assert!(check["detail"].as_str().unwrap().contains("lost+found"), "{check}");
        fs::remove_dir(&strange).unwrap();
    }
    // So is a repository without a backup.
    let gone = instance.root.join("repo-away");
    fs::rename(instance.root.join("repo"), &gone).unwrap();
    let reply = instance.http.post(RESTORES, &Instance::restore_request());
    assert_eq!(reply.problem(404), "no-such-backup");
    fs::rename(&gone, instance.root.join("repo")).unwrap();
    assert_eq!(instance.jobs().len(), jobs, "a refused request became a job");

    assert_eq!(instance.postmaster(), before, "the server was touched");
    instance.wait_ready();
    rows.check();
    instance.good_restore();
    rows.check();
}

/// pgBackRest gives up before it removes `pg_control`: the server goes on, the restore is aborted.
#[test]
fn a_pgbackrest_that_touched_nothing_takes_no_server_down() {
    let (instance, fake) = Fake::with_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let repo = instance.root.join("repo");
    let real = files::pgbackrest().display().to_string();
    // The repository goes away in the very second; the real one says what it thinks of that.
    let goes_away = format!("chmod 0 '{}'\nexec {real} \"$@\"", repo.display());
    for (script, message) in [
        (goes_away.as_str(), "backup set"),
        (
            "echo 'P00  ERROR: [053]: unable to list file info for path \\047/spool\\047'; exit 53",
            "/spool",
        ),
        ("kill -9 $$", "SIGKILL"),
    ] {
        fake.on("restore", script);
        let id = instance.begin_restore();
        let job = instance.wait_job(&id);
        fake.forget("restore");
        fs::set_permissions(&repo, fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(job["state"], "failed", "{job:#}\n{}", instance.job_log(&id));
        assert_eq!(job["restore"]["phase"], "aborted", "{job:#}");
        assert!(job["error"]["message"].as_str().unwrap().contains(message), "{job:#}");
        instance.wait_ready();
        assert_eq!(instance.server()["fenced_by"], Value::Null);
        rows.check();
        rows.add(10);
    }
    instance.good_backup("incr");
    instance.good_restore();
    rows.check();
}

/// The fence: nobody but the restore starts or stops the server, and nobody can connect.
#[test]
fn nobody_gets_in_while_a_restore_is_at_work() {
    let (instance, fake) = Fake::with_first_backup();
    // So that it takes a while: there must be time to try.
    fake.delay("restore", 2.0);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let id = instance.begin_restore();
    instance.wait_job_until(&id, "has stopped the server", |job| {
        job["restore"]["phase"].as_str().is_some_and(|phase| {
            !["accepted", "quiesced", "safe-point", "stopping"].contains(&phase)
        })
    });
    let mut refused = 0;
    loop {
        let connected = instance.sql.attempt("SELECT 1");
        let start =
            send(instance.http.request(reqwest::Method::POST, "/api/v1/processes/postgres/start"));
        let probe = instance.http.probe("/readyz");
        let job = instance.job(&id);
        let phase = job["restore"]["phase"].as_str().unwrap_or_default().to_owned();
        if ["unfencing", "done"].contains(&phase.as_str()) || job["state"] != "running" {
            break;
        }
        assert!(connected.is_err(), "a client got in during phase {phase} or before");
        assert_eq!(start.status, 409, "phase {phase}: {}", start.body);
        assert_eq!(probe, Some(503), "phase {phase}");
        assert_eq!(instance.http.probe("/livez"), Some(200), "phase {phase}");
        refused += 1;
    }
    assert!(refused > 0, "the restore was over before anything could be tried");
    assert_eq!(instance.wait_job(&id)["state"], "succeeded");
    rows.check();
}

/// A configuration that breaks the server is undone by the restore, and what the caller set by
/// `ALTER SYSTEM` before the backup stays.
#[test]
fn settings_come_from_the_backup_and_nothing_of_the_restore_stays() {
    let instance = Instance::with_full_backup();
    instance.sql.run("ALTER SYSTEM SET work_mem = '7MB'");
    instance.good_backup("incr");
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.stop_server();
    let file = instance.data_dir().join("postgresql.auto.conf");
    let mut settings = fs::OpenOptions::new().append(true).open(&file).unwrap();
    writeln!(settings, "shared_preload_libraries = 'there_is_no_such_library'").unwrap();
    instance.order("start");
    instance.wait_server("backing-off");
    instance.good_restore();
    rows.check();
    assert_eq!(instance.sql.run("SHOW work_mem"), "7MB");
    let settings = fs::read_to_string(&file).unwrap();
    for word in ["restore_command", "recovery_target", "no_such_library"] {
        assert!(!settings.contains(word), "{settings}");
    }
}
