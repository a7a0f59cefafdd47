//! Defaults of sessions that would break what Headrest and pgBackRest do: set for the cluster, for
//! the role, for the database.

use serde_json::json;

use crate::support::instance::Instance;
use crate::support::moments::at;
use crate::support::rows::Rows;

/// Everything goes on as always under these defaults: backups, a restore to a moment, its undo.
fn everything_works_with(set: &[&str], args: &str) {
    let mut instance = Instance::new();
    if !args.is_empty() {
        instance.set("HEADREST_POSTGRES__ARGS", format!("-c listen_addresses= {args}"));
    }
    instance.start();
    instance.wait_server("ready");
    instance.wait_first_backup();
    for statement in set {
        instance.sql.run(statement);
    }
    if !set.is_empty() {
        instance.stop_server();
        instance.order("start");
        instance.wait_server("ready");
    }
    instance.good_backup("diff");
    instance.good_backup("full");
    let backup = instance.good_backup("incr");
    instance.wait_restorable(&backup);
    let mut rows = Rows::in_new_table(&instance.sql, "public.t");
    rows.add(10);
    let moment = instance.sql.now();
    rows.add(10);
    let restore = instance.restore_to(&at(moment), &json!({}));
    rows.up_to(10).check();
    instance.undo(restore["id"].as_str().unwrap());
    rows.check();
}

#[test]
fn defaults_of_the_cluster() {
    everything_works_with(
        &[
            "ALTER SYSTEM SET default_transaction_isolation = 'serializable'",
            "ALTER SYSTEM SET default_transaction_deferrable = on",
            "ALTER SYSTEM SET statement_timeout = '150ms'",
            "ALTER SYSTEM SET lock_timeout = '1ms'",
            "ALTER SYSTEM SET idle_session_timeout = '1s'",
            "ALTER SYSTEM SET idle_in_transaction_session_timeout = '100ms'",
            "ALTER SYSTEM SET search_path = ''",
            "ALTER SYSTEM SET datestyle = 'SQL, DMY'",
            "ALTER SYSTEM SET standard_conforming_strings = off",
            "ALTER SYSTEM SET row_security = off",
        ],
        "",
    );
}

#[test]
fn defaults_of_the_role_and_of_the_database() {
    everything_works_with(
        &[
            "ALTER ROLE postgres SET default_transaction_isolation = 'serializable'",
            "ALTER ROLE postgres SET idle_session_timeout = '1s'",
            "ALTER ROLE postgres SET statement_timeout = '150ms'",
            "ALTER DATABASE postgres SET default_transaction_deferrable = on",
            "ALTER DATABASE postgres SET lock_timeout = '1ms'",
        ],
        "",
    );
}

#[test]
fn defaults_on_the_command_line() {
    everything_works_with(
        &[],
        "-c default_transaction_isolation=serializable -c idle_session_timeout=1s \
         -c statement_timeout=150ms",
    );
}

/// A role that is another one after login, and one that may only read by default.
#[test]
fn a_role_that_becomes_another_and_only_reads() {
    everything_works_with(
        &[
            "CREATE ROLE nobody",
            "ALTER SYSTEM SET default_transaction_read_only = off",
            "ALTER ROLE postgres SET role = 'nobody'",
        ],
        "",
    );
}
