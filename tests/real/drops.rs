//! Targets just before the commit of a DROP DATABASE or DROP TABLESPACE, whose files are removed before
//! that commit: what exists at the target is whole, or the restore says that it is not.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Child, Command, Stdio};

use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::instance::Instance;
use crate::support::jobs::id_of;
use crate::support::moments::at;
use crate::support::rows::Rows;
use crate::support::{PATIENCE, files, process, until};
use crate::waits::waits_for;

/// Running, with a backup, rows, and a database of 100 rows made after it.
fn running() -> (Instance, Rows) {
    let instance = Instance::with_full_backup();
    with_shop(&instance);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    (instance, rows)
}

fn with_shop(instance: &Instance) {
    instance.wait_restorable(&instance.wait_first_backup());
    make_database(instance, "shop");
}

fn make_database(instance: &Instance, name: &str) {
    instance.sql.run(&format!("CREATE DATABASE {name}"));
    let fill = "CREATE TABLE goods AS SELECT generate_series(1, 100) id";
    instance.sql.attempt_in(name, fill).unwrap();
}

#[track_caller]
fn is_whole(instance: &Instance, database: &str) {
    let count = instance.sql.attempt_in(database, "SELECT count(*) FROM goods");
    assert_eq!(count.as_deref(), Ok("100"), "{database}");
    let marks = "SELECT count(*) FROM pg_database WHERE datconnlimit = -2";
    assert_eq!(instance.sql.run(marks), "0");
    // Also where somebody copies it.
    instance.sql.run(&format!("CREATE DATABASE copy TEMPLATE {database}"));
    instance.sql.run("DROP DATABASE copy");
}

fn exists(instance: &Instance, database: &str) -> bool {
    let query = format!("SELECT count(*) FROM pg_database WHERE datname = '{database}'");
    instance.sql.run(&query) == "1"
}

/// A DROP DATABASE that has marked the database as invalid and waits for its checkpoint, and the
/// process that it waits for.
fn drop_that_waits(instance: &Instance, database: &str) -> (Child, i32) {
    let checkpointer = instance
        .sql
        .run("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        .parse()
        .unwrap();
    process::signal(checkpointer, Signal::STOP);
    let mut psql = Command::new(files::postgres_program("psql"));
    let sql = &instance.sql;
    psql.args(["-X", "-U", "postgres", "-d", "postgres", "-p", &sql.port.to_string(), "-h"]);
    psql.arg(&sql.socket_dir).args(["-c", &format!("DROP DATABASE {database}")]);
    let child = psql.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    instance.sql.until_answers(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE%' AND wait_event_type = \
         'IPC'",
        "1",
    );
    (child, checkpointer)
}

fn goes_on(mut dropping: (Child, i32)) {
    process::signal(dropping.1, Signal::CONT);
    assert!(dropping.0.wait().unwrap().success());
}

#[test]
fn just_before_a_database_was_dropped() {
    let (instance, mut rows) = running();
    let (moment, then) = (instance.sql.now(), rows.clone());
    instance.sql.run("DROP DATABASE shop");
    rows.add(10);
    let job = instance.restore_to(&at(moment), &json!({}));
    is_whole(&instance, "shop");
    then.check_later();
    instance.undo(id_of(&job));
    assert!(!exists(&instance, "shop"));
    rows.check_later();
    // Exclusive of the transaction that drops it.
    instance.good_backup("full");
    make_database(&instance, "shop");
    let xid = instance.sql.run("SELECT pg_snapshot_xmax(pg_current_snapshot())");
    instance.sql.run("DROP DATABASE shop");
    rows.clone().add_from(1000, 10);
    let target = json!({ "type": "xid", "value": xid, "exclusive": true });
    instance.restore_to(&target, &json!({}));
    is_whole(&instance, "shop");
    rows.check_later();
}

#[test]
fn just_before_a_tablespace_was_dropped() {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let place = instance.root.join("space");
    instance.user.make_directory(&place, 0o700);
    instance.sql.run(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let (moment, then) = (instance.sql.now(), rows.clone());
    instance.sql.run("DROP TABLESPACE space");
    rows.add(10);
    instance.restore_to(&at(moment), &json!({}));
    then.check_later();
    let mut inside = Rows::in_tablespace(&instance.sql, "u", "space");
    inside.add(10);
    inside.check();
}

#[test]
fn a_database_in_a_tablespace_that_the_set_has() {
    let instance = Instance::with_full_backup();
    let place = instance.root.join("space");
    instance.user.make_directory(&place, 0o700);
    instance.sql.run(&format!("CREATE TABLESPACE space LOCATION '{}'", place.display()));
    instance.sql.run("CREATE DATABASE \"it's a \\shop\" TABLESPACE space");
    let name = "it's a \\shop";
    let fill = "CREATE TABLE goods AS SELECT generate_series(1, 100) id";
    instance.sql.attempt_in(name, fill).unwrap();
    instance.wait_restorable(&instance.good_backup("full"));
    let moment = instance.sql.now();
    instance.sql.run("DROP DATABASE \"it's a \\shop\"");
    instance.sql.run("DROP TABLESPACE space");
    let job = instance.restore_to(&at(moment), &json!({ "on_reached": "promote" }));
    let count = instance.sql.attempt_in(name, "SELECT count(*) FROM goods");
    assert_eq!(count.as_deref(), Ok("100"), "{}", instance.job_log(id_of(&job)));
}

/// The mark of a DROP DATABASE that is not committed is no loss: before the files are removed it waits for
/// a checkpoint, and others commit meanwhile.
#[test]
fn while_a_drop_of_a_database_waits_for_its_checkpoint() {
    let (instance, mut rows) = running();
    let dropping = drop_that_waits(&instance, "shop");
    rows.add(10);
    let (moment, then) = (instance.sql.now(), rows.clone());
    goes_on(dropping);
    rows.add(10);
    // The next commit is the DROP's own: the files are removed before it.
    let job = instance.restore_to(&at(moment), &json!({}));
    is_whole(&instance, "shop");
    then.check_later();
    instance.undo(id_of(&job));
    assert!(!exists(&instance, "shop"));
    rows.check_later();
}

#[test]
fn while_a_drop_of_a_database_waits_and_others_go_on() {
    let (instance, mut rows) = running();
    let dropping = drop_that_waits(&instance, "shop");
    rows.add(10);
    let (moment, then) = (instance.sql.now(), rows.clone());
    rows.add(10);
    goes_on(dropping);
    let job = instance.restore_to(&at(moment), &json!({}));
    assert_eq!(instance.copies(id_of(&job)), 1, "nothing was removed there");
    is_whole(&instance, "shop");
    then.check_later();
}

/// The database postgres can be dropped as well: Headrest connects to another one.
#[test]
fn without_the_database_postgres() {
    let (instance, _) = running();
    let ask = |statement: &str| instance.sql.attempt_in("template1", statement);
    ask("DROP DATABASE postgres WITH (FORCE)").unwrap();
    until("Headrest is connected again", PATIENCE, || {
        (instance.server()["state"] == "ready").then_some(())
    });
    let id = instance.begin_restore();
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_server("ready");
    let left = ask("SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database").unwrap();
    assert_eq!(left, "shop,template0,template1");
}

/// The tool that reads the WAL, as it would be if somebody had committed between the removal and the
/// target: that takes microseconds, and no test can be in between.
fn with_a_commit_in_between(instance: &mut Instance) {
    let tools = instance.root.join("tools");
    instance.user.make_directory(&tools, 0o755);
    let psql = files::postgres_program("psql");
    for entry in fs::read_dir(psql.parent().unwrap()).unwrap().flatten() {
        symlink(entry.path(), tools.join(entry.file_name())).unwrap();
    }
    let script = format!(
        "#!/bin/sh\n'{}' \"$@\" | sed '/rmgr: Database .*DROP/{{p;s/rmgr: Database/rmgr: \
         Transaction/;s/tx: *[0-9]*/tx: 4000000/;s/desc: .*/desc: COMMIT/}}'\n",
        files::postgres_program("pg_waldump").display()
    );
    fs::remove_file(tools.join("pg_waldump")).unwrap();
    fs::write(tools.join("pg_waldump"), script).unwrap();
    fs::set_permissions(tools.join("pg_waldump"), fs::Permissions::from_mode(0o755)).unwrap();
    instance.set("HEADREST_POSTGRES__BIN_DIR", tools.display().to_string());
}

fn before_the_drop(instance: &Instance) -> (Rows, Timestamp, Rows) {
    with_shop(instance);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let (moment, then) = (instance.sql.now(), rows.clone());
    instance.sql.run("DROP DATABASE shop");
    rows.add(10);
    (then, moment, rows)
}

#[test]
fn what_cannot_be_kept_is_asked_about_and_said() {
    let mut instance = Instance::new();
    with_a_commit_in_between(&mut instance);
    instance.start();
    instance.wait_ready();
    let (then, moment, all) = before_the_drop(&instance);
    let id = instance.begin_restore_to(&at(moment), &json!({}));
    let view = waits_for(&instance, &id, "database-destroyed");
    let detail = view["awaiting"]["detail"].as_str().unwrap();
    assert!(detail.contains("database \"shop\"") && detail.contains("committed"), "{detail}");
    assert_eq!(view["actions"], json!(["promote", "retarget", "abandon"]), "{view:#}");
    let refused = instance.steer(&id, "promote", &json!({}));
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert!(refused.body.contains("destroyed-database"), "{}", refused.body);
    instance.steer(&id, "promote", &json!({ "accept": ["destroyed-database"] })).expect(202);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "warned", "{job:#}");
    assert_eq!(job["error"]["code"], "database-destroyed", "{job:#}");
    assert!(job["error"]["message"].as_str().unwrap().contains("\"shop\""), "{job:#}");
    instance.wait_ready();
    then.check_later();
    // What was asked about once more is given up, and everything is as it was.
    let id = instance.begin_restore_to(&at(moment), &json!({}));
    waits_for(&instance, &id, "database-destroyed");
    instance.steer(&id, "abandon", &json!({ "confirm": "main" })).expect(202);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "cancelled");
    // As it was: also the destroyed one.
    assert!(job["error"]["message"].as_str().unwrap().contains("\"shop\""), "{job:#}");
    instance.wait_ready();
    then.check_later();
    // With the acceptance from the beginning nobody is asked.
    let accept = json!({ "accept": ["destroyed-database"] });
    let id = instance.begin_restore_to(&at(moment), &accept);
    let job: Value = instance.wait_job(&id);
    assert_eq!(job["state"], "warned", "{job:#}");
    assert!(all.count() > then.count());
}

#[test]
fn a_tool_that_does_not_read_the_wal_makes_nothing_a_success() {
    let mut instance = Instance::new();
    with_a_commit_in_between(&mut instance);
    let tool = instance.root.join("tools/pg_waldump");
    fs::write(&tool, "#!/bin/sh\necho 'pg_waldump: error: no' >&2\nexit 1\n").unwrap();
    instance.start();
    instance.wait_ready();
    let (_, moment, _) = before_the_drop(&instance);
    let id = instance.begin_restore_to(&at(moment), &json!({}));
    let view = waits_for(&instance, &id, "database-destroyed");
    assert!(view["awaiting"]["detail"].as_str().unwrap().contains("not known"), "{view:#}");
}
