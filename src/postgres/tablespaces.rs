//! Tablespaces as the file system shows them: links in `pg_tblspc`, and the directory of the cluster's
//! version in each location (PostgreSQL source, `TABLESPACE_VERSION_DIRECTORY`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::domain::restore::Tablespace;

/// How much older than a moment a file must be to count as older: clocks of file systems are coarse.
const COARSE: Duration = Duration::from_millis(100);
/// The OIDs of the tablespaces that every cluster has.
pub const PG_DEFAULT: u32 = 1663;
const PG_GLOBAL: u32 = 1664;
/// The most entries that are looked at to tell the age of a directory.
const MOST_ENTRIES: usize = 100_000;

/// The tablespaces that PGDATA links. Those that are directories in `pg_tblspc` itself go with PGDATA.
pub fn linked(pgdata: &Path) -> io::Result<Vec<Tablespace>> {
    let entries = match fs::read_dir(pgdata.join("pg_tblspc")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if !entry.file_type()?.is_symlink() {
            continue;
        }
        let location = fs::read_link(entry.path())?;
        let real = fs::canonicalize(entry.path()).ok();
        found.push(Tablespace { oid, location, real });
    }
    found.sort_by_key(|tablespace| tablespace.oid);
    Ok(found)
}

/// The name of the directory that a cluster's files have in the location of a tablespace.
pub fn version_dir(major: u16, catalog_version: u64) -> String {
    format!("PG_{major}_{catalog_version}")
}

/// Where a tablespace of a cluster has its files; `None` where the version's directory must be known and
/// is not.
pub fn directory(pgdata: &Path, version_dir: Option<&str>, oid: u32) -> Option<PathBuf> {
    match oid {
        PG_DEFAULT => Some(pgdata.join("base")),
        PG_GLOBAL => Some(pgdata.join("global")),
        _ => Some(pgdata.join("pg_tblspc").join(oid.to_string()).join(version_dir?)),
    }
}

/// Whether something in a directory, or the directory itself, was there before a moment.
pub fn holds_older_than(directory: &Path, moment: Timestamp) -> io::Result<bool> {
    let Some(moment) = SystemTime::from(moment).checked_sub(COARSE) else { return Ok(false) };
    let mut pending = vec![directory.to_owned()];
    let mut looked_at = 0;
    while let Some(path) = pending.pop() {
        looked_at += 1;
        if looked_at > MOST_ENTRIES {
            break;
        }
        match first_seen(&path) {
            Ok(seen) if seen < moment => return Ok(true),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
        if path.is_dir() {
            let entries = fs::read_dir(&path)?.collect::<Result<Vec<_>, _>>()?;
            pending.extend(entries.iter().map(fs::DirEntry::path));
        }
    }
    Ok(false)
}

/// When a file was made, where the file system tells; else when it was last changed: by then it was
/// there.
fn first_seen(path: &Path) -> io::Result<SystemTime> {
    let wanted = StatxFlags::BTIME | StatxFlags::CTIME | StatxFlags::MTIME;
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
    let at = |time: rustix::fs::StatxTimestamp| {
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
        SystemTime::UNIX_EPOCH + seconds + Duration::from_nanos(time.tv_nsec.into())
    };
    let has = |flag: StatxFlags| StatxFlags::from_bits_retain(stat.stx_mask).contains(flag);
    let times = [
        (StatxFlags::BTIME, stat.stx_btime),
        (StatxFlags::CTIME, stat.stx_ctime),
        (StatxFlags::MTIME, stat.stx_mtime),
    ];
    let known = times.into_iter().filter(|(flag, _)| has(*flag)).map(|(_, time)| at(time));
    known.min().ok_or_else(|| io::Error::other("the file system tells no time"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_and_the_age_of_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (pgdata, place) = (dir.path().join("data"), dir.path().join("place"));
        fs::create_dir_all(pgdata.join("pg_tblspc/16500")).unwrap();
        fs::create_dir(&place).unwrap();
        assert_eq!(linked(&dir.path().join("none")).unwrap(), []);
        symlink(&place, dir.path().join("link")).unwrap();
        symlink(dir.path().join("link"), pgdata.join("pg_tblspc/16400")).unwrap();
        symlink("/no/such", pgdata.join("pg_tblspc/16390")).unwrap();
        let found = linked(&pgdata).unwrap();
        assert_eq!(found.iter().map(|t| t.oid).collect::<Vec<_>>(), [16390, 16400]);
        assert_eq!(found[0].real, None);
        assert_eq!(found[1].location, dir.path().join("link"));
        assert_eq!(found[1].real, Some(place.canonicalize().unwrap()));
        fs::write(place.join("file"), "").unwrap();
        let at = |seconds: i64| {
            let now = crate::clock::now();
            now + jiff::SignedDuration::from_secs(seconds)
        };
        assert!(holds_older_than(&place, at(1)).unwrap());
        assert!(!holds_older_than(&place, at(-10)).unwrap());
        assert_eq!(version_dir(15, 202_209_061), "PG_15_202209061");
    }
}
