//! As whom the container runs: an arbitrary user, and on a file system that is read-only.

use crate::bases::{Base, on_every_base};
use crate::engine::{Container, Volume, run_once};

on_every_base!(
    any_user_will_do,
    the_root_file_system_may_be_read_only,
    it_runs_as_the_pod_of_our_kubernetes_file,
);

fn is_backed_up_and_restored(container: &Container) {
    container.first_backup();
    container.sql("CREATE TABLE t AS SELECT 1 AS x");
    let body = serde_json::json!({
        "target": { "type": "latest" }, "confirm": "main", "backup_after": false,
    });
    container.job("/api/v1/stanzas/main/restores", &body);
    assert_eq!(container.sql("SELECT x FROM t"), "1");
}

/// "Arbitrary --user Notes".
fn any_user_will_do(base: Base) {
    // On volumes that the image makes open, and on one that was given to the user.
    let options = ["--user", "1234:4321", "-e", "POSTGRES_PASSWORD=x"];
    let container = Container::run(base, &options, &[]).ready();
    assert_eq!(container.shell("id -u"), "1234");
    assert_eq!(container.shell(&format!("stat -c %u:%g {}", base.pgdata)), "1234:4321");
    is_backed_up_and_restored(&container);
    container.stop();
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "0");
    drop(container);

    let volume = Volume::new();
    let data = volume.at(base.pgdata);
    let give = format!("chown 1234:4321 {}", base.pgdata);
    run_once(base, &["-v", &data], &["sh", "-c", &give]).good();
    let container = Container::run(base, &[&options[..], &["-v", &data]].concat(), &[]).ready();
    assert_eq!(container.sql("SHOW data_directory"), base.pgdata);
    drop(container);
    // A user that the image knows, by name.
    let options = ["--user", "www-data", "-e", "POSTGRES_PASSWORD=x"];
    Container::run(base, &options, &[]).wait_ready();
}

fn the_root_file_system_may_be_read_only(base: Base) {
    let options = [
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/var/run/postgresql",
        "-e",
        "POSTGRES_PASSWORD=x",
    ];
    let container = Container::run(base, &options, &[]).ready();
    is_backed_up_and_restored(&container);
    container.exec(&["touch", "/etc/x"]).bad();
}

/// Volumes that belong to root and to the user's group (`fsGroup`), nothing that could be changed, no
/// right that could be used.
fn it_runs_as_the_pod_of_our_kubernetes_file(base: Base) {
    let places = ["/var/lib/postgresql", "/var/lib/pgbackrest", "/var/lib/headrest"];
    let volumes = places.map(|place| (Volume::new(), place));
    let at: Vec<String> = volumes.iter().map(|(volume, place)| volume.at(place)).collect();
    let mounts: Vec<&str> = at.iter().flat_map(|at| ["-v", at.as_str()]).collect();
    let give = format!("chown 0:999 {0}; chmod 2775 {0}", places.join(" "));
    run_once(base, &mounts, &["sh", "-ec", &give]).good();
    let options = [
        "--user",
        "999:999",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--tmpfs",
        "/tmp",
        "--tmpfs",
        "/var/run/postgresql:mode=3777",
        "-e",
        "POSTGRES_PASSWORD=x",
    ];
    let container = Container::run(base, &[&options[..], &mounts].concat(), &[]).ready();
    container.first_backup();
    container.sql("CREATE TABLE t AS SELECT 1 AS x");
    container.kill();
    container.start_again();
    container.wait_ready();
    assert_eq!(container.sql("SELECT x FROM t"), "1");
}
