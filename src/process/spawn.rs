//! The one place that starts processes.
//!
//! A child gets its own process group (so that it and its workers can be ended together), no
//! standard input, and exactly the environment it is given. It must not outlive its handle
//! unnoticed: `kill_on_drop` is the backstop, [`super::stop`] is the plan.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::process::Pid;
use tokio::process::{ChildStderr, ChildStdout};

use super::end::End;

/// The descriptor number under which a child finds the file of [`Program::inherit`].
const INHERITED_FD: i32 = 9;

/// A program to run, as a value.
#[derive(Debug)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Its arguments; each is one argv element, no shell is involved.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Its working directory; `/` when not given.
    pub directory: Option<PathBuf>,
    /// Its standard input; none when not given.
    pub input: Option<OwnedFd>,
    /// Where its standard output and standard error go.
    pub output: Output,
    /// An open file that the child and its own children keep open as long as any of them lives.
    pub inherit: Option<OwnedFd>,
    /// Whether dropping the handle kills the process. Off for PostgreSQL, which must never be
    /// killed by accident.
    pub kill_on_drop: bool,
}

/// Where a child's output goes.
#[derive(Debug)]
pub enum Output {
    /// To pipes that the caller must drain.
    Piped,
    /// Both to this file.
    File(File),
    /// Where ours go.
    Ours,
    /// Standard output to this descriptor, standard error where ours goes.
    Into(OwnedFd),
}

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {}", program.display())]
pub struct SpawnError {
    /// The executable.
    pub program: PathBuf,
    /// What the operating system said.
    #[source]
    pub source: std::io::Error,
}

impl SpawnError {
    /// The whole story in one line.
    pub fn explain(&self) -> String {
        format!("{self}: {}", self.source)
    }
}

/// A running child process.
#[derive(Debug)]
pub struct Child {
    /// Its process id, which is also its process group's.
    pub pid: Pid,
    /// Its standard output, when piped.
    pub stdout: Option<ChildStdout>,
    /// Its standard error, when piped.
    pub stderr: Option<ChildStderr>,
    inner: tokio::process::Child,
}

impl Program {
    /// A program with piped output, no arguments and an empty environment.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            directory: None,
            input: None,
            output: Output::Piped,
            inherit: None,
            kill_on_drop: true,
        }
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Child, SpawnError> {
        let failed = |source| SpawnError { program: self.path.clone(), source };
        #[expect(clippy::disallowed_methods, reason = "this is the one module that spawns")]
        let mut command = tokio::process::Command::new(&self.path);
        command
            .args(&self.args)
            .env_clear()
            .envs(&self.env)
            .current_dir(self.directory.as_deref().unwrap_or(std::path::Path::new("/")))
            .stdin(self.input.map_or_else(Stdio::null, Stdio::from))
            .process_group(0)
            .kill_on_drop(self.kill_on_drop);
        match self.output {
            Output::Piped => {
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
            }
            Output::File(file) => {
                let copy = file.try_clone().map_err(failed)?;
                command.stdout(Stdio::from(file)).stderr(Stdio::from(copy));
            }
            Output::Ours => {
                command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
            }
            Output::Into(descriptor) => {
                command.stdout(Stdio::from(descriptor)).stderr(Stdio::inherit());
            }
        }
        if let Some(parent_fd) = self.inherit {
            command
                .fd_mappings(vec![FdMapping { parent_fd, child_fd: INHERITED_FD }])
                .map_err(|_| failed(std::io::Error::other("descriptor 9 is mapped twice")))?;
        }
        let mut inner = command.spawn().map_err(failed)?;
        let pid = inner
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| failed(std::io::Error::other("the new process has no id")))?;
        Ok(Child { pid, stdout: inner.stdout.take(), stderr: inner.stderr.take(), inner })
    }
}

/// Becomes another program, with our environment plus `env`. Answers only when that fails.
pub fn become_program(
    path: impl AsRef<OsStr>,
    args: &[OsString],
    env: impl IntoIterator<Item = (String, String)>,
) -> SpawnError {
    use std::os::unix::process::CommandExt as _;
    #[expect(clippy::disallowed_methods, reason = "this is the one module that spawns")]
    let mut command = std::process::Command::new(&path);
    let source = command.args(args).envs(env).exec();
    SpawnError { program: path.as_ref().into(), source }
}

impl Child {
    /// Waits until the process ends. Cancel safe.
    pub async fn wait(&mut self) -> End {
        // `wait` fails only when there is no such child any more, which means it was reaped.
        self.inner.wait().await.map_or(End::Unseen, End::from_status)
    }
}
