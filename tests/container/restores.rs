//! Restores in the image: what is promised for the machine's own PostgreSQL holds with each version.

use serde_json::{Value, json};

use crate::bases::{Base, on_every_base};
use crate::engine::Container;
use crate::support::jobs::is_final;
use crate::support::{PATIENCE, until, within};

on_every_base!(
    a_moment_and_back_again,
    a_missing_segment_is_waited_for,
    killed_while_files_are_replaced,
    killed_while_it_is_promoted,
);

const RESTORES: &str = "/api/v1/stanzas/main/restores";

/// A container with a backup, of which every moment from now on can be restored.
fn running(base: Base) -> Container {
    let container = Container::plain(base).ready();
    container.wait_restorable();
    container.sql("CREATE TABLE t (x int)");
    container
}

fn now(container: &Container) -> String {
    let query =
        "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    container.sql(query)
}

fn rows(container: &Container) -> String {
    container.sql("SELECT coalesce(string_agg(x::text, ',' ORDER BY x), '') FROM t")
}

fn add(container: &Container, x: u32) {
    container.sql(&format!("INSERT INTO t VALUES ({x})"));
}

fn request(target: &Value) -> Value {
    json!({ "target": target, "confirm": "main", "backup_after": false, "accept": ["wal-gap"] })
}

fn begin(container: &Container, target: &Value) -> String {
    let job = container.http().post(RESTORES, &request(target)).expect(202).json();
    job["id"].as_str().unwrap().to_owned()
}

fn restore_of(container: &Container, id: &str) -> Value {
    container.http().get(&format!("/api/v1/restores/{id}")).expect(200).json()
}

/// Waits for a restore's end, through whatever happens to the container meanwhile.
fn wait(container: &Container, id: &str) {
    let mut last = Value::Null;
    let done = within(PATIENCE, || {
        last = restore_of(container, id);
        is_final(&last).then_some(())
    });
    assert!(
        done.is_some() && last["state"] == "succeeded",
        "{last:#}\n{}",
        container.job_log(&last)
    );
    container.wait_ready();
}

fn a_moment_and_back_again(base: Base) {
    let container = running(base);
    add(&container, 1);
    let moment = now(&container);
    add(&container, 2);
    container.switch();
    add(&container, 3);
    let target = json!({ "type": "time", "value": moment });
    let job = container.job(RESTORES, &request(&target));
    container.wait_ready();
    assert_eq!(rows(&container), "1");
    add(&container, 10);
    let undo = format!("/api/v1/restores/{}/undo", job["id"].as_str().unwrap());
    container.job(&undo, &json!({ "confirm": "main", "backup_after": false }));
    container.wait_ready();
    assert_eq!(rows(&container), "1,2,3");
}

fn a_missing_segment_is_waited_for(base: Base) {
    let container = running(base);
    add(&container, 1);
    container.switch();
    add(&container, 2);
    let missing = container.switch();
    add(&container, 3);
    container.switch();
    container.sql("CHECKPOINT");
    let place = container.shell(&format!("ls /var/lib/pgbackrest/archive/main/*/*/{missing}-*"));
    container.shell(&format!("mv {place} /var/lib/headrest/"));
    let id = begin(&container, &json!({ "type": "latest" }));
    let waits = within(PATIENCE, || {
        let restore = restore_of(&container, &id);
        assert!(!is_final(&restore), "it did not wait: {restore:#}");
        (restore["awaiting"]["segment"] == missing.as_str()).then_some(())
    });
    assert!(waits.is_some(), "{:#}", restore_of(&container, &id));
    container.exec(&["headrest", "healthcheck"]).bad();
    container.shell(&format!("mv /var/lib/headrest/{missing}-* {place}"));
    wait(&container, &id);
    assert_eq!(rows(&container), "1,2,3");
}

/// Kills Headrest, and so the container, as soon as the journal says this phase, and starts it again.
fn kill_in(container: &Container, phase: &str) {
    // In the container: through the engine it would come too late.
    let line = format!(
        "until grep -q '\"phase\": *\"{phase}\"' /var/lib/headrest/restore/main.json 2>/dev/null; do \
         :; done; kill -9 $(cat /proc/1/task/1/children)"
    );
    container.exec(&["sh", "-c", &line]);
    assert_ne!(container.wait_end(), 0);
    container.start_again();
}

/// To a moment between two commits, killed on the way.
fn killed_in(base: Base, phase: &str) {
    let container = running(base);
    container.sql("CREATE TABLE much AS SELECT g, md5(g::text) FROM generate_series(1, 300000) g");
    add(&container, 1);
    let moment = now(&container);
    add(&container, 2);
    let id = begin(&container, &json!({ "type": "time", "value": moment }));
    kill_in(&container, phase);
    until("it is back", PATIENCE, || container.http().probe("/livez"));
    wait(&container, &id);
    assert_eq!(rows(&container), "1");
    assert_eq!(container.sql("SELECT count(*) FROM much"), "300000");
}

fn killed_while_files_are_replaced(base: Base) {
    killed_in(base, "restoring");
}

fn killed_while_it_is_promoted(base: Base) {
    killed_in(base, "promoting");
}
