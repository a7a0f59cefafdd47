//! The one place that starts processes.
//!
//! A child gets its own process group (so that it and its workers can be ended together), no
//! standard input, and exactly the environment it is given. It must not outlive its handle
//! unnoticed: `kill_on_drop` is the backstop, [`super::stop`] is the plan.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
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

/// How a program ended that was run in our own place.
#[derive(Debug)]
pub struct Watched {
    /// How; `None` when it was ended because nobody wants its result any more.
    pub end: Option<End>,
    /// The end of what it wrote.
    pub output: String,
}

/// The most that is kept of the output of [`run_here`], in bytes.
const OUTPUT_KEPT: u64 = 16 << 10;

/// Runs a program to its end without a runtime, in our process group and environment, so that a
/// signal to the group ends both. Its output is passed on to our standard error and its end kept.
/// Asks `is_unwanted` every so often, and then ends it.
pub fn run_here<'a>(
    path: &OsStr,
    args: impl Iterator<Item = &'a OsString>,
    every: Duration,
    is_unwanted: impl Fn() -> bool,
) -> Result<Watched, SpawnError> {
    let failed = |source| SpawnError { program: path.into(), source };
    // Neither a pipe, which whoever it leaves behind would keep open, nor a file on a full disk.
    let output = rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC);
    let mut output = File::from(output.map_err(|error| failed(error.into()))?);
    #[expect(clippy::disallowed_methods, reason = "this is the one module that spawns")]
    let mut command = std::process::Command::new(path);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    let mut unwanted = false;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // A descriptor that becomes readable when the process ends; without one it is waited for blindly.
    let ends = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(ends) = ends {
        let timeout = rustix::time::Timespec::try_from(every).unwrap_or_default();
        loop {
            match poll(&mut [PollFd::new(&ends, PollFlags::IN)], Some(&timeout)) {
                Ok(0) if is_unwanted() => {
                    unwanted = true;
                    let _ = rustix::process::pidfd_send_signal(&ends, Signal::TERM);
                    break;
                }
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
    }
    let status = child.wait().map_err(failed)?;
    let length = output.seek(SeekFrom::End(0)).unwrap_or(0);
    let mut kept = Vec::new();
    let _ = output.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_KEPT)));
    let _ = output.read_to_end(&mut kept);
    let _ = std::io::stderr().write_all(&kept);
    Ok(Watched {
        end: (!unwanted).then(|| End::from_status(status)),
        output: String::from_utf8_lossy(&kept).into_owned(),
    })
}

impl Child {
    /// Waits until the process ends. Cancel safe.
    pub async fn wait(&mut self) -> End {
        // `wait` fails only when there is no such child any more, which means it was reaped.
        self.inner.wait().await.map_or(End::Unseen, End::from_status)
    }
}
