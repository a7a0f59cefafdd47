//! Runs an [`Invocation`]: with its output followed line by line, or captured whole.
//!
//! The only part of this module tree with side effects. Decides nothing about what an ending
//! means; see [`super::exit`] for that.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt as _;
use tokio::time::{Instant, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::command::Invocation;
use crate::process::inspect::ProcessIdentity;
use crate::process::lines::LineSplitter;
use crate::process::{self, CaptureError, Captured, End, Program, SpawnError, stop};

/// How long a captured command may take.
const CAPTURE_PATIENCE: Duration = Duration::from_secs(60);
/// How long a command may take to end after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(10);
/// How often a sink's clock ticks.
const TICK: Duration = Duration::from_secs(1);
/// How long the pipes may stay open after the main process left and its group was ended.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// pgBackRest as it is installed and configured here.
#[derive(Debug, Clone)]
pub struct Tool {
    /// The executable.
    pub binary: PathBuf,
    /// The environment of every run.
    pub env: BTreeMap<String, String>,
}

/// What happens while a command is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output, where log lines go.
    Out,
    /// Its standard error.
    Err,
}

/// Receives the lines of a followed command; awaiting it slows the command down, so nothing piles
/// up in memory.
pub trait Sink: Send {
    /// The process was started.
    fn started(&mut self, process: ProcessIdentity) -> impl Future<Output = ()> + Send;
    /// Some complete lines, in order.
    fn lines(&mut self, stream: Stream, lines: Vec<String>) -> impl Future<Output = ()> + Send;
    /// About once a second, whether there are lines or not.
    fn tick(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// How a followed run is ended early.
#[derive(Debug, Clone)]
pub struct Stopping {
    /// Cancelled: SIGTERM, then SIGKILL after [`GRACE`].
    pub cancel: CancellationToken,
    /// Cancelled as well: no grace.
    pub hurry: CancellationToken,
}

impl Tool {
    /// Runs a command to its end and hands its lines to `sink`. Whatever happens, nobody of its
    /// process group is left when this returns.
    pub async fn follow<S: Sink>(
        &self,
        invocation: &Invocation,
        env: &BTreeMap<String, String>,
        inherit: Option<OwnedFd>,
        stopping: &Stopping,
        sink: &mut S,
    ) -> Result<End, SpawnError> {
        let mut child = self.program(invocation, env, inherit).spawn()?;
        if let Some(identity) = ProcessIdentity::of(child.pid) {
            sink.started(identity).await;
        }
        let (Some(mut out), Some(mut err)) = (child.stdout.take(), child.stderr.take()) else {
            return Ok(child.wait().await);
        };
        let (mut out_lines, mut err_lines) = (LineSplitter::new(), LineSplitter::new());
        let (mut out_open, mut err_open) = (true, true);
        let (mut out_buffer, mut err_buffer) = (vec![0; 64 << 10], vec![0; 8 << 10]);
        let mut end = None;
        let mut kill_at: Option<Instant> = None;
        let mut drain_until: Option<Instant> = None;
        let mut tick = interval(TICK);
        // Until the main process has ended and both pipes are read to their end.
        while end.is_none() || out_open || err_open {
            tokio::select! {
                read = out.read(&mut out_buffer), if out_open => {
                    let n = read.unwrap_or(0);
                    out_open = n > 0;
                    let lines = out_lines.feed(&out_buffer[..n]);
                    if !lines.is_empty() {
                        sink.lines(Stream::Out, lines).await;
                    }
                }
                read = err.read(&mut err_buffer), if err_open => {
                    let n = read.unwrap_or(0);
                    err_open = n > 0;
                    let lines = err_lines.feed(&err_buffer[..n]);
                    if !lines.is_empty() {
                        sink.lines(Stream::Err, lines).await;
                    }
                }
                _ = tick.tick() => sink.tick().await,
                how = child.wait(), if end.is_none() => {
                    end = Some(how);
                    drain_until = Some(Instant::now() + DRAIN_PATIENCE);
                    end_group(child.pid).await;
                }
                () = stopping.cancel.cancelled(), if end.is_none() && kill_at.is_none() => {
                    stop::signal_group(child.pid, Signal::TERM);
                    kill_at = Some(Instant::now() + GRACE);
                }
                () = patience_ends(kill_at, &stopping.hurry), if end.is_none() => {
                    stop::signal_group(child.pid, Signal::KILL);
                    kill_at = Some(Instant::now() + GRACE);
                }
                () = at(drain_until), if end.is_some() => break,
            }
        }
        for (stream, mut lines) in [(Stream::Out, out_lines), (Stream::Err, err_lines)] {
            if let Some(last) = lines.finish() {
                sink.lines(stream, vec![last]).await;
            }
        }
        Ok(end.unwrap_or(End::Unseen))
    }

    /// Runs a command to its end and keeps its whole standard output.
    pub async fn capture(
        &self,
        invocation: &Invocation,
        env: &BTreeMap<String, String>,
    ) -> Result<Captured, CaptureError> {
        process::capture(self.program(invocation, env, None), CAPTURE_PATIENCE).await
    }

    fn program(
        &self,
        invocation: &Invocation,
        env: &BTreeMap<String, String>,
        inherit: Option<OwnedFd>,
    ) -> Program {
        let mut program = Program::new(&self.binary);
        program.args.clone_from(&invocation.args);
        program.env.clone_from(&self.env);
        program.env.extend(env.iter().map(|(name, value)| (name.clone(), value.clone())));
        program.inherit = inherit;
        program
    }
}

/// Ends what the main process left behind: there is nothing useful a worker could still do.
async fn end_group(group: Pid) {
    if stop::group_exists(group) {
        stop::stop_group(group, Duration::from_secs(2)).await;
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Ends when the grace of a cancelled command is over, or nobody wants to wait for it any more.
async fn patience_ends(kill_at: Option<Instant>, hurry: &CancellationToken) {
    match kill_at {
        Some(at) => tokio::select! {
            () = sleep_until(at) => {}
            () = hurry.cancelled() => sleep(Duration::from_millis(50)).await,
        },
        None => std::future::pending().await,
    }
}
