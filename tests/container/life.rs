//! A container's life: its first minutes, its health, its ends.

use serde_json::json;

use crate::bases::{Base, OVERLAY, on_every_base};
use crate::engine::{Container, docker};
use crate::support::{PATIENCE, SOON, until};

on_every_base!(
    it_is_healthy_and_backed_up_unasked,
    it_stops_in_order_under_an_open_transaction_and_during_a_backup,
    it_recovers_after_a_kill,
    a_hangup_reloads_and_orphans_are_reaped,
);

#[test]
fn an_image_that_has_postgresql_is_overlaid() {
    let container = Container::plain(OVERLAY).ready();
    container.first_backup();
    assert_eq!(container.sql("SHOW data_directory"), OVERLAY.pgdata);
    let restore = json!({
        "target": { "type": "latest" }, "confirm": "main", "backup_after": false,
    });
    container.sql("CREATE TABLE t AS SELECT 1 AS x");
    container.job("/api/v1/stanzas/main/restores", &restore);
    assert_eq!(container.sql("SELECT x FROM t"), "1");
    container.stop();
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "0");
    assert_eq!(container.control("Database cluster state"), "shut down");
}

/// The command of the README, with the ports chosen by the engine.
fn it_is_healthy_and_backed_up_unasked(base: Base) {
    let options = ["-e", "POSTGRES_PASSWORD=x", "-p", "127.0.0.1::5432"];
    let container = Container::run(base, &options, &[]);
    let unhealthy = container.exec(&["headrest", "healthcheck"]);
    assert_ne!(unhealthy.code, Some(0), "{unhealthy:?}");
    let container = container.ready();
    container.first_backup();
    until("docker says healthy", PATIENCE, || {
        (container.inspect("{{.State.Health.Status}}") == "healthy").then_some(())
    });
    assert_eq!(container.exec(&["headrest", "healthcheck"]).good(), "ready");
    // What programs wait for in the log of a first start.
    let logs = container.logs();
    let words = "database system is ready to accept connections";
    assert!(logs.matches(words).count() >= 2, "{logs}");
    assert!(logs.contains("init process complete; ready for start up"), "{logs}");
    // From the host, as psql would connect.
    let port = docker(&["port", &container.name, "5432/tcp"]).good();
    let address = port.lines().next().unwrap();
    std::net::TcpStream::connect(address).unwrap();
    let page = container.http().get("/").expect(200);
    assert!(page.body.contains("Headrest"));
    // pgbackrest by hand knows the same repository, for whoever is in the container.
    let info = container
        .exec(&[
            "setpriv",
            "--reuid=999",
            "--regid=999",
            "--clear-groups",
            "pgbackrest",
            "--stanza=main",
            "--output=json",
            "info",
        ])
        .good();
    assert!(info.contains("\"type\":\"full\""), "{info}");
    // Stopped by the API, it is not healthy, and lives.
    container.http().post("/api/v1/processes/postgres/stop", &json!({})).expect(200);
    until("the probe says so", SOON, || {
        (container.exec(&["headrest", "healthcheck"]).code == Some(1)).then_some(())
    });
    assert_eq!(container.http().probe("/livez"), Some(200));
}

fn it_stops_in_order_under_an_open_transaction_and_during_a_backup(base: Base) {
    // A compression that takes its time.
    let options = [
        "-e",
        "POSTGRES_PASSWORD=x",
        "-e",
        "PGBACKREST_COMPRESS_TYPE=gz",
        "-e",
        "PGBACKREST_COMPRESS_LEVEL=9",
    ];
    let container = Container::run(base, &options, &[]).ready();
    container.first_backup();
    container.sql("CREATE TABLE t AS SELECT 1 AS x");
    let open = "BEGIN; INSERT INTO t VALUES (2); SELECT pg_sleep(600)";
    docker(&["exec", "-d", &container.name, "psql", "-U", "postgres", "-c", open]).good();
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    until("a transaction is open", SOON, || (container.sql(sleeping) == "1").then_some(()));
    // Some megabytes, so that the backup is at work when it is told to end.
    container.sql(
        "CREATE TABLE much AS SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, 200000) g",
    );
    let job = container.http().post("/api/v1/stanzas/main/backups", &json!({ "type": "full" }));
    let id = job.expect(202).json()["id"].as_str().unwrap().to_owned();
    let at_work = "grep -lz backup /proc/[0-9]*/cmdline | xargs grep -lz '^.*pgbackrest'";
    until("pgbackrest is at work", SOON, || {
        let job = container.http().get(&format!("/api/v1/jobs/{id}")).expect(200).json();
        let at_work = !container.exec(&["sh", "-c", at_work]).out.is_empty();
        (job["state"] == "running" && at_work).then_some(())
    });
    // Docker's own patience: ten seconds, then SIGKILL, which the exit code would show.
    container.stop();
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "0");
    assert_eq!(container.control("Database cluster state"), "shut down");
    container.start_again();
    container.wait_ready();
    assert_eq!(container.sql("SELECT string_agg(x::text, ',') FROM t"), "1");
    let job = container.http().get(&format!("/api/v1/jobs/{id}")).expect(200).json();
    assert_eq!(job["state"], "interrupted", "{job:#}");
    container.job("/api/v1/stanzas/main/backups", &json!({ "type": "incr" }));
}

fn it_recovers_after_a_kill(base: Base) {
    let container = Container::plain(base).ready();
    container.sql("CREATE TABLE t (x int)");
    for round in 1..=3 {
        container.sql(&format!("INSERT INTO t VALUES ({round})"));
        container.kill();
        assert_eq!(container.control("Database cluster state"), "in production");
        container.start_again();
        container.wait_ready();
        assert_eq!(container.sql("SELECT max(x) FROM t"), round.to_string());
    }
    container.first_backup();
}

fn a_hangup_reloads_and_orphans_are_reaped(base: Base) {
    let container = Container::plain(base).ready();
    container.sql("ALTER SYSTEM SET work_mem = '9MB'");
    docker(&["kill", "-s", "HUP", &container.name]).good();
    until("it is reloaded", SOON, || (container.sql("SHOW work_mem") == "9MB").then_some(()));
    assert_eq!(container.shell("cat /proc/1/comm"), "tini");
    // Each is forked twice, and its parent gone before it ends.
    let orphans = "i=0; while [ $i -lt 1000 ]; do (true & ) & i=$((i+1)); done; wait";
    container.shell(orphans);
    until("none is a zombie", SOON, || {
        let zombies = "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z ' || true";
        (container.shell(zombies) == "0").then_some(())
    });
    assert_eq!(container.exec(&["headrest", "healthcheck"]).good(), "ready");
}
