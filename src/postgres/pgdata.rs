//! Looking at PGDATA: whose it is, whether a server runs on it, whether it is a database at all.
//!
//! Reads; the one thing it may remove is a `postmaster.pid` that provably belongs to nobody.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::process::Pid;

use crate::domain::Timeline;
use crate::domain::restore::FileIdentity;
use crate::process::inspect;

/// `postmaster.pid` (PostgreSQL source, `miscadmin.h`, "lock file contents").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFile {
    /// Line 1. Negative for a standalone backend.
    pub pid: i32,
    /// Line 4.
    pub port: Option<u16>,
    /// Line 5, empty when there is no socket.
    pub socket_dir: Option<PathBuf>,
    /// Line 8.
    pub status: PostmasterStatus,
}

/// The status line of `postmaster.pid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostmasterStatus {
    /// Not there yet, or an unknown word.
    Unknown,
    /// Start-up or recovery before consistency.
    Starting,
    /// Shutting down.
    Stopping,
    /// Accepts connections.
    Ready,
    /// A standby that does not accept connections.
    Standby,
}

impl PidFile {
    /// Reads it; `None` when there is none.
    pub fn read(pgdata: &Path) -> io::Result<Option<Self>> {
        match fs::read_to_string(pgdata.join("postmaster.pid")) {
            Ok(text) => Ok(Some(Self::parse(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Parses it; a file that makes no sense has pid 0, which no process has.
    pub fn parse(text: &str) -> Self {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let line = |n: usize| lines.get(n - 1).copied().filter(|text| !text.is_empty());
        Self {
            pid: line(1).and_then(|text| text.parse().ok()).unwrap_or(0),
            port: line(4).and_then(|text| text.parse().ok()),
            socket_dir: line(5).map(PathBuf::from),
            status: match line(8) {
                Some("starting") => PostmasterStatus::Starting,
                Some("stopping") => PostmasterStatus::Stopping,
                Some("ready") => PostmasterStatus::Ready,
                Some("standby") => PostmasterStatus::Standby,
                _ => PostmasterStatus::Unknown,
            },
        }
    }
}

/// Whether a server runs on a PGDATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// No, and no file says so.
    Nobody,
    /// `postmaster.pid` names a process that is not a server of this PGDATA, or no process.
    Stale,
    /// This postmaster.
    Postmaster(Pid),
    /// Server processes without a postmaster still work in it.
    Orphans(Pid),
    /// There is a pid whose process we may not look at.
    Unknown(i32),
}

/// Looks whether a server runs on PGDATA. A pid is believed only when that process's executable
/// is `postgres` and its working directory is this PGDATA: in a container a stale pid may name
/// any process, even a thread of our own.
pub fn occupant(pgdata: &Path) -> io::Result<Occupant> {
    let real = pgdata.canonicalize()?;
    let file = PidFile::read(pgdata)?;
    if let Some(pid) = file.as_ref().and_then(|file| Pid::from_raw(file.pid.abs()))
        && inspect::ProcessIdentity::of(pid).is_some()
    {
        match (inspect::executable_name(pid), inspect::working_directory(pid)) {
            (Some(name), Some(directory)) => {
                if name == "postgres" && directory == real {
                    return Ok(Occupant::Postmaster(pid));
                }
            }
            // A server of this PGDATA runs as its owner, which is us. PostgreSQL itself sees it so.
            _ if inspect::owner(pid)
                .is_some_and(|uid| uid != rustix::process::geteuid().as_raw()) => {}
            _ => return Ok(Occupant::Unknown(file.map_or(0, |file| file.pid))),
        }
    }
    if let Some(orphan) = servers_in(&real).first() {
        return Ok(Occupant::Orphans(*orphan));
    }
    Ok(if file.is_some() { Occupant::Stale } else { Occupant::Nobody })
}

/// All server processes that work in PGDATA.
pub fn servers_in(pgdata: &Path) -> Vec<Pid> {
    let Ok(real) = pgdata.canonicalize() else { return Vec::new() };
    inspect::processes_in(&real)
        .into_iter()
        .filter(|pid| inspect::executable_name(*pid).is_some_and(|name| name == "postgres"))
        .collect()
}

/// Removes a `postmaster.pid` that [`occupant`] just called stale.
pub fn remove_stale_pid_file(pgdata: &Path) -> io::Result<()> {
    fs::remove_file(pgdata.join("postmaster.pid"))
}

/// Whether PGDATA holds a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// There is nothing, not even the directory perhaps: initdb may make a cluster.
    Empty,
    /// A cluster of this major version.
    Cluster(u16),
    /// A restore that did not end: a server must not be started on it.
    HalfRestored(&'static str),
    /// Files, but not a cluster.
    Foreign,
}

/// Looks what PGDATA holds.
pub fn content(pgdata: &Path) -> io::Result<Content> {
    let entries: Vec<_> = match fs::read_dir(pgdata) {
        Ok(entries) => entries.collect::<Result<_, _>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Content::Empty),
        Err(error) => return Err(error),
    };
    // A fresh volume has this one, made by mkfs.
    if entries.iter().all(|entry| entry.file_name() == "lost+found") {
        return Ok(Content::Empty);
    }
    let there = |name: &str| pgdata.join(name).exists();
    if there("global/pg_control.pgbackrest.tmp") {
        return Ok(Content::HalfRestored("global/pg_control.pgbackrest.tmp is there"));
    }
    if there("backup.manifest") && !there("global/pg_control") {
        return Ok(Content::HalfRestored("backup.manifest is there and global/pg_control is not"));
    }
    match major_version(pgdata) {
        Some(_) if !there("global/pg_control") => {
            Ok(Content::HalfRestored("global/pg_control is missing"))
        }
        Some(major) => Ok(Content::Cluster(major)),
        None => Ok(Content::Foreign),
    }
}

/// The major version in `PG_VERSION`.
pub fn major_version(pgdata: &Path) -> Option<u16> {
    fs::read_to_string(pgdata.join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// The device and inode of PGDATA.
pub fn identity(pgdata: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(pgdata)?;
    Ok((meta.dev(), meta.ino()))
}

/// What identifies `global/pg_control` as it is now; `None` when it is not there.
pub fn control_file(pgdata: &Path) -> Option<FileIdentity> {
    let meta = fs::metadata(pgdata.join("global/pg_control")).ok()?;
    let written_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    Some(FileIdentity { device: meta.dev(), inode: meta.ino(), written_ns })
}

/// What a walk through PGDATA shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// The first entry that does not belong to us, or a directory that we cannot change. A restore
    /// would fail on it, but only after `pg_control` is gone. Also in what its links lead to.
    pub foreign: Option<PathBuf>,
    /// Bytes that its files take on the disk. Links are not followed.
    pub disk_bytes: u64,
    /// Links in it, each with where it leads.
    pub links: Vec<(PathBuf, PathBuf)>,
}

/// Walks through PGDATA on behalf of `uid`.
pub fn survey(pgdata: &Path, uid: u32) -> io::Result<Survey> {
    let mut found = Survey::default();
    walk(pgdata, uid, &mut found)?;
    let version = major_version(pgdata).map(|major| format!("PG_{major}_"));
    for (link, _) in found.links.clone() {
        let Ok(real) = fs::canonicalize(&link) else { continue };
        if fs::canonicalize(pgdata).is_ok_and(|pgdata| real.starts_with(pgdata)) {
            continue;
        }
        let of_tablespace = link.parent().is_some_and(|parent| parent.ends_with("pg_tblspc"));
        let mut beyond = Survey::default();
        // What other links lead to stays, unless the set has it.
        if link == pgdata.join("pg_wal") {
            if real.is_dir() {
                walk(&real, uid, &mut beyond)?;
            }
        } else if !of_tablespace {
            continue;
        } else if let (Some(version), Ok(entries)) = (&version, fs::read_dir(&real)) {
            // What other clusters have there is theirs.
            let own = entries.flatten().map(|entry| entry.path());
            let name = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(version.as_str())
            };
            for directory in own.filter(name) {
                if fs::symlink_metadata(&directory).is_ok_and(|meta| meta.uid() != uid) {
                    beyond.foreign.get_or_insert(directory.clone());
                }
                walk(&directory, uid, &mut beyond)?;
            }
        }
        found.foreign = found.foreign.or(beyond.foreign);
    }
    Ok(found)
}

/// Adds what is below a directory. Links are not followed.
fn walk(directory: &Path, uid: u32, found: &mut Survey) -> io::Result<()> {
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            // A running server removes things under our eyes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                found.foreign.get_or_insert(directory);
                continue;
            }
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // Of a directory that can be listed and not be entered.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    found.foreign.get_or_insert(entry.path());
                    continue;
                }
                meta => meta?,
            };
            let closed = meta.is_dir() && meta.mode() & 0o300 != 0o300;
            if meta.uid() != uid || closed {
                found.foreign.get_or_insert(entry.path());
            }
            if meta.is_dir() {
                pending.push(entry.path());
            } else if meta.is_symlink() {
                let target = fs::read_link(entry.path()).unwrap_or_default();
                found.links.push((entry.path(), target));
            } else {
                found.disk_bytes += meta.blocks() * 512;
            }
        }
    }
    Ok(())
}

/// Where PGDATA really is, when it is reached through a link.
pub fn behind_link(pgdata: &Path) -> Option<PathBuf> {
    fs::canonicalize(pgdata).ok().filter(|real| real != pgdata)
}

/// Whether a file is there and its own mode keeps its owner from writing to it.
pub fn is_read_only(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o200 == 0)
}

/// Makes what `pgbackrest restore --type=preserve` leaves a standby that PostgreSQL can start: settings
/// that can be written, and the signal file. Reaches the disk.
pub fn prepare_for_recovery(pgdata: &Path) -> io::Result<()> {
    let settings = pgdata.join("postgresql.auto.conf");
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o600))?;
    fs::File::open(&settings)?.sync_all()?;
    match fs::remove_file(pgdata.join("recovery.signal")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let signal = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(pgdata.join("standby.signal"))?;
    signal.sync_all()?;
    fs::File::open(pgdata)?.sync_all()
}

/// Bytes that are free for us on the file system of a path, or of what is nearest above it.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(there)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// When a server that is down wrote last, as far as the times of its files tell.
pub fn last_written(pgdata: &Path) -> Option<Timestamp> {
    let wal = fs::read_dir(pgdata.join("pg_wal")).into_iter().flatten().flatten();
    let files = wal.map(|entry| entry.path()).chain([pgdata.join("global/pg_control")]);
    let times = files.filter_map(|path| fs::metadata(path).ok()?.modified().ok());
    times.max().and_then(|time| Timestamp::try_from(time).ok())
}

/// Why a server that was not told to recover must not be started on PGDATA: a restore that nobody
/// remembers was not carried to its end. `timeline` is the control data's, when it says that the
/// cluster is out of recovery.
pub fn unfinished_recovery(pgdata: &Path, timeline: Option<Timeline>) -> Option<&'static str> {
    let signal = ["standby.signal", "recovery.signal"].iter().any(|n| pgdata.join(n).exists());
    let settings = fs::read_to_string(pgdata.join("postgresql.auto.conf")).unwrap_or_default();
    let fetches = |line: &str| {
        line.trim_start().starts_with("restore_command") && line.contains("archive-get")
    };
    if signal && settings.lines().any(fetches) {
        return Some("it was being recovered from a pgBackRest restore");
    }
    // A promotion writes the history of the new timeline first, and is durable only when the control
    // data names it. Started in between, PostgreSQL goes on on the old timeline, with rows past
    // the target (design/restore.md).
    let histories = fs::read_dir(pgdata.join("pg_wal")).into_iter().flatten().flatten();
    let numbers = histories.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        u32::from_str_radix(name.strip_suffix(".history")?, 16).ok()
    });
    let newest = numbers.max()?;
    (newest > timeline?.get()).then_some("its promotion to a new timeline was not durable yet")
}

/// Whether PGDATA shows that a server on it would recover, or was recovering: a restore was not
/// carried to its end.
pub fn recovers(pgdata: &Path) -> bool {
    ["standby.signal", "recovery.signal", "backup_label"].iter().any(|n| pgdata.join(n).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_files() {
        let full = "4242\n/data\n1700000000\n5433\n/run/pg\nlocalhost\n  1 2\nready   \n";
        let cases = [
            (full, 4242, Some(5433), PostmasterStatus::Ready),
            ("4242\n/data\n1700000000\n5433\n\n*\n", 4242, Some(5433), PostmasterStatus::Unknown),
            ("", 0, None, PostmasterStatus::Unknown),
            ("garbage\n\0\n", 0, None, PostmasterStatus::Unknown),
            ("-17\n/data\n", -17, None, PostmasterStatus::Unknown),
        ];
        for (text, pid, port, status) in cases {
            let file = PidFile::parse(text);
            assert_eq!((file.pid, file.port, file.status), (pid, port, status), "{text:?}");
        }
        assert_eq!(PidFile::parse(full).socket_dir.unwrap(), Path::new("/run/pg"));
    }

    #[test]
    fn a_pid_of_somebody_else_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(occupant(dir.path()).unwrap(), Occupant::Nobody);
        for text in [std::process::id().to_string(), "999999999".into(), String::new(), "x".into()]
        {
            fs::write(dir.path().join("postmaster.pid"), &text).unwrap();
            assert_eq!(occupant(dir.path()).unwrap(), Occupant::Stale, "{text:?}");
        }
        // Our own threads have ids too; kill(tid, 0) says alive.
        for entry in fs::read_dir("/proc/self/task").unwrap() {
            let tid = entry.unwrap().file_name().into_string().unwrap();
            fs::write(dir.path().join("postmaster.pid"), &tid).unwrap();
            assert_eq!(occupant(dir.path()).unwrap(), Occupant::Stale, "thread {tid}");
        }
    }

    #[test]
    fn contents() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(content(&at("missing")).unwrap(), Content::Empty);
        assert_eq!(content(dir.path()).unwrap(), Content::Empty);
        fs::create_dir(at("lost+found")).unwrap();
        assert_eq!(content(dir.path()).unwrap(), Content::Empty);
        fs::write(at("notes.txt"), "").unwrap();
        assert_eq!(content(dir.path()).unwrap(), Content::Foreign);
        fs::write(at("PG_VERSION"), "15\n").unwrap();
        assert!(matches!(content(dir.path()).unwrap(), Content::HalfRestored(_)));
        fs::create_dir(at("global")).unwrap();
        fs::write(at("global/pg_control"), "").unwrap();
        assert_eq!(content(dir.path()).unwrap(), Content::Cluster(15));
        fs::write(at("global/pg_control.pgbackrest.tmp"), "").unwrap();
        assert!(matches!(content(dir.path()).unwrap(), Content::HalfRestored(_)));
    }
}
