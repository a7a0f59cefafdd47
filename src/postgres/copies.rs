//! The mark of a PGDATA that was made of another server's backups.
//!
//! Such a copy must not archive into the repository it came from. The mark is kept in the state
//! directory, from before anything is restored, and in PGDATA, because that may move without it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::durable::write_durably;

const IN_STATE: &str = "copy";
const IN_PGDATA: &str = "headrest-copy";
const TEXT: &str = "PGDATA was made of a repository that another server archives to. Headrest's\n\
                    HEADREST_BOOTSTRAP_ARCHIVE=on makes it the original.\n";

fn places(state_dir: &Path, data_dir: &Path) -> [PathBuf; 2] {
    [state_dir.join(IN_STATE), data_dir.join(IN_PGDATA)]
}

/// Whether PGDATA is one.
pub fn is_marked(state_dir: &Path, data_dir: &Path) -> bool {
    places(state_dir, data_dir).iter().any(|place| place.exists())
}

/// Makes the marks durable; the one in PGDATA when there is a cluster to be marked.
pub fn mark(state_dir: &Path, data_dir: Option<&Path>) -> io::Result<()> {
    write_durably(&state_dir.join(IN_STATE), TEXT)?;
    data_dir.map_or(Ok(()), |data_dir| write_durably(&data_dir.join(IN_PGDATA), TEXT))
}

/// It is the original from now on.
pub fn unmark(state_dir: &Path, data_dir: &Path) -> io::Result<()> {
    for place in places(state_dir, data_dir) {
        match fs::remove_file(&place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
