//! Hard links to the WAL of a server that is about to be stopped, in a directory beside it.
//!
//! At its shutdown a server archives once more, and its last checkpoint removes the segments that the
//! archiver has reported as archived. With `archive-push-queue-max` pgBackRest reports segments that it has
//! dropped, so `pg_wal` has the only copy. The links keep these segments until the restore has saved what
//! the repositories do not have.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::pg_wal::{begins_with_own_page, segment_of};
use crate::domain::SegmentSize;
use crate::pgbackrest::listing;

/// The directory in `pg_wal`. PostgreSQL and pgBackRest take no notice of it.
const DIRECTORY: &str = "headrest-saved";

/// Links what is there and was not linked yet.
pub fn add(pg_wal: &Path, size: SegmentSize) -> io::Result<()> {
    let directory = pg_wal.join(DIRECTORY);
    match fs::DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for entry in fs::read_dir(pg_wal)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if segment_of(&path, size).is_none() && listing::history(name).is_none() {
            continue;
        }
        match fs::hard_link(&path, directory.join(name)) {
            // Linked before, or removed meanwhile.
            Err(error)
                if error.kind() != io::ErrorKind::AlreadyExists
                    && error.kind() != io::ErrorKind::NotFound =>
            {
                return Err(error);
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The linked segments that `pg_wal` itself does not have any more.
pub fn left(pg_wal: &Path, size: SegmentSize) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(pg_wal.join(DIRECTORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let Some(segment) = segment_of(&path, size) else { continue };
        let there = pg_wal.join(segment.to_string());
        if begins_with_own_page(&path, segment)? && !begins_with_own_page(&there, segment)? {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Removes the links. Can be done again.
pub fn remove(pg_wal: &Path) -> io::Result<()> {
    match fs::remove_dir_all(pg_wal.join(DIRECTORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_checkpoint_removes_is_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let size = SegmentSize::DEFAULT;
        let write = |number: u64| {
            let name = format!("0000000100000000{number:08X}");
            let mut page = vec![0u8; 8192];
            page[4..8].copy_from_slice(&1u32.to_ne_bytes());
            page[8..16].copy_from_slice(&(number * size.get()).to_ne_bytes());
            fs::write(dir.path().join(&name), page).unwrap();
            name
        };
        assert_eq!(left(dir.path(), size).unwrap(), Vec::<PathBuf>::new());
        let (three, four) = (write(3), write(4));
        add(dir.path(), size).unwrap();
        let five = write(5);
        add(dir.path(), size).unwrap();
        assert_eq!(left(dir.path(), size).unwrap(), Vec::<PathBuf>::new());
        // One is removed, one is recycled.
        fs::remove_file(dir.path().join(&three)).unwrap();
        fs::rename(dir.path().join(&four), dir.path().join("000000010000000000000006")).unwrap();
        let names = [&three, &four].map(|name| dir.path().join(DIRECTORY).join(name));
        assert_eq!(left(dir.path(), size).unwrap(), names);
        assert!(dir.path().join(&five).exists());
        remove(dir.path()).unwrap();
        remove(dir.path()).unwrap();
        assert_eq!(left(dir.path(), size).unwrap(), Vec::<PathBuf>::new());
    }
}
