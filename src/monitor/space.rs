//! Room on the file systems that matter.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::domain::health::Disk;

/// The file systems of these places, each once, named by what is on it. A place that is not there is
/// passed over.
pub(super) fn disks(places: impl IntoIterator<Item = (String, PathBuf)>) -> Vec<Disk> {
    let mut found: BTreeMap<u64, (Disk, Vec<String>)> = BTreeMap::new();
    for (what, path) in places {
        let Some((device, free_bytes, total_bytes)) = look(&path) else { continue };
        let disk = Disk { what: String::new(), free_bytes, total_bytes };
        found.entry(device).or_insert((disk, Vec::new())).1.push(what);
    }
    let named = |(disk, whats): (Disk, Vec<String>)| Disk { what: whats.join(", "), ..disk };
    found.into_values().map(named).collect()
}

fn look(path: &Path) -> Option<(u64, u64, u64)> {
    let device = path.metadata().ok()?.dev();
    let space = rustix::fs::statvfs(path).ok()?;
    // What this user may still write, not what root could.
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    Some((device, free, space.f_blocks.saturating_mul(space.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_one_file_system_are_one() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        let missing = directory.path().join("missing");
        let places = [("PGDATA", a), ("repository", b), ("pg_wal", missing)];
        let found = disks(places.map(|(what, path)| (what.to_owned(), path)));
        let [disk] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(disk.what, "PGDATA, repository");
        assert!(disk.free_bytes > 0 && disk.free_bytes <= disk.total_bytes);
    }
}
