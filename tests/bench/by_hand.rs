//! What a person would type instead, as the user and with the settings that Headrest uses.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::files::{self, ServerUser, pgbackrest};
use crate::support::instance::Instance;
use crate::support::sql::Sql;

/// pgBackRest and PostgreSQL of an instance, without Headrest.
#[derive(Debug)]
pub(crate) struct ByHand {
    root: PathBuf,
    data_dir: PathBuf,
    user: ServerUser,
    sql: Sql,
    env: BTreeMap<String, String>,
    archive_command: String,
}

impl ByHand {
    /// Headrest must run: its server is asked how it archives.
    pub(crate) fn beside(instance: &Instance) -> Self {
        let archive_command = instance.sql.run("SHOW archive_command");
        let ours = |name: &str| name == "PATH" || name.starts_with("PGBACKREST_");
        let mut env: BTreeMap<String, String> =
            instance.env.clone().into_iter().filter(|(name, _)| ours(name)).collect();
        let added = fs::read_to_string(instance.root.join("state/pgbackrest.env"));
        for line in added.expect("pgbackrest.env").lines() {
            let Some(setting) = line.strip_prefix("export ") else { continue };
            let setting = shlex::split(setting).expect("shell words").concat();
            let (name, value) = setting.split_once('=').expect("a setting");
            env.insert(name.to_owned(), value.to_owned());
        }
        env.insert("TZ".to_owned(), "UTC".to_owned());
        Self {
            root: instance.root.clone(),
            data_dir: instance.data_dir(),
            user: instance.user.clone(),
            sql: instance.sql.clone(),
            env,
            archive_command,
        }
    }

    /// `pgbackrest --stanza=main ...`
    pub(crate) fn pgbackrest(&self, args: &[&str]) {
        self.run(&pgbackrest(), [&["--stanza=main"], args].concat());
    }

    /// `pg_ctl start`, archiving as Headrest's server does.
    pub(crate) fn start_server(&self) {
        let options = format!(
            "-c port={} -c unix_socket_directories={} -c listen_addresses=127.0.0.1 \
             -c archive_mode=on -c archive_timeout=60s -c archive_command='{}'",
            self.sql.port,
            self.sql.socket_dir.display(),
            self.archive_command
        );
        let log = self.root.join("log/by-hand.log").display().to_string();
        self.pg_ctl(&["start", "-w", "-t", "600", "-l", &log, "-o", &options]);
    }

    /// `pg_ctl stop`, fast.
    pub(crate) fn stop_server(&self) {
        self.pg_ctl(&["stop", "-w", "-t", "600", "-m", "fast"]);
    }

    fn pg_ctl(&self, args: &[&str]) {
        let data_dir = self.data_dir.display().to_string();
        self.run(&files::postgres_program("pg_ctl"), [&["-D", &data_dir], args].concat());
    }

    fn run(&self, program: &Path, args: Vec<&str>) {
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(&self.env).current_dir(&self.root);
        // Not pipes: a server that is started keeps them open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        if rustix::process::geteuid().is_root() {
            command.uid(self.user.uid).gid(self.user.gid);
        }
        let shown = program.display();
        let status = command.status().unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert!(status.success(), "{shown}: {status}");
    }
}

/// `pgbench` on an instance, as the superuser.
pub(crate) fn pgbench(instance: &Instance, args: &[&str]) {
    let output = Command::new(files::postgres_program("pgbench"))
        .arg("-h")
        .arg(&instance.sql.socket_dir)
        .args(["-p", &instance.sql.port.to_string(), "-U", "postgres"])
        .args(args)
        .arg("postgres")
        .output()
        .expect("cannot run pgbench");
    assert!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
}
