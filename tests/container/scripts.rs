//! `/docker-entrypoint-initdb.d`: "Initialization scripts".

use crate::bases::{Base, on_every_base};
use crate::engine::{Container, Volume, docker, run_once};

on_every_base!(
    scripts_run_once_in_the_order_of_the_locale,
    a_script_that_fails_ends_the_container_and_is_remembered,
    an_init_that_is_cut_short_is_never_taken_for_a_finished_one,
);

const DIRECTORY: &str = "/docker-entrypoint-initdb.d";

/// A volume with scripts, written by a shell.
fn scripts(base: Base, write: &str) -> Volume {
    let volume = Volume::new();
    let at = volume.at(DIRECTORY);
    let write = format!("cd {DIRECTORY}; {write}");
    run_once(base, &["-v", &at], &["bash", "-ec", &write]).good();
    volume
}

fn scripts_run_once_in_the_order_of_the_locale(base: Base) {
    // Names that sort in en_US.utf8 otherwise than by their bytes: a, B, c and not B, a, c.
    let write = r#"
        echo "CREATE TABLE ran (n serial, name text); INSERT INTO ran (name) VALUES ('a.sql')" >a.sql
        echo "INSERT INTO ran (name) VALUES ('B.sql.gz')" | gzip >B.sql.gz
        echo "INSERT INTO ran (name) VALUES ('c.sql.xz')" | xz >c.sql.xz
        echo "INSERT INTO ran (name) VALUES ('D.sql.zst')" | zstd -q >D.sql.zst
        cat >e.sh <<'X'
            # Sourced, in bash: no first line, and what it exports counts.
            [[ -n $BASH_VERSION && $0 != *e.sh ]]
            export FROM_E="set in e"
            docker_process_sql <<<"INSERT INTO ran (name) VALUES ('e.sh')"
            psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<-EOSQL
                CREATE USER docker;
                CREATE DATABASE docker;
                GRANT ALL PRIVILEGES ON DATABASE docker TO docker;
EOSQL
X
        cat >F.sh <<'X'
#!/bin/bash -e
            # Run, because it may be.
            [[ $0 == */F.sh ]]
            [ "$(id -un) $HOME" = "postgres /var/lib/postgresql" ]
            # Nobody else can connect yet.
            if psql -h "$(hostname -i)" -U postgres -c 'SELECT 1'; then exit 1; fi
            echo "work_mem = 12MB" >>"$PGDATA/postgresql.conf"
            psql -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c \
                "INSERT INTO ran (name) VALUES ('F.sh ' || '$FROM_E $OF_THE_CONTAINER $POSTGRES_PASSWORD')"
X
        echo "psql -U postgres -d app -c \"INSERT INTO ran (name) VALUES ('G.sh')\"" >G.sh
        chmod +x F.sh G.sh
        echo nonsense >g.txt; echo nonsense >h.sql.bak; echo "nonsense;" >.hidden.sql
    "#;
    let volume = scripts(base, write);
    let options = [
        "-v",
        &volume.at(DIRECTORY),
        "-e",
        "POSTGRES_PASSWORD=pw",
        "-e",
        "POSTGRES_DB=app",
        "-e",
        "OF_THE_CONTAINER=outer",
    ];
    let container = Container::run(base, &options, &[]).connecting_as("postgres", "app").ready();
    let ran = container.sql("SELECT name FROM ran ORDER BY n");
    assert_eq!(ran, "a.sql\nB.sql.gz\nc.sql.xz\nD.sql.zst\ne.sh\nF.sh set in e outer pw\nG.sh");
    assert_eq!(container.sql("SHOW work_mem"), "12MB");
    assert_eq!(container.sql("SELECT count(*) FROM pg_database WHERE datname = 'docker'"), "1");
    let logs = container.logs();
    assert!(logs.contains("ignoring /docker-entrypoint-initdb.d/g.txt"), "{logs}");
    assert!(logs.contains("init process complete; ready for start up"), "{logs}");
    // Only on a data directory that is empty.
    container.stop();
    container.start_again();
    container.wait_ready();
    assert_eq!(container.sql("SELECT count(*) FROM ran"), "7");
    let left = container.exec(&["sh", "-c", "ls /var/lib/headrest $PGDATA | grep -i first-start"]);
    assert_eq!(left.out, "");
}

fn a_script_that_fails_ends_the_container_and_is_remembered(base: Base) {
    for write in [
        "echo 'SELECT 1/0; CREATE TABLE never ()' >a.sql",
        "echo false >a.sh",
        "printf '#!/bin/sh\\nexit 3\\n' >a.sh; chmod +x a.sh",
        "echo nonsense >a.sql.gz",
    ] {
        let files = scripts(base, write);
        let data = Volume::new();
        let (files, data) = (files.at(DIRECTORY), data.at("/var/lib/postgresql"));
        let options = ["-v", &data, "-v", &files, "-e", "POSTGRES_PASSWORD=x"];
        let said = run_once(base, &options, &[]);
        assert_eq!(said.code, Some(1), "{write}: {said:?}");
        assert!(said.bad().contains("/docker-entrypoint-initdb.d/a.s"), "{write}");
        // A new container, with nothing but the data: the official image would take it as it is.
        let said = run_once(base, &["-v", &data, "-e", "POSTGRES_PASSWORD=x"], &[]);
        assert_eq!(said.code, Some(1), "{write}: {said:?}");
        assert!(said.bad().contains("cut short"), "{write}");
    }
}

fn an_init_that_is_cut_short_is_never_taken_for_a_finished_one(base: Base) {
    // In initdb itself, with nothing but the data kept.
    let data = Volume::new();
    let at = data.at("/var/lib/postgresql");
    let container = Container::run(base, &["-v", &at, "-e", "POSTGRES_PASSWORD=x"], &[]);
    let line = format!(
        "until [ -e {}/global/pg_control ]; do :; done; kill -9 $(cat /proc/1/task/1/children)",
        base.pgdata
    );
    container.exec(&["sh", "-c", &line]);
    container.wait_end();
    drop(container);
    let said = run_once(base, &["-v", &at, "-e", "POSTGRES_PASSWORD=x"], &[]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.bad().contains("cut short"));
    // What it says to do is enough.
    let empty = format!("find {} -mindepth 1 -delete", base.pgdata);
    run_once(base, &["-v", &at], &["sh", "-ec", &empty]).good();
    let container = Container::run(base, &["-v", &at, "-e", "POSTGRES_PASSWORD=x"], &[]).ready();
    assert_eq!(container.exec(&["sh", "-c", "ls $PGDATA | grep headrest"]).out, "");
    drop(container);

    let files = scripts(base, "echo 'CREATE TABLE first (); SELECT pg_sleep(600)' >a.sql");
    let data = Volume::new();
    let (files, data) = (files.at(DIRECTORY), data.at("/var/lib/postgresql"));
    let options = ["-v", &data, "-v", &files, "-e", "POSTGRES_PASSWORD=x"];
    let container = Container::run(base, &options, &[]);
    let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND pid <> \
                  pg_backend_pid()";
    crate::support::until("the script sleeps", crate::support::SOON, || {
        (container.try_sql(sleeps).out.trim() == "1").then_some(())
    });
    // The container is not healthy, and has not failed either.
    container.exec(&["headrest", "healthcheck"]).bad();
    assert_eq!(container.http().probe("/startupz"), Some(200));
    assert_eq!(container.http().probe("/livez"), Some(200));
    container.kill();
    container.start_again();
    assert_eq!(container.wait_end(), 1);
    assert!(container.logs().contains("cut short"), "{}", container.logs());
    // Told to stop it does not wait for the script longer than it is given.
    let data = Volume::new();
    let options =
        ["-v", &data.at("/var/lib/postgresql"), "-v", &files, "-e", "POSTGRES_PASSWORD=x"];
    let container = Container::run(base, &options, &[]);
    crate::support::until("the script sleeps", crate::support::SOON, || {
        (container.try_sql(sleeps).out.trim() == "1").then_some(())
    });
    docker(&["stop", "-t", "1", &container.name]).good();
    container.start_again();
    assert_eq!(container.wait_end(), 1);
    assert!(container.logs().contains("cut short"), "{}", container.logs());
}
