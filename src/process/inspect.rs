//! Reading `/proc`: who is this process, who works in this directory, who is in this group.
//!
//! Read only. Answers are snapshots; a caller that acts on one must hold something that keeps the
//! pid from being reused (a pidfd, a child handle) or accept that nothing was there.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

/// A process as identified by its id and the moment it started, which no other process shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot (proc(5), stat field 22).
    pub start_ticks: u64,
}

impl ProcessIdentity {
    /// The identity of a living process, `None` when there is none (a zombie counts as gone).
    pub fn of(pid: Pid) -> Option<Self> {
        let stat = Stat::read(pid.as_raw_nonzero().get())?;
        (stat.state != 'Z').then_some(Self { pid: stat.pid, start_ticks: stat.start_ticks })
    }

    /// Whether this very process still lives.
    pub fn is_alive(self) -> bool {
        Stat::read(self.pid).is_some_and(|s| s.start_ticks == self.start_ticks && s.state != 'Z')
    }
}

/// The executable's file name, e.g. `postgres`. `None` when it cannot be read.
pub fn executable_name(pid: Pid) -> Option<OsString> {
    let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = link.file_name()?.to_owned();
    // The kernel marks a replaced executable, e.g. after a package upgrade.
    let text = name.to_string_lossy();
    Some(text.strip_suffix(" (deleted)").map_or(name.clone(), OsString::from))
}

/// The working directory, `None` when it cannot be read.
pub fn working_directory(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// The user that a process runs as; readable for everybody's processes.
pub fn owner(pid: Pid) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    // Real, effective, saved, file system.
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The command line or process title, arguments joined by spaces.
pub fn title(pid: i32) -> Option<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&raw).replace('\0', " ");
    Some(text.trim_end().to_owned())
}

/// What a process has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// Bytes read and written, also from and to caches.
    io_bytes: u64,
    /// Time on a processor, in clock ticks.
    cpu_ticks: u64,
}

impl Activity {
    /// Whether it has done more than look whether there is something to do.
    pub fn is_more_than(self, before: Self) -> bool {
        self.io_bytes.saturating_sub(before.io_bytes) > 256 << 10
            || self.cpu_ticks.saturating_sub(before.cpu_ticks) > 20
    }
}

/// What a process has done so far; `None` when it cannot be read (proc(5), `io` and `stat`).
pub fn activity(pid: i32) -> Option<Activity> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let bytes = io.lines().filter_map(|line| {
        let value = line.strip_prefix("rchar:").or_else(|| line.strip_prefix("wchar:"))?;
        value.trim().parse::<u64>().ok()
    });
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, tail) = stat.rsplit_once(')')?;
    let ticks = tail.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok());
    Some(Activity { io_bytes: bytes.sum(), cpu_ticks: ticks.sum() })
}

/// All living processes whose working directory is `directory`.
pub fn processes_in(directory: &Path) -> Vec<Pid> {
    all_pids()
        .filter(|pid| working_directory(*pid).is_some_and(|cwd| cwd == directory))
        .filter(|pid| ProcessIdentity::of(*pid).is_some())
        .collect()
}

/// All living members of a process group.
pub fn group_members(group: Pid) -> Vec<Pid> {
    let group = group.as_raw_nonzero().get();
    all_pids()
        .filter(|pid| {
            Stat::read(pid.as_raw_nonzero().get())
                .is_some_and(|s| s.group == group && s.state != 'Z')
        })
        .collect()
}

/// All other processes that have a file open, or one that was at its path and is deleted.
pub fn holding_open(file: &Path) -> Vec<Pid> {
    let me = rustix::process::getpid();
    let Ok(file) = file.canonicalize() else { return Vec::new() };
    let deleted = PathBuf::from(format!("{} (deleted)", file.display()));
    let has_it = |pid: &Pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|target| target == file || target == deleted)
    };
    all_pids().filter(|pid| *pid != me).filter(has_it).collect()
}

/// Whether something is mounted at a path. Its device says nothing: a volume may be a directory of
/// the same file system (proc(5), `mountinfo`).
pub fn is_mount_point(path: &Path) -> bool {
    mount_root(path).is_some()
}

/// Which directory of its file system is mounted at a path.
pub fn mount_root(path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let shown = path.to_string_lossy().replace('\\', "\\134").replace(' ', "\\040");
    // The last one covers those before it.
    let mut lines = mounts.lines().rev().map(|line| line.split(' ').skip(3));
    lines.find_map(|mut fields| {
        let (root, point) = (fields.next()?, fields.next()?);
        (point == shown).then(|| root.to_owned())
    })
}

fn all_pids() -> impl Iterator<Item = Pid> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
}

struct Stat {
    pid: i32,
    state: char,
    group: i32,
    start_ticks: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// `pid (comm) state ppid pgrp ...`; comm may hold spaces and parentheses, so cut at the last.
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let pid = head.split_once(' ')?.0.parse().ok()?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_line_with_a_hostile_name() {
        let line = "4242 (a) R 1 (b) S 7 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.pid, stat.state, stat.group), (4242, 'S', 4242));
        assert_eq!(stat.start_ticks, 987_654);
    }

    #[test]
    fn mount_points() {
        assert!(is_mount_point(Path::new("/")) && is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/self")) && !is_mount_point(Path::new("/no such")));
    }

    #[test]
    fn this_process_is_alive_and_another_start_is_not_it() {
        let me = Pid::from_raw(i32::try_from(std::process::id()).unwrap()).unwrap();
        let identity = ProcessIdentity::of(me).unwrap();
        assert!(identity.is_alive());
        let other = ProcessIdentity { start_ticks: identity.start_ticks + 1, ..identity };
        assert!(!other.is_alive());
    }
}
