//! Tablespaces that the set does not have: nothing of a discarded future comes back through them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::restore_kills::kill_in;
use crate::support::instance::Instance;
use crate::support::jobs::id_of;
use crate::support::moments::at;
use crate::support::rows::Rows;
use crate::support::{PATIENCE, until};

/// Running, with a backup that knows no tablespace.
fn running() -> Instance {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    instance
}

/// A directory for a tablespace.
fn place(instance: &Instance, name: &str) -> PathBuf {
    let place = instance.root.join(name);
    instance.user.make_directory(&place, 0o700);
    place
}

fn create(instance: &Instance, name: &str, location: &Path) {
    instance.sql.run(&format!("CREATE TABLESPACE {name} LOCATION '{}'", location.display()));
}

/// Rows in a new tablespace, a moment after them, and many more rows after that: on pages that are
/// there before the restore.
fn with_future(instance: &Instance, table: &str, tablespace: &str) -> (Rows, Timestamp, Rows) {
    let mut rows = Rows::in_tablespace(&instance.sql, table, tablespace);
    rows.add(50);
    let (then, moment) = (rows.clone(), instance.sql.now());
    // Replay stops before this commit: of what comes after it nothing is replayed.
    rows.add_from(1000, 1);
    rows.add(4773);
    // Read once, so that each row is marked as committed, and written to the disk.
    instance.sql.run(&format!("SELECT count(*) FROM {table}"));
    instance.sql.run("CHECKPOINT");
    instance.switch_wal();
    (then, moment, rows)
}

/// What is kept aside of a tablespace.
fn asides(location: &Path) -> Vec<String> {
    let entries = fs::read_dir(location).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.contains(".before-")).collect()
}

/// To the moment, and back again; the tablespace is made between the set and the moment.
fn goes_there_and_back(instance: &Instance, location: &Path) {
    let (then, moment, all) = with_future(instance, "t", "space");
    let job = instance.restore_to(&at(moment), &json!({}));
    then.check_later();
    let real = location.canonicalize().unwrap();
    assert_eq!(asides(&real).len(), 1, "{}", instance.job_log(id_of(&job)));
    let mut others = then.clone();
    others.add_from(10_000, 10);
    instance.undo(id_of(&job));
    all.check_later();
    assert_eq!(asides(&real).len(), 1, "of the undo alone: {:?}", asides(&real));
}

#[test]
fn a_tablespace_that_the_set_does_not_have() {
    let instance = running();
    let location = place(&instance, "space");
    create(&instance, "space", &location);
    goes_there_and_back(&instance, &location);
    // What is kept aside is in nobody's way, and goes with the restores that it is of.
    instance.good_backup("full");
    for _ in 0..5 {
        instance.good_restore();
    }
    assert_eq!(asides(&location), Vec::<String>::new());
}

#[test]
fn a_tablespace_that_is_reached_through_a_link() {
    let instance = running();
    place(&instance, "real");
    let link = instance.root.join("link");
    symlink(instance.root.join("real"), &link).unwrap();
    create(&instance, "space", &link);
    goes_there_and_back(&instance, &link);
}

#[test]
fn a_tablespace_below_a_directory_that_is_a_link() {
    let instance = running();
    let real = place(&instance, "real");
    symlink(&real, instance.root.join("link")).unwrap();
    instance.user.make_directory(&real.join("space"), 0o700);
    let location = instance.root.join("link/space");
    create(&instance, "space", &location);
    goes_there_and_back(&instance, &location);
}

#[test]
fn two_tablespaces_of_which_the_set_has_one() {
    let instance = Instance::with_full_backup();
    let (old, new) = (place(&instance, "old"), place(&instance, "new"));
    create(&instance, "old", &old);
    let mut before = Rows::in_tablespace(&instance.sql, "u", "old");
    before.add(10);
    instance.wait_restorable(&instance.good_backup("full"));
    create(&instance, "space", &new);
    before.add(10);
    let (then, moment, all) = with_future(&instance, "t", "space");
    let before_moment = before.clone();
    before.add(1000);
    instance.sql.run("CHECKPOINT");
    let job = instance.restore_to(&at(moment), &json!({}));
    then.check_later();
    before_moment.check_later();
    assert_eq!((asides(&old).len(), asides(&new).len()), (0, 1));
    instance.undo(id_of(&job));
    all.check_later();
    before.check_later();
}

/// Dropped and made again at the same place: the set has the first, the server the second.
#[test]
fn a_tablespace_made_again_at_the_same_place() {
    let instance = Instance::with_full_backup();
    let location = place(&instance, "space");
    create(&instance, "space", &location);
    let mut first = Rows::in_tablespace(&instance.sql, "first", "space");
    first.add(10);
    instance.wait_restorable(&instance.good_backup("full"));
    first.add(10);
    let (first_then, first_moment) = (first.clone(), instance.sql.now());
    first.add(10);
    instance.sql.run("DROP TABLE first");
    instance.sql.run("DROP TABLESPACE space");
    create(&instance, "space", &location);
    let (then, moment, all) = with_future(&instance, "t", "space");
    let job = instance.restore_to(&at(moment), &json!({}));
    then.check_later();
    instance.undo(id_of(&job));
    all.check_later();
    instance.restore_to(&at(first_moment), &json!({}));
    first_then.check_later();
}

/// Made, dropped and made again, all of it after the set.
#[test]
fn a_tablespace_made_twice_after_the_set() {
    let instance = running();
    let location = place(&instance, "space");
    create(&instance, "space", &location);
    let mut first = Rows::in_tablespace(&instance.sql, "first", "space");
    first.add(10);
    let (first_then, first_moment) = (first.clone(), instance.sql.now());
    first.add(10);
    instance.sql.run("DROP TABLE first");
    instance.sql.run("DROP TABLESPACE space");
    create(&instance, "space", &location);
    let (then, moment, _) = with_future(&instance, "t", "space");
    instance.restore_to(&at(moment), &json!({}));
    then.check_later();
    instance.restore_to(&at(first_moment), &json!({}));
    first_then.check_later();
}

/// PGDATA was emptied, so its links tell nothing; the directory of the tablespace is full of the
/// future.
#[test]
fn a_tablespace_whose_link_is_gone() {
    let instance = running();
    let location = place(&instance, "space");
    create(&instance, "space", &location);
    let (then, moment, _) = with_future(&instance, "t", "space");
    instance.stop_server();
    for entry in fs::read_dir(instance.data_dir()).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap();
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    let job = instance.restore_to(&at(moment), &json!({}));
    then.check_later();
    assert_eq!(asides(&location).len(), 1, "{}", instance.job_log(id_of(&job)));
}

/// A delta restore deletes what is inside of PGDATA and not in the set; replay needs the directory.
#[test]
fn a_tablespace_inside_of_pgdata() {
    let instance = running();
    let location = place(&instance, "data/space");
    create(&instance, "space", &location);
    let (then, moment, all) = with_future(&instance, "t", "space");
    let job = instance.restore_to(&at(moment), &json!({}));
    then.check_later();
    instance.undo(id_of(&job));
    all.check_later();
}

/// It was dropped since, and somebody has removed its directory. Where its parent is gone as well the
/// restore says which, and goes on when it is back.
#[test]
fn a_directory_that_replay_needs_and_that_is_gone() {
    let instance = running();
    let parent = place(&instance, "parent");
    let location = place(&instance, "parent/space");
    create(&instance, "space", &location);
    let (then, moment, all) = with_future(&instance, "t", "space");
    let mut moved = all.clone();
    instance.sql.run("ALTER TABLE t SET TABLESPACE pg_default");
    instance.sql.run("DROP TABLESPACE space");
    fs::remove_dir(&location).unwrap();
    let job = instance.restore_to(&at(moment), &json!({}));
    then.check_later();
    instance.undo(id_of(&job));
    moved.check_later();
    moved.add_from(10_000, 10);

    fs::remove_dir_all(&parent).unwrap();
    let id = instance.begin_restore_to(&at(moment), &json!({}));
    let view = until("it says which directory", PATIENCE, || {
        let view = instance.restore_view(&id);
        (!view["awaiting"].is_null()).then_some(view)
    });
    assert_eq!(view["awaiting"]["reason"], "directory-missing", "{view:#}");
    let detail = view["awaiting"]["detail"].as_str().unwrap();
    assert!(detail.contains(parent.to_str().unwrap()), "{view:#}");
    assert_eq!(view["actions"], json!(["retarget", "abandon"]), "{view:#}");
    instance.user.make_directory(&parent, 0o700);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    then.check_later();
}

/// Killed between the renaming and the recovery, and in the middle of it.
#[test]
fn headrest_killed_while_a_tablespace_is_moved_aside() {
    let mut instance = running();
    let location = place(&instance, "space");
    create(&instance, "space", &location);
    let (then, moment, _) = with_future(&instance, "t", "space");
    for phase in ["restoring", "restored", "recovering"] {
        let id = instance.begin_restore_to(&at(moment), &json!({}));
        kill_in(&mut instance, &id, phase);
        let job = instance.start_and_wait_for(&id);
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
        instance.wait_ready();
        then.check_later();
        // The future once more, for the next round.
        let undo = instance.undo(&id);
        assert_ne!(undo["state"], Value::Null);
    }
}

/// Replay makes the link before it comes to the commit, and a time before that ends it in between.
#[test]
fn a_tablespace_that_was_not_committed_at_the_target_leaves_no_link() {
    let instance = running();
    let location = place(&instance, "space");
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    let (then, moment) = (rows.clone(), instance.sql.now());
    create(&instance, "space", &location);
    rows.add_from(1000, 10);
    instance.switch_wal();
    let job = instance.restore_to(&at(moment), &json!({}));
    then.check_later();
    let log = instance.job_log(id_of(&job));
    assert!(log.contains("was not committed at the target"), "{log}");
    let entries = |path: &Path| fs::read_dir(path).unwrap().count();
    assert_eq!(entries(&instance.data_dir().join("pg_tblspc")), 0, "{log}");
    assert_eq!(entries(&location), asides(&location).len(), "only what was there before is kept");
    // With a link that belongs to no tablespace pgBackRest would back up nothing.
    instance.good_backup("incr");
    // The same name and place can be used, and the undo brings the first one back.
    create(&instance, "space", &location);
    instance.undo(id_of(&job));
    rows.check_later();
    assert_eq!(entries(&instance.data_dir().join("pg_tblspc")), 1);
    instance.good_backup("incr");
}

#[test]
fn headrest_killed_before_such_a_link_is_removed_removes_it_all_the_same() {
    let mut instance = running();
    let location = place(&instance, "space");
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    let (then, moment) = (rows.clone(), instance.sql.now());
    create(&instance, "space", &location);
    rows.add_from(1000, 10);
    instance.switch_wal();
    for phase in ["verified", "promoting", "unfencing"] {
        let id = instance.begin_restore_to(&at(moment), &json!({}));
        kill_in(&mut instance, &id, phase);
        let job = instance.start_and_wait_for(&id);
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
        instance.wait_ready();
        then.check_later();
        let links = fs::read_dir(instance.data_dir().join("pg_tblspc")).unwrap().count();
        assert_eq!(links, 0, "killed in phase {phase}\n{}", instance.job_log(&id));
        instance.good_backup("incr");
        instance.undo(&id);
        rows.check_later();
    }
}
