//! Where volumes have their cluster: since PostgreSQL 18 in a directory of its version.

use std::fs;
use std::path::{Path, PathBuf};

use crate::process::inspect::is_mount_point;

/// From this major version on data belongs into a directory of its version.
const VERSIONED_LAYOUT: u16 = 18;

/// What a volume of the layout before 18 would be lost behind: a cluster in one of the places
/// where it may have been, or something mounted at the old place.
pub(super) fn former_layout(data_dir: &Path) -> Option<PathBuf> {
    let version = data_dir.parent()?;
    let major: u16 = version.file_name()?.to_str()?.parse().ok()?;
    if major < VERSIONED_LAYOUT || data_dir.file_name()? != "docker" {
        return None;
    }
    let root = version.parent()?;
    let mut places = vec![root.to_owned(), root.join("data")];
    let others = fs::read_dir(root).into_iter().flatten().flatten();
    places.extend(others.map(|entry| entry.path().join("docker")));
    let old = root.join("data");
    let cluster = places.into_iter().find(|place| place.join("PG_VERSION").exists());
    cluster.or_else(|| is_mount_point(&old).then(|| old.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_the_former_layout_are_found() {
        let root = tempfile::tempdir().unwrap();
        let data_dir = root.path().join("18/docker");
        assert_eq!(former_layout(&data_dir), None);
        assert_eq!(former_layout(&root.path().join("data")), None);
        for place in ["data", "17/docker", ""] {
            let place = root.path().join(place);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("PG_VERSION"), "17\n").unwrap();
            assert_eq!(former_layout(&data_dir).as_ref(), Some(&place));
            fs::remove_file(place.join("PG_VERSION")).unwrap();
        }
        assert_eq!(former_layout(&data_dir), None);
        fs::write(root.path().join("PG_VERSION"), "17\n").unwrap();
        assert_eq!(former_layout(&root.path().join("17/docker")), None);
    }
}
