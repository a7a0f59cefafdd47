//! One Headrest with its server, its repository and its directory.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::client::Http;
use super::files::{self, ServerUser};
use super::ports::Port;
use super::process::{self, Process};
use super::reaper::Reaper;
use super::sql::Sql;
use super::{PATIENCE, SOON, until, within};

pub(crate) const TOKEN: &str = "a-token-for-tests-only";

/// See the module's description. Dropping it ends and removes everything.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) root: PathBuf,
    pub(crate) user: ServerUser,
    /// The environment of the next start.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) http: Http,
    pub(crate) sql: Sql,
    program: PathBuf,
    http_port: Port,
    _sql_port: Port,
    headrest: Option<Child>,
    reaper: Reaper,
}

impl Instance {
    /// Directories and ports, nothing running.
    pub(crate) fn new() -> Self {
        let root = tempfile::Builder::new().prefix("headrest-test-").tempdir_in("/tmp");
        let root = root.expect("a temporary directory").keep();
        let reaper = Reaper::of(&root);
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("chmod");
        let user = ServerUser::here();
        for (name, mode) in [("data", 0o700), ("repo", 0o750)] {
            user.make_directory(&root.join(name), mode);
        }
        for name in ["lock", "log", "spool", "sock"] {
            user.make_directory(&root.join(name), 0o755);
        }
        fs::write(root.join("pgbackrest.conf"), "").expect("write");
        let (http_port, sql_port) = (Port::free(), Port::free());
        let path = |name: &str| root.join(name).display().to_string();
        let env = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("RUST_LOG", "info,headrest::http::middleware=error".to_owned()),
            ("HEADREST_LISTEN", format!("127.0.0.1:{}", http_port.number)),
            ("HEADREST_STATE_DIR", path("state")),
            ("HEADREST_ADMIN_TOKEN", TOKEN.to_owned()),
            ("HEADREST_POSTGRES__DATA_DIR", path("data")),
            ("HEADREST_POSTGRES__PORT", sql_port.number.to_string()),
            ("HEADREST_POSTGRES__SOCKET_DIR", path("sock")),
            ("HEADREST_POSTGRES__OS_USER", user.name.clone()),
            ("HEADREST_POSTGRES__ARGS", "-c listen_addresses=127.0.0.1".to_owned()),
            ("HEADREST_POSTGRES__STOP_TIMEOUT", "30s".to_owned()),
            // Whatever the time is, no backup comes in between.
            ("HEADREST_DEFAULT_SCHEDULE", "off".to_owned()),
            ("HEADREST_PGBACKREST__BIN", files::pgbackrest().display().to_string()),
            // Not the machine's: it may hold anything, and not everybody may read it.
            ("PGBACKREST_CONFIG", path("pgbackrest.conf")),
            ("PGBACKREST_REPO1_PATH", path("repo")),
            ("PGBACKREST_LOCK_PATH", path("lock")),
            ("PGBACKREST_LOG_PATH", path("log")),
            ("PGBACKREST_SPOOL_PATH", path("spool")),
        ];
        Self {
            http: Http::new(http_port.number, Some(TOKEN.to_owned())),
            sql: Sql { socket_dir: root.join("sock"), port: sql_port.number, role: "postgres" },
            env: env.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_headrest")),
            root,
            user,
            http_port,
            _sql_port: sql_port,
            headrest: None,
            reaper,
        }
    }

    /// Running, PostgreSQL ready, the first start's jobs done: a full backup is there.
    pub(crate) fn with_full_backup() -> Self {
        let mut instance = Self::new();
        instance.start();
        instance.wait_ready();
        instance.wait_first_backup();
        instance
    }

    /// Sets a variable of the next start.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.env.insert(name.to_owned(), value.into());
    }

    /// The executable of the next start.
    pub(crate) fn set_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.root.join("data")
    }

    pub(crate) fn http_port(&self) -> u16 {
        self.http_port.number
    }

    /// Starts Headrest and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.spawn();
        until("/livez answers", PATIENCE, || {
            if let Some(status) = self.exit_status() {
                panic!("headrest ended: {status}\n{}", self.log());
            }
            (self.http.probe("/livez") == Some(200)).then_some(())
        });
    }

    /// Starts Headrest and does not wait.
    pub(crate) fn spawn(&mut self) {
        assert!(self.headrest.is_none(), "Headrest is running already");
        let file = |name: &str| {
            let path = self.root.join(name);
            OpenOptions::new().create(true).append(true).open(path).expect("a log file")
        };
        let child = Command::new(&self.program)
            .arg("serve")
            .env_clear()
            .envs(&self.env)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(file("headrest.out"))
            .stderr(file("headrest.err"))
            .process_group(0)
            .spawn()
            .expect("cannot start headrest");
        self.headrest = Some(child);
    }

    /// Headrest's process.
    #[track_caller]
    pub(crate) fn pid(&self) -> i32 {
        let child = self.headrest.as_ref().expect("Headrest is not running");
        i32::try_from(child.id()).unwrap()
    }

    /// Kills Headrest alone, as a crash would; everything else lives on.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        process::signal(self.pid(), Signal::KILL);
        self.wait_exit();
    }

    /// Stops Headrest in order.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> ExitStatus {
        process::signal(self.pid(), Signal::TERM);
        self.wait_exit()
    }

    /// What `headrest doctor` says, and its exit code.
    pub(crate) fn doctor(&self) -> (Option<i32>, String) {
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_headrest"));
        doctor.arg("doctor").env_clear().envs(&self.env).current_dir("/").stdin(Stdio::null());
        let output = doctor.output().expect("cannot start headrest");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits for Headrest's end.
    #[track_caller]
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        let status = until("headrest ends", PATIENCE, || self.exit_status());
        self.headrest = None;
        status
    }

    /// How Headrest ended, if it did.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.headrest.as_mut()?.try_wait().expect("wait")
    }

    /// What Headrest wrote.
    pub(crate) fn log(&self) -> String {
        ["headrest.out", "headrest.err"]
            .map(|name| fs::read_to_string(self.root.join(name)).unwrap_or_default())
            .concat()
    }

    /// Nothing will come any more when Headrest has ended.
    #[track_caller]
    fn must_live(&self) {
        assert!(self.headrest.is_none() || Process::lives(self.pid()), "headrest has ended");
    }

    /// Waits until clients can write.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        until("/readyz answers 200", PATIENCE, || {
            self.must_live();
            (self.http.probe("/readyz") == Some(200)).then_some(())
        });
        self.sql.until_answers("SELECT pg_is_in_recovery()", "f");
    }

    /// PostgreSQL as the API shows it.
    #[track_caller]
    pub(crate) fn server(&self) -> Value {
        self.http.get("/api/v1/processes/postgres").expect(200).json()
    }

    /// Waits until the API shows the server in this state.
    #[track_caller]
    pub(crate) fn wait_server(&self, state: &str) -> Value {
        self.wait_server_for(state, PATIENCE)
    }

    /// The same with another patience.
    #[track_caller]
    pub(crate) fn wait_server_for(&self, state: &str, patience: Duration) -> Value {
        let mut last = Value::Null;
        let found = within(patience, || {
            last = self.server();
            (last["state"] == state).then(|| last.clone())
        });
        found.unwrap_or_else(|| panic!("the server is not {state}: {last}"))
    }

    /// Gives the supervisor an order and expects it to be taken.
    #[track_caller]
    pub(crate) fn order(&self, order: &str) {
        let path = format!("/api/v1/processes/postgres/{order}");
        let reply = self.http.post(&path, &serde_json::json!({}));
        assert!(
            matches!(reply.status, 200 | 202 | 204),
            "{order}: {} {}",
            reply.status,
            reply.body
        );
    }

    /// Stops the server through the API and waits until it is down.
    #[track_caller]
    pub(crate) fn stop_server(&self) {
        self.order("stop");
        self.wait_server("down");
        assert_eq!(self.servers(), [], "server processes are left");
    }

    /// The postmaster, from its file.
    pub(crate) fn postmaster(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    /// All living processes of this instance but Headrest itself.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let headrest = self.headrest.as_ref().map(|child| i32::try_from(child.id()).unwrap());
        let all = process::below(&self.root).into_iter();
        all.filter(|process| Some(process.pid) != headrest && process.program != "psql").collect()
    }

    /// The living server processes.
    pub(crate) fn servers(&self) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.program == "postgres").collect()
    }

    /// The living pgbackrest processes, those that the server's archiver runs left out.
    pub(crate) fn pgbackrests(&self) -> Vec<Process> {
        let ours = |p: &Process| p.program == "pgbackrest" && !p.title.contains("archive-");
        self.processes().into_iter().filter(ours).collect()
    }

    /// Waits until no pgbackrest of this instance is at work.
    #[track_caller]
    pub(crate) fn wait_no_pgbackrest(&self) {
        let mut left = Vec::new();
        let gone = within(SOON, || {
            left = self.pgbackrests();
            left.is_empty().then_some(())
        });
        assert!(gone.is_some(), "pgbackrest processes are left: {left:#?}");
    }

    /// What `pg_controldata` says to something.
    pub(crate) fn control(&self, item: &str) -> String {
        let output = Command::new(files::postgres_program("pg_controldata"))
            .env("LC_ALL", "C")
            .arg(self.data_dir())
            .output()
            .expect("cannot run pg_controldata");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(item)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("pg_controldata has no {item}: {text}")).trim().to_owned()
    }

    fn tell_story(&self) {
        for (name, lines) in
            [("headrest.out", 120), ("headrest.err", 40), ("state/log/postgres.log", 60)]
        {
            let text = fs::read(self.root.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let all: Vec<&str> = text.lines().collect();
            let last = &all[all.len().saturating_sub(lines)..];
            eprintln!("--- the end of {name}\n{}", last.join("\n"));
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_story();
        }
        self.reaper.reap();
        if let Some(mut child) = self.headrest.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
