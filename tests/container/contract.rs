//! What the documentation of the official `postgres` image says, line by line.

use crate::bases::{Base, on_every_base};
use crate::engine::{Container, Volume, run_once};

on_every_base!(
    a_first_start_needs_a_password_or_trust,
    defaults_are_those_of_the_official_image,
    the_variables_say_what_is_made,
    secrets_come_from_files,
    initdb_gets_its_arguments,
    arguments_are_the_servers_and_other_commands_are_run,
);

/// "This environment variable is required for you to use the PostgreSQL image. It must not be empty
/// or undefined."
fn a_first_start_needs_a_password_or_trust(base: Base) {
    let volume = Volume::new();
    let at = volume.at("/var/lib/postgresql");
    for options in [&["-v", &at][..], &["-v", &at, "-e", "POSTGRES_PASSWORD="]] {
        let said = run_once(base, options, &[]);
        assert_eq!(said.code, Some(1), "{said:?}");
        let said = said.bad();
        for word in ["POSTGRES_PASSWORD", "POSTGRES_HOST_AUTH_METHOD=trust", "docker run"] {
            assert!(said.contains(word), "{word} is not in {said}");
        }
    }
    let left = run_once(base, &["-v", &at], &["find", base.pgdata, "-mindepth", "1"]).good();
    assert_eq!(left, "", "something was made");
    // "...will allow anyone to connect without a password."
    let options = ["-v", &at, "-e", "POSTGRES_HOST_AUTH_METHOD=trust"];
    let container = Container::run(base, &options, &[]).ready();
    let hba = container.shell(&format!("cat {}/pg_hba.conf", base.pgdata));
    assert_eq!(hba.lines().last(), Some("host all all all trust"));
    let address = container.inspect("{{.NetworkSettings.IPAddress}}");
    container.exec(&["psql", "-h", &address, "-U", "postgres", "-c", "SELECT 1"]).good();
    assert!(container.logs().contains("trust"), "nobody is warned");
}

fn defaults_are_those_of_the_official_image(base: Base) {
    let container = Container::plain(base).ready();
    for (query, expect) in [
        ("SELECT current_user, current_database()", "postgres|postgres"),
        ("SHOW data_directory", base.pgdata),
        ("SHOW listen_addresses", "*"),
        ("SHOW port", "5432"),
        ("SHOW unix_socket_directories", "/var/run/postgresql"),
        ("SHOW server_encoding", "UTF8"),
        ("SELECT datcollate FROM pg_database WHERE datname = 'postgres'", "en_US.utf8"),
        ("SELECT pg_jit_available()", "t"),
        ("SELECT current_setting('server_version_num')::int / 10000", &base.major.to_string()),
    ] {
        assert_eq!(container.sql(query), expect, "{query}");
    }
    assert_eq!(container.shell("id -u postgres; id -g postgres"), "999\n999");
    let owner = format!("stat -c '%u:%g %a' {}", base.pgdata);
    assert_eq!(container.shell(&owner), "999:999 700");
    let runs_as =
        "stat -c %u /proc/$(head -1 $(psql -U postgres -Atc 'SHOW data_directory')/postmaster.pid)";
    assert_eq!(container.shell(runs_as), "999");
    // "...a password is not required when connecting from localhost (inside the same container)".
    container.exec(&["psql", "-h", "127.0.0.1", "-U", "postgres", "-c", "SELECT 1"]).good();
    // "...a password will be required if connecting from a different host/container."
    let address = container.inspect("{{.NetworkSettings.IPAddress}}");
    let connect = |password: &str| {
        let password = format!("PGPASSWORD={password}");
        let args = ["env", &password, "psql", "-h", &address, "-U", "postgres", "-c", "SELECT 1"];
        container.exec(&args)
    };
    connect("secret").good();
    assert!(connect("wrong").bad().contains("authentication"));
    let hba = container.shell(&format!("tail -1 {}/pg_hba.conf", base.pgdata));
    assert_eq!(hba, "host all all all scram-sha-256");
    assert_eq!(container.inspect("{{.Config.StopSignal}}"), "SIGINT");
    // "Locale Customization", as a derived image does it.
    let define = "localedef -i de_DE -c -f UTF-8 -A /usr/share/locale/locale.alias de_DE.UTF-8";
    assert!(
        run_once(base, &[], &["sh", "-ec", &format!("{define}; locale -a")])
            .good()
            .contains("de_DE")
    );
    // The entrypoint by its official name, for those who call it.
    let version = run_once(base, &["--entrypoint", "docker-entrypoint.sh"], &["postgres", "-V"]);
    assert!(version.good().contains(&format!(") {}", base.major)));
    // The client alone, as the image's own tests use it.
    let client = [
        "--link",
        &format!("{}:postgres", container.name),
        "--entrypoint",
        "psql",
        "-e",
        "PGPASSWORD=secret",
    ];
    let said = run_once(base, &client, &["-h", "postgres", "-U", "postgres", "-Atc", "SELECT 42"]);
    assert_eq!(said.good(), "42");
}

fn the_variables_say_what_is_made(base: Base) {
    let (user, database) = ("my \"cool\" user", "my = cool 'database'");
    let options = [
        "-e",
        "POSTGRES_PASSWORD=it's a 'secret' $HOME",
        "-e",
        &format!("POSTGRES_USER={user}"),
        "-e",
        &format!("POSTGRES_DB={database}"),
        "-e",
        "POSTGRES_HOST_AUTH_METHOD=md5",
        "-e",
        "POSTGRES_INITDB_WALDIR=/var/lib/postgresql/wal",
        "-e",
        "PGDATA=/var/lib/postgresql/else where",
    ];
    let container = Container::run(base, &options, &[]).ready();
    let psql = |dbname: &str, query: &str| {
        let dbname = format!("dbname='{}'", dbname.replace('\'', "\\'"));
        container.exec(&["psql", "-At", "-U", user, "-d", &dbname, "-c", query]).good()
    };
    assert_eq!(psql(database, "SELECT current_user"), user);
    assert_eq!(psql(database, "SELECT current_database()"), database);
    let superusers = "SELECT string_agg(rolname, ',') FROM pg_roles WHERE rolsuper";
    assert_eq!(psql("postgres", superusers), user);
    assert_eq!(psql("postgres", "SHOW data_directory"), "/var/lib/postgresql/else where");
    let link = container.shell("readlink '/var/lib/postgresql/else where/pg_wal'");
    assert_eq!(link, "/var/lib/postgresql/wal");
    let hba = container.shell("tail -1 '/var/lib/postgresql/else where/pg_hba.conf'");
    assert_eq!(hba, "host all all all md5");
    let address = container.inspect("{{.NetworkSettings.IPAddress}}");
    let password = "PGPASSWORD=it's a 'secret' $HOME";
    let args = ["env", password, "psql", "-h", &address, "-U", user, "-d", "postgres"];
    container.exec(&[&args[..], &["-c", "SELECT 1"]].concat()).good();
    // Backed up like any other.
    container.first_backup();
    // A user alone names the database as well.
    let options = ["-e", "POSTGRES_PASSWORD=x", "-e", "POSTGRES_USER=solo"];
    let container = Container::run(base, &options, &[]).connecting_as("solo", "solo").ready();
    assert_eq!(container.sql("SELECT current_database()"), "solo");
}

/// "Docker Secrets".
fn secrets_come_from_files(base: Base) {
    let volume = Volume::new();
    let secrets = volume.at("/run/secrets");
    let write = "cd /run/secrets; printf 'secret from a file\\n' >password; printf app >user; \
                 printf appdb >db; printf -- '--wal-segsize=1\\n' >args; chmod 600 *";
    run_once(base, &["-v", &secrets], &["sh", "-ec", write]).good();
    let options = [
        "-v",
        &secrets,
        "-e",
        "POSTGRES_PASSWORD_FILE=/run/secrets/password",
        "-e",
        "POSTGRES_USER_FILE=/run/secrets/user",
        "-e",
        "POSTGRES_DB_FILE=/run/secrets/db",
        "-e",
        "POSTGRES_INITDB_ARGS_FILE=/run/secrets/args",
    ];
    // Readable for root alone: read before root is given up.
    let container = Container::run(base, &options, &[]).connecting_as("app", "appdb").ready();
    assert_eq!(container.sql("SELECT current_user, current_database()"), "app|appdb");
    assert_eq!(container.sql("SHOW wal_segment_size"), "1MB");
    let address = container.inspect("{{.NetworkSettings.IPAddress}}");
    let args = ["env", "PGPASSWORD=secret from a file", "psql", "-h", &address, "-U", "app"];
    container.exec(&[&args[..], &["-d", "appdb", "-c", "SELECT 1"]].concat()).good();
    for name in ["POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_INITDB_ARGS"] {
        let (direct, file) = (format!("{name}=x"), format!("{name}_FILE=/run/secrets/db"));
        let both = ["-v", &secrets, "-e", &direct, "-e", &file, "-e", "POSTGRES_PASSWORD=x"];
        let said = run_once(base, &both, &[]).bad();
        assert!(said.contains(&format!("both {name} and {name}_FILE are set")), "{said}");
    }
    // No secret is left lying about, nor handed to the server.
    let left = container.exec(&["grep", "-rl", "secret from a file", "/var/lib/headrest"]);
    assert_eq!((left.code, left.out.as_str()), (Some(1), ""), "the password is in a file");
    let environment = "setpriv --reuid=999 --regid=999 --clear-groups cat /proc/$(head -1 \
                       $PGDATA/postmaster.pid)/environ | tr '\\0' '\\n' | cut -d= -f1";
    let names = container.shell(environment);
    assert!(!names.contains("PASSWORD") && names.contains("PGDATA"), "{names}");
}

fn initdb_gets_its_arguments(base: Base) {
    let volume = Volume::new();
    let at = volume.at("/var/lib/postgresql");
    let args = "POSTGRES_INITDB_ARGS=--encoding=LATIN1 --locale='C' --auth-local=scram-sha-256";
    let options = ["-v", &at, "-e", "POSTGRES_PASSWORD=secret", "-e", args];
    // The superuser needs a password on the socket, too, and so does Headrest.
    let container = Container::run(base, &options, &[]).ready();
    let query =
        ["env", "PGPASSWORD=secret", "psql", "-U", "postgres", "-Atc", "SHOW server_encoding"];
    assert_eq!(container.exec(&query).good(), "LATIN1");
    container.exec(&["psql", "-w", "-U", "postgres", "-c", "SELECT 1"]).bad();
    container.first_backup();
    drop(container);
    // What initdb does not like is said, and nothing is left that could be taken for a cluster.
    let volume = Volume::new();
    let at = volume.at("/var/lib/postgresql");
    let options = ["-v", &at, "-e", "POSTGRES_PASSWORD=x", "-e", "POSTGRES_INITDB_ARGS=--nonsense"];
    let said = run_once(base, &options, &[]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.bad().contains("nonsense"));
    Container::run(base, &["-v", &at, "-e", "POSTGRES_PASSWORD=x"], &[]).wait_ready();
}

/// "Any arguments after the image are passed to postgres"; another command is that command.
fn arguments_are_the_servers_and_other_commands_are_run(base: Base) {
    for command in [
        &["-c", "work_mem=9MB", "-c", "shared_buffers=17MB"][..],
        &["postgres", "-c", "work_mem=9MB", "-c", "shared_buffers=17MB"],
    ] {
        let container = Container::run(base, &["-e", "POSTGRES_PASSWORD=x"], command).ready();
        assert_eq!(container.sql("SHOW work_mem"), "9MB");
        assert_eq!(container.sql("SHOW shared_buffers"), "17MB");
    }
    // "custom config file"
    let volume = Volume::new();
    let config = volume.at("/etc/custom");
    let write = "echo \"listen_addresses = '*'\nwork_mem = 11MB\" >/etc/custom/postgresql.conf";
    run_once(base, &["-v", &config], &["sh", "-ec", write]).good();
    let options = ["-v", &config, "-e", "POSTGRES_PASSWORD=x"];
    let command = ["-c", "config_file=/etc/custom/postgresql.conf", "-c", "hba_file=/dev/null"];
    let container = Container::run(base, &options, &command[..2]).ready();
    assert_eq!(container.sql("SHOW work_mem"), "11MB");
    drop(container);

    // What no server takes is found before there is anything.
    let volume = Volume::new();
    let options = ["-v", &volume.at("/var/lib/postgresql"), "-e", "POSTGRES_PASSWORD=x"];
    let said = run_once(base, &options, &["-c", "nonsense=1"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.bad().contains("nonsense"));
    let container = Container::run(base, &options, &["-c", "password_encryption=md5"]).ready();
    let hba = container.shell(&format!("tail -1 {}/pg_hba.conf", base.pgdata));
    assert_eq!(hba, "host all all all md5");
    drop(container);

    let major = base.major.to_string();
    for command in [&["postgres", "--version"][..], &["-V"], &["psql", "--version"]] {
        let said = run_once(base, &[], command).good();
        assert!(said.contains(&format!(") {major}")), "{command:?}: {said}");
    }
    assert_eq!(run_once(base, &[], &["sh", "-c", "id -u; echo $0", "x y"]).good(), "0\nx y");
    assert_eq!(run_once(base, &[], &["sh", "-c", "exit 7"]).code, Some(7));
    assert_eq!(run_once(base, &[], &["no-such-command"]).code, Some(127));
    assert_eq!(run_once(base, &[], &["/etc/passwd"]).code, Some(126));
    assert!(run_once(base, &[], &["postgres", "--help"]).good().contains("Usage"));
    assert!(run_once(base, &[], &["headrest", "--help"]).good().contains("healthcheck"));
}
