//! Headrest dies; PostgreSQL must not notice.

use std::thread;

use rustix::process::Signal;

use crate::running;
use crate::support::process::{self, Process};
use crate::support::rows::Rows;
use crate::support::{SOON, until};

fn server_log_has(instance: &crate::Instance, word: &str) {
    until(&format!("{word} is in the server's log"), SOON, || {
        let log = instance.http.get("/api/v1/processes/postgres/log").body;
        log.contains(word).then_some(())
    });
}

#[test]
fn a_server_survives_headrest_and_is_taken_over_without_a_restart() {
    let (mut instance, _fake) = running();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let postmaster = instance.postmaster();
    let started = instance.sql.run("SELECT pg_postmaster_start_time()");
    // A session and its transaction go on all the time.
    let sql = instance.sql.clone();
    let session =
        thread::spawn(move || sql.attempt("BEGIN; SELECT pg_sleep(3); COMMIT; SELECT 'done'"));
    until("the session is there", SOON, || {
        let count =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN; SELECT pg_sleep%'";
        (instance.sql.run(count) != "0").then_some(())
    });
    for round in 1..=2 {
        instance.kill();
        rows.add(10);
        instance.sql.run(&format!("DO $$ BEGIN RAISE LOG 'said while alone {round}'; END $$"));
        instance.start();
        let server = instance.wait_server("ready");
        assert_eq!(server["adopted"], true, "{server}");
        assert_eq!(server["pid"].as_i64().map(|pid| i32::try_from(pid).unwrap()), postmaster);
        assert_eq!(server["restarts"], 0, "{server}");
        assert_eq!(instance.postmaster(), postmaster);
        assert_eq!(instance.sql.run("SELECT pg_postmaster_start_time()"), started);
        instance.sql.run(&format!("DO $$ BEGIN RAISE LOG 'said when adopted {round}'; END $$"));
        server_log_has(&instance, &format!("said while alone {round}"));
        server_log_has(&instance, &format!("said when adopted {round}"));
        rows.check();
    }
    assert!(session.join().unwrap().unwrap().ends_with("done"), "the session was cut off");

    // It is a supervised server like any other: killed, it is started again;
    let pid = postmaster.unwrap();
    process::signal(pid, Signal::KILL);
    until("it is started again", SOON, || (instance.server()["restarts"] == 1).then_some(()));
    let server = instance.wait_server("ready");
    assert_eq!(server["adopted"], false, "{server}");
    rows.check();
    // and adopted once more, it stops with Headrest.
    instance.kill();
    instance.start();
    instance.wait_server("ready");
    assert_eq!(instance.stop().code(), Some(0));
    assert_eq!(instance.processes(), [] as [Process; 0]);
    assert_eq!(instance.control("Database cluster state"), "shut down");
}
