//! Volumes of before: of the official image, of an older image, of another layout.

use crate::bases::{Base, FORKY, on_every_base};
use crate::engine::{Container, Volume, docker, run_once};

on_every_base!(
    a_volume_of_the_official_image_starts_unchanged,
    a_new_image_goes_on_with_the_volumes_of_the_old_one,
);

/// What the official image leaves: initdb as uid 999 with its rules, nothing of ours. With
/// everything of it given to root, as a careless copy would have it.
fn a_volume_of_the_official_image_starts_unchanged(base: Base) {
    let volume = Volume::new();
    let at = volume.at("/var/lib/postgresql");
    let make = format!(
        "mkdir -p {0}; chown -R postgres /var/lib/postgresql; cd /
         echo secret >/tmp/pw; chmod 644 /tmp/pw
         setpriv --reuid=999 --regid=999 --clear-groups /usr/lib/postgresql/{1}/bin/initdb -D {0} \
             --username=app --pwfile=/tmp/pw >/dev/null
         printf '\\nhost all all all scram-sha-256\\n' >>{0}/pg_hba.conf
         echo \"listen_addresses = '*'\" >>{0}/postgresql.conf
         chown -R root:root {0}; chmod 755 {0}",
        base.pgdata, base.major
    );
    run_once(base, &["-v", &at], &["bash", "-ec", &make]).good();
    let sum = format!("cd {}; cat pg_hba.conf pg_ident.conf postgresql.conf | md5sum", base.pgdata);
    let before = run_once(base, &["-v", &at], &["sh", "-c", &sum]).good();
    // A directory of the host for the backups is root's.
    let backups = Volume::new();
    let repository = backups.at("/var/lib/pgbackrest");
    let give = "chown root:root /var/lib/pgbackrest; chmod 755 /var/lib/pgbackrest";
    run_once(base, &["-v", &repository], &["sh", "-ec", give]).good();
    // No password: that is for a first start alone. Its superuser is told, as it always was.
    let options = ["-v", &at, "-v", &repository, "-e", "POSTGRES_USER=app"];
    let container = Container::run(base, &options, &[]).connecting_as("app", "postgres").ready();
    container.first_backup();
    assert_eq!(container.shell(&sum), before, "its configuration was changed");
    assert_eq!(container.shell(&format!("stat -c '%u %a' {}", base.pgdata)), "999 700");
    assert!(!container.logs().contains("initdb"), "{}", container.logs());
    // And goes back unchanged: nothing of ours is in it.
    let ours = format!("ls -A {} | grep -i headrest", base.pgdata);
    assert_eq!(container.exec(&["sh", "-c", &ours]).out, "");
}

fn a_new_image_goes_on_with_the_volumes_of_the_old_one(base: Base) {
    let (data, backups, state) = (Volume::new(), Volume::new(), Volume::new());
    let volumes = [
        "-v",
        &data.at("/var/lib/postgresql"),
        "-v",
        &backups.at("/var/lib/pgbackrest"),
        "-v",
        &state.at("/var/lib/headrest"),
    ];
    let options = [&volumes[..], &["-e", "POSTGRES_PASSWORD=x"]].concat();
    let container = Container::run(base, &options, &[]).ready();
    container.first_backup();
    container.sql("CREATE TABLE t AS SELECT 1 AS x");
    let token = container.shell("cat /var/lib/headrest/admin-token");
    container.stop();
    docker(&["rm", &container.name]).good();
    // Without a password: nothing is made any more.
    let container = Container::run(base, &volumes, &[]).ready();
    assert_eq!(container.sql("SELECT x FROM t"), "1");
    assert_eq!(container.shell("cat /var/lib/headrest/admin-token"), token);
    let body = serde_json::json!({ "type": "incr" });
    let job = container.job("/api/v1/stanzas/main/backups", &body);
    assert_eq!(job["result"]["type"], "incr", "{job:#}");
    // A second one on the same data is refused, whatever state it has of its own.
    let second = Container::run(base, &["-v", &data.at("/var/lib/postgresql")], &[]);
    assert_eq!(second.wait_end(), 1);
    assert!(second.logs().contains("another Headrest uses PGDATA"), "{}", second.logs());
    assert_eq!(container.sql("SELECT x FROM t"), "1");
}

/// "/var/lib/postgresql/data" was the place until 17; since 18 the volume is one above.
#[test]
fn a_volume_of_the_former_layout_is_not_passed_over() {
    let base = FORKY;
    let volume = Volume::new();
    let at = volume.at("/var/lib/postgresql");
    let make = "rm -f /var/lib/postgresql/data; mkdir -p /var/lib/postgresql/17/docker; echo 17 \
                >/var/lib/postgresql/17/docker/PG_VERSION";
    run_once(base, &["-v", &at], &["sh", "-ec", make]).good();
    let said = run_once(base, &["-v", &at, "-e", "POSTGRES_PASSWORD=x"], &[]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.bad().contains("/var/lib/postgresql/17/docker"));
    // A volume at the former place: a cluster of before is left alone,
    let volume = Volume::new();
    let at = volume.at("/var/lib/postgresql/data");
    run_once(base, &["-v", &at], &["sh", "-c", "echo 17 >/var/lib/postgresql/data/PG_VERSION"])
        .good();
    let options = ["-v", &at, "-e", "POSTGRES_PASSWORD=x"];
    let said = run_once(base, &options, &[]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.bad().contains("17"));
    let left = run_once(base, &["-v", &at], &["ls", "-A", "/var/lib/postgresql/data/"]).good();
    assert_eq!(left, "PG_VERSION");
    // and a new one goes into that volume, and into none that nobody has named.
    let volume = Volume::new();
    let at = volume.at("/var/lib/postgresql/data");
    let options = ["-v", &at, "-e", "POSTGRES_PASSWORD=x", "-e", "PGDATA=/var/lib/postgresql/data"];
    Container::run(base, &options, &[]).wait_ready();
    let version = run_once(base, &["-v", &volume.at("/x")], &["cat", "/x/PG_VERSION"]).good();
    assert_eq!(version, "18");
}
