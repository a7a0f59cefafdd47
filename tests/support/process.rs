//! What `/proc` shows of an instance's processes.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// A living process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) state: char,
    /// The executable's file name.
    pub(crate) program: String,
    /// The command line, arguments joined by blanks.
    pub(crate) title: String,
}

impl Process {
    /// Reads one; `None` when it is gone.
    pub(crate) fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            state: fields.first()?.chars().next()?,
            program: exe.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            title: String::from_utf8_lossy(&title).replace('\0', " ").trim_end().to_owned(),
        })
    }

    /// Whether it still does something.
    pub(crate) fn lives(pid: i32) -> bool {
        Self::read(pid).is_some_and(|process| process.state != 'Z')
    }

    /// A line of `/proc/PID/status`, without its name.
    pub(crate) fn status(pid: i32, field: &str) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    }
}

/// All processes there are.
pub(crate) fn all() -> Vec<Process> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// The living processes of an instance: those that work in its directory or have a variable that
/// names a path there.
pub(crate) fn below(root: &Path) -> Vec<Process> {
    all().into_iter().filter(|p| p.state != 'Z' && belongs(p.pid, root)).collect()
}

fn belongs(pid: i32, root: &Path) -> bool {
    working_directory(pid).is_some_and(|directory| directory.starts_with(root)) || {
        let needle = format!("={}/", root.display()).into_bytes();
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.windows(needle.len()).any(|window| window == needle)
    }
}

/// Where a process works.
pub(crate) fn working_directory(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// Sends a signal to one process; that it is gone already is fine.
pub(crate) fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a pid");
    assert_ne!(pid, rustix::process::getpid());
    let _ = kill_process(pid, signal);
}
