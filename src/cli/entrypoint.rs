//! What the container image was asked to run, as the official `postgres` image understands its
//! command.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use crate::process::inspect::is_mount_point;

/// Arguments with which `postgres` answers and ends, or works without a postmaster (PostgreSQL
/// manual, "postgres"). No cluster is made for them.
const ANSWERS: [&str; 5] = ["-?", "--help", "--describe-config", "-V", "--version"];
/// The same as the first argument of all: single-user mode and what initdb uses.
const WITHOUT_POSTMASTER: [&str; 4] = ["--single", "--boot", "--check", "-C"];

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// Run the service; the arguments are the server's.
    Serve(Vec<OsString>),
    /// Become `postgres` itself, as the user that it runs as.
    Postgres(Vec<OsString>),
    /// Become this command, as whoever we are.
    Command(OsString, Vec<OsString>),
}

/// Tells what a command means: none, or options, are the server's.
pub(super) fn entry(mut args: Vec<OsString>) -> Entry {
    let is_option = |arg: &OsStr| arg.as_encoded_bytes().first() == Some(&b'-');
    if args.first().is_some_and(|first| !is_option(first)) {
        let first = args.remove(0);
        if first != "postgres" {
            return Entry::Command(first, args);
        }
    }
    let is = |arg: &OsString, words: &[&str]| words.iter().any(|word| arg == word);
    let answers = args.iter().any(|arg| is(arg, &ANSWERS));
    let alone = args.first().is_some_and(|arg| is(arg, &WITHOUT_POSTMASTER));
    if answers || alone { Entry::Postgres(args) } else { Entry::Serve(args) }
}

/// PGDATA of the official image before PostgreSQL 18, and of ours where nobody says otherwise.
const FORMER_PGDATA: &str = "postgresql/data";

/// The PGDATA that counts instead of what the environment says, for the newest PostgreSQL in
/// `programs` (`/usr/lib/postgresql`). From 18 on data is in a directory of its version; the former
/// place counts only where a cluster or a volume is there. `root` is `/var/lib`.
pub(super) fn pgdata_instead(told: Option<&str>, root: &Path, programs: &Path) -> Option<String> {
    let former = root.join(FORMER_PGDATA);
    let given = told.filter(|told| !told.is_empty());
    if given.is_some_and(|told| Path::new(told) != former) {
        return None;
    }
    let majors = fs::read_dir(programs).into_iter().flatten().flatten();
    let major = majors.filter_map(|entry| entry.file_name().to_str()?.parse::<u16>().ok()).max()?;
    if major < 18 {
        return None;
    }
    let is_link = former.symlink_metadata().is_ok_and(|meta| meta.is_symlink());
    let taken = !is_link && (former.join("PG_VERSION").exists() || is_mount_point(&former));
    let versioned = root.join(format!("postgresql/{major}/docker"));
    (!taken).then(|| versioned.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_18_data_is_in_a_directory_of_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let (root, programs) = (dir.path(), dir.path().join("programs"));
        let former = root.join(FORMER_PGDATA);
        let told = former.to_str().unwrap();
        let versioned = root.join("postgresql/18/docker").display().to_string();
        assert_eq!(pgdata_instead(Some(told), root, &programs), None);
        fs::create_dir_all(programs.join("17")).unwrap();
        fs::create_dir(programs.join("bin")).unwrap();
        assert_eq!(pgdata_instead(Some(told), root, &programs), None);
        fs::create_dir(programs.join("18")).unwrap();
        for told in [Some(told), Some(""), None] {
            assert_eq!(pgdata_instead(told, root, &programs).as_ref(), Some(&versioned));
        }
        assert_eq!(pgdata_instead(Some("/elsewhere"), root, &programs), None);
        // The image's link to the new place is no cluster at the old one.
        fs::create_dir_all(&versioned).unwrap();
        fs::write(Path::new(&versioned).join("PG_VERSION"), "18\n").unwrap();
        std::os::unix::fs::symlink("18/docker", &former).unwrap();
        assert_eq!(pgdata_instead(Some(told), root, &programs).as_ref(), Some(&versioned));
        fs::remove_file(&former).unwrap();
        fs::create_dir(&former).unwrap();
        assert_eq!(pgdata_instead(Some(told), root, &programs).as_ref(), Some(&versioned));
        fs::write(former.join("PG_VERSION"), "18\n").unwrap();
        assert_eq!(pgdata_instead(Some(told), root, &programs), None);
    }

    #[test]
    fn the_command_of_a_container() {
        let os = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let serve = |words: &[&str]| Entry::Serve(os(words));
        let postgres = |words: &[&str]| Entry::Postgres(os(words));
        let command = |first: &str, words: &[&str]| Entry::Command(first.into(), os(words));
        let cases: [(&[&str], Entry); 13] = [
            (&[], serve(&[])),
            (&["postgres"], serve(&[])),
            (&["-c", "work_mem=8MB"], serve(&["-c", "work_mem=8MB"])),
            (&["postgres", "-c", "x=y"], serve(&["-c", "x=y"])),
            (&["postgres", "--version"], postgres(&["--version"])),
            (&["-V"], postgres(&["-V"])),
            (&["-c", "x=y", "--help"], postgres(&["-c", "x=y", "--help"])),
            (&["--single", "-D", "/d"], postgres(&["--single", "-D", "/d"])),
            (&["-C", "shared_buffers"], postgres(&["-C", "shared_buffers"])),
            (&["psql", "-h", "db"], command("psql", &["-h", "db"])),
            (&["bash"], command("bash", &[])),
            (&["", "x"], command("", &["x"])),
            (&["headrest", "info"], command("headrest", &["info"])),
        ];
        for (args, expect) in cases {
            assert_eq!(entry(os(args)), expect, "{args:?}");
        }
    }
}
