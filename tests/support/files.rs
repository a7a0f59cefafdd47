//! Directories that belong to the user the server runs as, and the programs a test needs.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whom Headrest and the server run as: `postgres` when the test runs as root, else who runs it.
#[derive(Debug, Clone)]
pub(crate) struct ServerUser {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl ServerUser {
    /// The user of this machine.
    pub(crate) fn here() -> Self {
        let me = rustix::process::geteuid().as_raw();
        let users = fs::read_to_string("/etc/passwd").expect("cannot read /etc/passwd");
        let wanted = |user: &Self| if me == 0 { user.name == "postgres" } else { user.uid == me };
        let user = users.lines().filter_map(Self::parse).find(wanted);
        user.expect("there is no user postgres: install postgresql")
    }

    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let number = |at: usize| fields.get(at)?.parse().ok();
        Some(Self { name: (*fields.first()?).to_owned(), uid: number(2)?, gid: number(3)? })
    }

    /// Makes it the owner of a file, or of a link itself.
    pub(crate) fn own(&self, path: &Path) {
        if rustix::process::geteuid().is_root() {
            lchown(path, Some(self.uid), Some(self.gid)).expect("lchown");
        }
    }

    /// Has a program run as this user.
    pub(crate) fn run_as(&self, command: &mut Command) {
        if rustix::process::geteuid().is_root() {
            command.uid(self.uid).gid(self.gid);
        }
    }

    /// A new directory of this user.
    pub(crate) fn make_directory(&self, path: &Path, mode: u32) {
        fs::create_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
        self.own(path);
    }
}

/// A program of the newest installed PostgreSQL.
pub(crate) fn postgres_program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .max();
    let (_, directory) = newest.expect("PostgreSQL is not installed: apt-get install postgresql");
    let program = directory.join("bin").join(name);
    assert!(program.exists(), "{} is missing", program.display());
    program
}

/// pgBackRest.
pub(crate) fn pgbackrest() -> PathBuf {
    let program = PathBuf::from("/usr/bin/pgbackrest");
    assert!(program.exists(), "pgBackRest is not installed: apt-get install pgbackrest");
    program
}

/// All entries below a directory.
pub(crate) fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}
