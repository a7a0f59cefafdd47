//! Containers, volumes and the `docker` that runs them.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::bases::Base;
use crate::support::client::Http;
use crate::support::instance::Instance;
use crate::support::{PATIENCE, SOON, until, within};

/// What a program said and how it ended.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// What it said, of a program that must succeed.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.out, self.err);
        self.out.trim().to_owned()
    }

    /// Everything it said, of a program that must fail.
    #[track_caller]
    pub(crate) fn bad(self) -> String {
        assert_ne!(self.code, Some(0), "{}\n{}", self.out, self.err);
        format!("{}{}", self.out, self.err)
    }
}

/// Runs `docker`.
#[track_caller]
pub(crate) fn docker(args: &[&str]) -> Ran {
    let output = Command::new("docker").args(args).stdin(Stdio::null()).output();
    let output = output.expect("cannot run docker; is there a container engine?");
    Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A name that nobody else has.
fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("headrest-test-{}-{number}", std::process::id())
}

/// A named volume, removed at the end. Declared before the containers that use it.
#[derive(Debug)]
pub(crate) struct Volume(pub(crate) String);

impl Volume {
    pub(crate) fn new() -> Self {
        let name = unique();
        docker(&["volume", "create", "--label", "headrest-test", &name]).good();
        Self(name)
    }

    /// `NAME:PATH`, for `-v`.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}:{path}", self.0)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        docker(&["volume", "rm", "-f", &self.0]);
    }
}

/// Runs a container to its end.
#[track_caller]
pub(crate) fn run_once(base: Base, options: &[&str], command: &[&str]) -> Ran {
    let name = unique();
    let image = base.image();
    let mut args = vec!["run", "--rm", "--name", &name, "--label", "headrest-test"];
    args.extend(options);
    args.push(&image);
    args.extend(command);
    docker(&args)
}

/// A container in the background, removed at the end with its anonymous volumes.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    base: Base,
    user: String,
    database: String,
}

impl Container {
    /// With a password and nothing else.
    #[track_caller]
    pub(crate) fn plain(base: Base) -> Self {
        Self::run(base, &["-e", "POSTGRES_PASSWORD=secret"], &[])
    }

    /// `docker run -d`, with the API on a port of its own.
    #[track_caller]
    pub(crate) fn run(base: Base, options: &[&str], command: &[&str]) -> Self {
        let name = unique();
        let image = base.image();
        let mut args = vec!["run", "-d", "--name", &name, "--label", "headrest-test"];
        args.extend(["-p", "127.0.0.1::8433"]);
        args.extend(options);
        args.push(&image);
        args.extend(command);
        docker(&args).good();
        let (user, database) = ("postgres".to_owned(), "postgres".to_owned());
        Self { name, base, user, database }
    }

    /// Whom [`Self::sql`] connects as, and to what.
    pub(crate) fn connecting_as(mut self, user: &str, database: &str) -> Self {
        (self.user, self.database) = (user.to_owned(), database.to_owned());
        self
    }

    /// Runs something in it, as root.
    pub(crate) fn exec(&self, command: &[&str]) -> Ran {
        let mut args = vec!["exec", &self.name];
        args.extend(command);
        docker(&args)
    }

    /// A line of shell in it, which must succeed.
    #[track_caller]
    pub(crate) fn shell(&self, line: &str) -> String {
        self.exec(&["sh", "-ec", line]).good()
    }

    pub(crate) fn try_sql(&self, statement: &str) -> Ran {
        let args = ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", &self.user];
        self.exec(&[&args[..], &["-d", &self.database, "-c", statement]].concat())
    }

    /// The answer of a statement that must succeed.
    #[track_caller]
    pub(crate) fn sql(&self, statement: &str) -> String {
        self.try_sql(statement).good()
    }

    /// Its log so far.
    pub(crate) fn logs(&self) -> String {
        let ran = docker(&["logs", &self.name]);
        ran.out + &ran.err
    }

    /// A part of what `docker inspect` shows.
    pub(crate) fn inspect(&self, format: &str) -> String {
        docker(&["inspect", "--format", format, &self.name]).good()
    }

    /// Waits until `headrest healthcheck` is content.
    #[track_caller]
    pub(crate) fn ready(self) -> Self {
        self.wait_ready();
        self
    }

    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        let mut last = String::new();
        let ready = within(PATIENCE, || {
            let ran = self.exec(&["headrest", "healthcheck"]);
            last.clone_from(&ran.err);
            let gone = self.inspect("{{.State.Running}}") == "false";
            (ran.code == Some(0) || gone).then_some(ran.code == Some(0))
        });
        assert_eq!(ready, Some(true), "not ready: {last}");
    }

    /// Waits until it has ended and answers its exit code.
    #[track_caller]
    pub(crate) fn wait_end(&self) -> i32 {
        until("the container has ended", PATIENCE, || {
            (self.inspect("{{.State.Running}}") == "false").then_some(())
        });
        self.inspect("{{.State.ExitCode}}").parse().unwrap()
    }

    #[track_caller]
    pub(crate) fn stop(&self) {
        docker(&["stop", &self.name]).good();
    }

    #[track_caller]
    pub(crate) fn kill(&self) {
        docker(&["kill", &self.name]).good();
    }

    #[track_caller]
    pub(crate) fn start_again(&self) {
        docker(&["start", &self.name]).good();
    }

    /// What the control data of the stopped container say about something.
    #[track_caller]
    pub(crate) fn control(&self, item: &str) -> String {
        let program = format!("/usr/lib/postgresql/{}/bin/pg_controldata", self.base.major);
        let from = ["--volumes-from", &self.name, "-e", "LC_ALL=C"];
        let said = run_once(self.base, &from, &[&program, "-D", self.base.pgdata]).good();
        let line = said.lines().find_map(|line| line.strip_prefix(item)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {item} in {said}")).trim().to_owned()
    }

    /// The API, with the admin token.
    #[track_caller]
    pub(crate) fn http(&self) -> Http {
        let (port, token) = until("the API is there", SOON, || {
            let ports = docker(&["port", &self.name, "8433/tcp"]).out;
            let port = ports.lines().next()?.rsplit_once(':')?.1.parse().ok()?;
            let token = self.exec(&["cat", "/var/lib/headrest/admin-token"]);
            let token = (token.code == Some(0)).then(|| token.out.trim().to_owned());
            token.filter(|token| !token.is_empty()).map(|token| (port, token))
        });
        Http::new(port, Some(token))
    }

    /// Waits until the first full backup has ended and answers its job.
    #[track_caller]
    pub(crate) fn first_backup(&self) -> Value {
        let http = self.http();
        until("the first backup has succeeded", PATIENCE, || {
            let jobs = http.get("/api/v1/jobs?limit=200").expect(200).json();
            let first = |job: &&Value| {
                assert_ne!(job["state"], "failed", "{job:#}");
                job["trigger"] == "event:first-start" && job["state"] == "succeeded"
            };
            let jobs = jobs["items"].as_array().unwrap();
            jobs.iter().filter(first).find(|job| job["kind"] == "backup").cloned()
        })
    }

    /// Waits until every moment from now on can be restored to: a second after the first backup.
    #[track_caller]
    pub(crate) fn wait_restorable(&self) {
        let from = Instance::first_moment(&self.first_backup());
        let past = format!("SELECT clock_timestamp() > '{from}'");
        until("the backup is some time ago", SOON, || (self.sql(&past) == "t").then_some(()));
    }

    /// Ends the present segment and waits until it is archived. Answers its name.
    #[track_caller]
    pub(crate) fn switch(&self) -> String {
        let segment = self.sql("SELECT pg_walfile_name(pg_switch_wal())");
        let archived = format!("SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver");
        until("the segment is archived", SOON, || (self.sql(&archived) == "t").then_some(()));
        segment
    }

    /// POST, wait for the job, which must succeed.
    #[track_caller]
    pub(crate) fn job(&self, path: &str, body: &Value) -> Value {
        let job = self.http().post_and_wait(path, body, 120).expect(200).json();
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", self.job_log(&job));
        job
    }

    pub(crate) fn job_log(&self, job: &Value) -> String {
        let id = job["id"].as_str().unwrap_or_default();
        self.http().get(&format!("/api/v1/jobs/{id}/log")).body
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if thread::panicking() {
            // What it had to say last is still on its way.
            thread::sleep(Duration::from_millis(200));
            let logs = self.logs();
            let from = logs.lines().count().saturating_sub(60);
            let end: Vec<_> = logs.lines().skip(from).collect();
            eprintln!("--- the end of the log of {}\n{}", self.name, end.join("\n"));
        }
        docker(&["rm", "-f", "-v", &self.name]);
    }
}
