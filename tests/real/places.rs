//! Directories, links and modes that let `pgbackrest restore` fail half way: found by the plan, or no
//! obstacle.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::support::instance::Instance;
use crate::support::jobs::{RESTORES, id_of};
use crate::support::moments::{checks, request};
use crate::support::rows::Rows;

fn latest() -> Value {
    json!({ "type": "latest" })
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

/// The text of a check of a plan to the end.
fn detail(instance: &Instance, check: &str, verdict: &str) -> String {
    let plan = instance.plan(&latest(), &json!({}));
    let all = plan["checks"].as_array().unwrap();
    let found = all.iter().find(|one| one["id"] == check && one["verdict"] == verdict);
    let found = found.unwrap_or_else(|| panic!("no {verdict} of {check}: {plan:#}"));
    found["detail"].as_str().unwrap().to_owned()
}

#[test]
fn a_link_of_another_owner_on_the_way_to_pgdata_is_followed() {
    let mut instance = Instance::new();
    // When the test runs as root, these two links are root's.
    let real = instance.root.join("real");
    fs::rename(instance.data_dir(), &real).unwrap();
    symlink(&real, instance.data_dir()).unwrap();
    // (pgBackRest backs up no tablespace whose location itself is a link.)
    let disk = instance.root.join("disk-real");
    instance.user.make_directory(&disk, 0o700);
    symlink(&disk, instance.root.join("disk")).unwrap();
    let location = instance.root.join("disk/space");
    instance.user.make_directory(&location, 0o700);
    instance.start();
    instance.wait_ready();
    instance.sql.run(&format!("CREATE TABLESPACE space LOCATION '{}'", location.display()));
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    let mut far = Rows::in_tablespace(&instance.sql, "far", "space");
    rows.add(10);
    far.add(10);
    instance.wait_first_backup();
    instance.good_backup("full");
    rows.add(10);
    far.add(10);
    let restore = instance.good_restore();
    rows.check_later();
    far.check_later();
    assert!(fs::symlink_metadata(instance.data_dir()).unwrap().is_symlink());
    assert!(fs::symlink_metadata(instance.root.join("disk")).unwrap().is_symlink());
    instance.undo(id_of(&restore));
    rows.check_later();
    far.check_later();
}

#[test]
fn a_set_whose_settings_are_read_only_is_restored_and_mended() {
    let instance = Instance::with_full_backup();
    instance.sql.run("ALTER SYSTEM SET work_mem = '5MB'");
    let settings = instance.data_dir().join("postgresql.auto.conf");
    set_mode(&settings, 0o400);
    instance.wait_restorable(&instance.good_backup("full"));
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let moment = instance.sql.now();
    let at_moment = rows.clone();
    rows.add(10);
    let said = detail(&instance, "configuration-files", "warn");
    assert!(said.contains("postgresql.auto.conf is read-only"), "{said}");
    let target = crate::support::moments::at(moment);
    let restore = instance.restore_to(&target, &json!({}));
    at_moment.check_later();
    assert_eq!(fs::metadata(&settings).unwrap().mode() & 0o777, 0o600);
    // Everything that was set is set, and nothing of the recovery is left.
    assert_eq!(instance.sql.run("SHOW work_mem"), "5MB");
    let text = fs::read_to_string(&settings).unwrap();
    assert!(!text.contains("restore_command"), "{text}");
    assert!(!instance.data_dir().join("standby.signal").exists());
    let log = instance.job_log(id_of(&restore));
    assert!(log.contains("postgresql.auto.conf is read-only in the backup"), "{log}");
    instance.undo(id_of(&restore));
    rows.check_later();
}

#[test]
fn directories_that_pgbackrest_cannot_use_are_found_before_anything_is_touched() {
    let instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let spool = instance.root.join("spool/archive");
    instance.user.make_directory(&spool, 0o755);
    let queue = spool.join("main");
    instance.user.make_directory(&queue, 0o755);
    assert!(detail(&instance, "pgbackrest-directories", "pass").contains("can be used"));
    for closed in [&queue, &spool] {
        set_mode(closed, 0o000);
        let said = detail(&instance, "pgbackrest-directories", "fail");
        assert!(said.contains(&format!("the spool directory {}", queue.display())), "{said}");
        let refused = instance.http.post(RESTORES, &request(&latest(), &json!({})));
        assert_eq!(refused.problem(409), "restore-refused");
        assert_eq!(checks(&refused.json(), "fail"), ["pgbackrest-directories"]);
        set_mode(closed, 0o755);
    }
    let log = instance.root.join("log");
    set_mode(&log, 0o500);
    assert!(detail(&instance, "pgbackrest-directories", "warn").contains("the log directory"));
    set_mode(&log, 0o755);
    let lock = instance.root.join("lock");
    set_mode(&lock, 0o500);
    let plan = instance.plan(&latest(), &json!({}));
    let found = ["fail", "warn"].map(|verdict| checks(&plan, verdict)).concat();
    assert!(found.contains(&"pgbackrest-directories".to_owned()), "{plan:#}");
    set_mode(&lock, 0o755);
    let stop = lock.join("main.stop");
    fs::write(&stop, "").unwrap();
    assert!(detail(&instance, "stop-file", "warn").contains("pgbackrest start"));
    fs::remove_file(&stop).unwrap();
    instance.good_restore();
    rows.check();
}

#[test]
fn what_cannot_be_replaced_in_a_tablespace_or_behind_a_link_is_found_before() {
    let instance = Instance::with_full_backup();
    let space = instance.root.join("space");
    instance.user.make_directory(&space, 0o700);
    instance.sql.run(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
    let mut rows = Rows::in_tablespace(&instance.sql, "t", "space");
    rows.add(10);
    instance.good_backup("full");
    let version = fs::read_dir(&space).unwrap().next().unwrap().unwrap().path();
    let closed = version.join("closed");
    instance.user.make_directory(&closed, 0o500);
    assert!(detail(&instance, "owned-entries", "fail").contains("closed"));
    fs::remove_dir(&closed).unwrap();
    // What belongs to another cluster is no business of ours.
    let other = space.join("PG_99_209901011");
    instance.user.make_directory(&other, 0o500);
    detail(&instance, "owned-entries", "pass");
    instance.good_restore();
    rows.check_later();
}
