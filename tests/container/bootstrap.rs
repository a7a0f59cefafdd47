//! Containers whose data comes from the repository, and containers without backups.

use serde_json::json;

use crate::bases::{Base, TRIXIE, on_every_base};
use crate::engine::{Container, Volume, docker};
use crate::support::{PATIENCE, SOON, until};

on_every_base!(
    an_empty_volume_is_restored_and_the_copy_leaves_the_archive_alone,
    backups_can_be_off
);

const BACKUPS: &str = "/api/v1/stanzas/main/backups";

fn rows(container: &Container) -> String {
    container.sql("SELECT string_agg(x::text, ',' ORDER BY x) FROM t")
}

fn an_empty_volume_is_restored_and_the_copy_leaves_the_archive_alone(base: Base) {
    let (backups, data, state) = (Volume::new(), Volume::new(), Volume::new());
    let repository = backups.at("/var/lib/pgbackrest");
    let options = ["-e", "POSTGRES_PASSWORD=x", "-v", &repository];
    let original = Container::run(base, &options, &[]).ready();
    original.wait_restorable();
    original.sql("CREATE TABLE t AS SELECT 1 AS x");
    original.sql("SELECT pg_create_restore_point('here')");
    let now =
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let moment = original.sql(now);
    original.sql("INSERT INTO t VALUES (2)");
    original.switch();

    // To a point between, with nothing but the repository.
    for target in ["name=here", &moment] {
        let from = format!("HEADREST_BOOTSTRAP_FROM={target}");
        let to_a_point = Container::run(base, &["-v", &repository, "-e", &from], &[]).ready();
        assert_eq!(rows(&to_a_point), "1");
    }

    // To the end; the same volumes are used again.
    let volumes = [
        "-v",
        &repository,
        "-v",
        &data.at("/var/lib/postgresql"),
        "-v",
        &state.at("/var/lib/headrest"),
    ];
    let bootstrap = [&volumes[..], &["-e", "HEADREST_BOOTSTRAP_FROM=latest"]].concat();
    let copy = Container::run(base, &bootstrap, &[]).ready();
    assert_eq!(rows(&copy), "1,2");
    assert_eq!(copy.sql("SHOW archive_mode"), "off");
    assert_eq!(copy.sql("SELECT pg_is_in_recovery()"), "f");
    assert_ne!(copy.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "1");
    copy.sql("INSERT INTO t VALUES (100)");
    let refused = copy.http().post(BACKUPS, &json!({ "type": "full" }));
    assert_eq!(refused.problem(409), "backups-off");
    let restore = json!({ "target": { "type": "latest" }, "confirm": "main" });
    let refused = copy.http().post("/api/v1/stanzas/main/restores", &restore);
    assert_eq!(refused.problem(409), "backups-off");

    // Told again, and not told any more: the data that is there is never touched, and it stays a copy.
    for options in [&bootstrap[..], &volumes] {
        docker(&["rm", "-f", &copy.name]).good();
        let again = Container::run(base, options, &[]).ready();
        assert_eq!(rows(&again), "1,2,100");
        assert_eq!(again.sql("SHOW archive_mode"), "off");
        again.sql("SELECT pg_switch_wal()");
        again.stop();
    }
    // Nor when nothing is kept but the data, and it is told that backups are off.
    for more in [&[][..], &["-e", "HEADREST_BACKUPS=off"]] {
        let data = data.at("/var/lib/postgresql");
        let options = [&["-v", &repository, "-v", &data][..], more];
        let again = Container::run(base, &options.concat(), &[]).ready();
        assert_eq!(rows(&again), "1,2,100");
        assert_eq!(again.sql("SHOW archive_mode"), "off");
        again.stop();
    }
    // The original never noticed.
    original.sql("INSERT INTO t VALUES (3)");
    original.switch();
    let histories = "find /var/lib/pgbackrest/archive -name '*.history*' | wc -l";
    assert_eq!(original.shell(histories), "0", "the copy has put its timeline into the archive");
    original.job(BACKUPS, &json!({ "type": "incr" }));
    original.stop();

    // Until it is told that it is the original now.
    let options = [&volumes[..], &["-e", "HEADREST_BOOTSTRAP_ARCHIVE=on"]].concat();
    let heir = Container::run(base, &options, &[]).ready();
    assert_eq!(heir.sql("SHOW archive_mode"), "on");
    heir.sql("INSERT INTO t VALUES (101)");
    heir.job(BACKUPS, &json!({ "type": "full" }));
    assert_eq!(rows(&heir), "1,2,100,101");
}

/// A repository that holds nothing yet is waited for; an empty cluster in its place would be worse
/// than none.
#[test]
fn a_backup_is_waited_for() {
    let backups = Volume::new();
    let repository = backups.at("/var/lib/pgbackrest");
    let options = ["-v", &repository, "-e", "HEADREST_BOOTSTRAP_FROM=latest"];
    let copy = Container::run(TRIXIE, &options, &[]);
    until("it says what it waits for", SOON, || {
        let processes = copy.http().get("/api/v1/processes/postgres").expect(200).json();
        let reason = processes["reason"].as_str().unwrap_or_default().to_owned();
        (reason.contains("cannot be restored") && reason.contains("trying again")).then_some(())
    });
    assert_eq!(copy.exec(&["ls", "-A", TRIXIE.pgdata]).out, "");
    let options = ["-v", &repository, "-e", "POSTGRES_PASSWORD=x"];
    let original = Container::run(TRIXIE, &options, &[]).ready();
    original.sql("CREATE TABLE t AS SELECT 1 AS x");
    original.first_backup();
    until("it is restored", PATIENCE, || {
        (copy.exec(&["headrest", "healthcheck"]).code == Some(0)).then_some(())
    });
    assert_eq!(rows(&copy), "1");
}

/// While it is waited for a backup somebody begins with a new cluster: that is theirs from then on.
#[test]
fn what_somebody_else_has_begun_is_left_alone() {
    let backups = Volume::new();
    let options = [
        "-v",
        &backups.at("/var/lib/pgbackrest"),
        "-e",
        "POSTGRES_PASSWORD=x",
        "-e",
        "HEADREST_BOOTSTRAP_FROM=immediate",
        "-e",
        "HEADREST_BOOTSTRAP_ARCHIVE=on",
    ];
    let container = Container::run(TRIXIE, &options, &[]);
    let reason = || {
        let server = container.http().get("/api/v1/processes/postgres").expect(200).json();
        server["reason"].as_str().unwrap_or_default().to_owned()
    };
    until("it waits", SOON, || reason().contains("trying again").then_some(()));
    // It is waited for, and nobody has failed.
    assert_eq!(container.http().probe("/startupz"), Some(200));
    container.http().post("/api/v1/processes/postgres/start", &json!({})).expect(200);
    container.wait_ready();
    // Now there is one that it could be restored to.
    container.first_backup();
    container.sql("CREATE TABLE t AS SELECT 1 AS x");
    until("it is not waited any more", PATIENCE, || {
        container.logs().contains("nothing is restored to immediate").then_some(())
    });
    assert_eq!(rows(&container), "1");
    let jobs = container.http().get("/api/v1/jobs?kind=restore").expect(200).json();
    assert_eq!(jobs["items"], json!([]), "{jobs:#}");
}

fn backups_can_be_off(base: Base) {
    let options = ["-e", "POSTGRES_PASSWORD=x", "-e", "HEADREST_BACKUPS=off"];
    let container = Container::run(base, &options, &[]).ready();
    assert_eq!(container.sql("SHOW archive_mode"), "off");
    let refused = container.http().post(BACKUPS, &json!({ "type": "full" }));
    assert_eq!(refused.problem(409), "backups-off");
    let jobs = container.http().get("/api/v1/jobs").expect(200).json();
    assert_eq!(jobs["items"], json!([]), "{jobs:#}");
    drop(container);
    // What others have configured is theirs.
    let command = ["-c", "archive_mode=on", "-c", "archive_command=true"];
    let container = Container::run(base, &options, &command).ready();
    assert_eq!(container.sql("SHOW archive_mode"), "on");
    assert_eq!(container.sql("SHOW archive_command"), "true");
    // A target that makes no sense is said at once.
    let options = ["-e", "HEADREST_BOOTSTRAP_FROM=yesterday"];
    let said = crate::engine::run_once(base, &options, &[]);
    assert_eq!(said.code, Some(64), "{said:?}");
    assert!(said.bad().contains("bootstrap_from"));
}
