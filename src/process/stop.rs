//! Ending a process group: a signal, a grace, then SIGKILL; nobody of the group stays.

use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::end::End;
use super::inspect;
use super::spawn::Child;

/// How often a group that is ending is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long the kernel may take to end a group after SIGKILL before we say so.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// How a group was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Everybody left within the grace.
    InTime,
    /// SIGKILL was needed.
    Killed,
    /// Some process is still there (uninterruptible I/O).
    StillThere,
}

/// Ends a child and everybody in its group: SIGTERM, `grace`, SIGKILL. `hurry` skips the grace.
pub async fn stop(child: &mut Child, grace: Duration, hurry: &CancellationToken) -> (End, Stopped) {
    let group = child.pid;
    signal_group(group, Signal::TERM);
    let in_time = tokio::select! {
        end = child.wait() => Some(end),
        () = sleep(grace) => None,
        () = hurry.cancelled() => None,
    };
    if let Some(end) = in_time {
        // The main process has left in order; its workers follow or are made to.
        let stopped = stop_group(group, Duration::from_secs(1)).await;
        (end, stopped)
    } else {
        signal_group(group, Signal::KILL);
        let end = child.wait().await;
        let gone = wait_gone(group, KILL_PATIENCE).await;
        (end, if gone { Stopped::Killed } else { Stopped::StillThere })
    }
}

/// Ends a group of which we hold no handle (left over from an earlier run of this service).
pub async fn stop_group(group: Pid, grace: Duration) -> Stopped {
    if !group_exists(group) {
        return Stopped::InTime;
    }
    signal_group(group, Signal::TERM);
    if wait_gone(group, grace).await {
        return Stopped::InTime;
    }
    signal_group(group, Signal::KILL);
    if wait_gone(group, KILL_PATIENCE).await { Stopped::Killed } else { Stopped::StillThere }
}

/// Sends a signal to one process. A process that is already gone is fine.
pub fn signal_process(pid: Pid, signal: Signal) {
    if let Err(error) = kill_process(pid, signal)
        && error != Errno::SRCH
    {
        tracing::warn!(process.pid = %pid, ?signal, %error, "cannot signal process {pid}");
    }
}

/// Whether any living process is in the group.
pub fn group_exists(group: Pid) -> bool {
    // A zombie still answers signal 0, so the cheap question comes first and /proc decides.
    !matches!(test_kill_process_group(group), Err(Errno::SRCH))
        && !inspect::group_members(group).is_empty()
}

/// Sends a signal to everybody in a group. A group that is already gone is fine.
pub fn signal_group(group: Pid, signal: Signal) {
    if let Err(error) = kill_process_group(group, signal)
        && error != Errno::SRCH
    {
        tracing::warn!(process.group = %group, ?signal, %error, "cannot signal group {group}");
    }
}

async fn wait_gone(group: Pid, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if !group_exists(group) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(LOOK_EVERY).await;
    }
}
