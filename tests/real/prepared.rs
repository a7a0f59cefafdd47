//! What a restore finds in the cluster beside its rows: prepared transactions, and replication slots.

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::health::wait_check;
use crate::support::instance::Instance;
use crate::support::jobs::id_of;
use crate::support::moments::at;
use crate::support::rows::Rows;
use crate::support::{PATIENCE, process, until};

fn restart(instance: &Instance) {
    instance.order("restart");
    instance.wait_ready();
}

#[test]
fn prepared_transactions_come_back_although_the_set_allows_none() {
    let mut instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    instance.sql.run("ALTER SYSTEM SET max_prepared_transactions = 3");
    restart(&instance);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.sql.run("BEGIN; INSERT INTO t VALUES (100); PREPARE TRANSACTION 'pending'");
    let (moment, at_moment) = (instance.sql.now(), rows.clone());
    rows.add(10);

    let restore = instance.restore_to(&at(moment), &json!({}));
    at_moment.check_later();
    assert_eq!(instance.sql.run("SELECT gid FROM pg_prepared_xacts"), "pending");
    assert_eq!(instance.sql.run("SHOW max_prepared_transactions"), "3");
    // Health says which setting to raise for good, as long as it is needed: a crash does not change that.
    let warned = |instance: &Instance| {
        let check = wait_check(instance, "postgres", "warn");
        let is_named =
            check.to_string().contains("max_prepared_transactions = 3 (configured is 0)");
        assert!(is_named, "{check:#}");
    };
    warned(&instance);
    let raised = instance.server()["raised"].clone();
    assert_eq!(raised, json!(["max_prepared_transactions = 3 (configured is 0)"]));
    instance.kill();
    instance.start();
    instance.wait_ready();
    warned(&instance);
    restart(&instance);
    warned(&instance);
    instance.sql.run("COMMIT PREPARED 'pending'");
    assert_eq!(instance.sql.run("DELETE FROM t WHERE id = 100 RETURNING id"), "100");
    at_moment.check();
    restart(&instance);
    assert_eq!(instance.sql.run("SHOW max_prepared_transactions"), "0");
    assert_eq!(instance.server()["raised"], json!([]));

    instance.undo(id_of(&restore));
    rows.check_later();
    assert_eq!(instance.sql.run("SELECT gid FROM pg_prepared_xacts"), "pending");
}

/// Recovery replays the checkpoint after a crash from the newer timeline's copy of the segment, and reads
/// the prepared transaction from the older timeline's, which is in no archive any more.
#[test]
fn a_prepared_transaction_comes_back_over_a_fork_in_its_own_segment() {
    let mut instance = Instance::new();
    let arguments = "-c listen_addresses=127.0.0.1 -c max_prepared_transactions=5";
    instance.set("HEADREST_POSTGRES__ARGS", arguments);
    instance.start();
    instance.wait_ready();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.sql.run("BEGIN; INSERT INTO t VALUES (100); PREPARE TRANSACTION 'pending'");
    let crashed = instance.postmaster().unwrap();
    process::signal(crashed, Signal::KILL);
    until("another server runs", PATIENCE, || {
        instance.postmaster().filter(|now| *now != crashed && instance.server()["state"] == "ready")
    });
    instance.wait_ready();
    rows.add(10);
    let (moment, at_moment) = (instance.sql.now(), rows.clone());
    rows.add(10);
    let first = instance.restore_to(&at(moment), &json!({}));
    at_moment.check_later();
    let pending = |instance: &Instance| {
        assert_eq!(instance.sql.run("SELECT gid FROM pg_prepared_xacts"), "pending");
    };
    pending(&instance);
    let second = instance.good_restore();
    let log = instance.job_log(id_of(&second));
    assert!(log.contains("prepared transactions need it"), "no case of it: {log}");
    at_moment.check_later();
    pending(&instance);
    // Nothing of it is left, and nothing of it gets into the archive.
    let left = log.split("made WAL segment ").nth(1).unwrap().get(..24).unwrap();
    assert!(!instance.data_dir().join("pg_wal").join(left).exists());
    instance.good_backup("full");
    instance.good_restore();
    at_moment.check_later();
    pending(&instance);
    instance.undo(id_of(&first));
    rows.check_later();
    pending(&instance);
}

#[test]
fn a_plan_lists_the_replication_slots_that_will_be_gone() {
    let mut instance = Instance::new();
    instance.set("HEADREST_POSTGRES__ARGS", "-c listen_addresses=127.0.0.1 -c wal_level=logical");
    instance.start();
    instance.wait_ready();
    instance.wait_restorable(&instance.wait_first_backup());
    let latest = json!({ "type": "latest" });
    assert_eq!(instance.plan(&latest, &json!({}))["data_lost"], Value::Null);
    instance.sql.run("SELECT pg_create_physical_replication_slot('standby', true)");
    instance.sql.run("SELECT pg_create_logical_replication_slot('changes', 'test_decoding')");
    let lists_both = |instance: &Instance| {
        let plan = instance.plan(&latest, &json!({}));
        let lost = &plan["data_lost"];
        assert_eq!(lost["replication_slots"], json!(["changes", "standby"]), "{plan:#}");
        assert!(
            lost["text"].as_str().unwrap().starts_with("the replication slots changes, standby")
        );
    };
    lists_both(&instance);
    instance.stop_server();
    lists_both(&instance);
    instance.good_restore();
    assert_eq!(instance.plan(&latest, &json!({}))["data_lost"], Value::Null);
}
