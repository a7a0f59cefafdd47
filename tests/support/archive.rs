//! WAL segments in an instance's archive: found, damaged, and brought back as they were.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use rand::Rng as _;

use super::files::walk;
use super::instance::Instance;
use super::{SOON, until};

/// What happened to a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The file is gone, and the server has recycled its own.
    Missing,
    /// Nobody may read it.
    Unreadable,
    /// It has its length, and nothing else of what it was.
    Garbage,
}

impl Instance {
    /// Waits until the server, when it runs, has recycled an archived segment: a restore saves what the
    /// archive lacks and `pg_wal` has.
    #[track_caller]
    fn recycle(&self, segment: &str) {
        let file = self.data_dir().join("pg_wal").join(segment);
        until(&format!("{segment} is recycled"), SOON, || {
            let is_down = self.sql.attempt("CHECKPOINT").is_err();
            (is_down || !file.exists()).then_some(())
        });
    }
}

/// A damaged segment. Dropping it repairs nothing.
#[derive(Debug)]
pub(crate) struct Damaged {
    damage: Damage,
    file: PathBuf,
    aside: PathBuf,
    mode: fs::Permissions,
}

impl Damaged {
    /// Damages a segment that is, or will soon be, in the archive.
    #[track_caller]
    pub(crate) fn make(instance: &Instance, segment: &str, damage: Damage) -> Self {
        let archive = instance.root.join("repo/archive");
        let file = until(&format!("{segment} is in the archive"), SOON, || {
            let is_it = |path: &PathBuf| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                name.starts_with(&format!("{segment}-")) && !name.contains(".tmp")
            };
            walk(&archive).into_iter().find(is_it)
        });
        let aside = instance.root.join(format!("aside-{segment}"));
        let mode = fs::metadata(&file).unwrap().permissions();
        match damage {
            Damage::Missing => {
                instance.recycle(segment);
                fs::rename(&file, &aside).unwrap();
            }
            Damage::Unreadable => {
                fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
            }
            Damage::Garbage => {
                let mut bytes = fs::read(&file).unwrap();
                rand::rng().fill_bytes(&mut bytes);
                fs::rename(&file, &aside).unwrap();
                fs::write(&file, bytes).unwrap();
                fs::set_permissions(&file, mode.clone()).unwrap();
                instance.user.own(&file);
            }
        }
        Self { damage, file, aside, mode }
    }

    /// Makes it good again, in one step.
    #[track_caller]
    pub(crate) fn repair(&self) {
        match self.damage {
            Damage::Missing | Damage::Garbage => fs::rename(&self.aside, &self.file).unwrap(),
            Damage::Unreadable => fs::set_permissions(&self.file, self.mode.clone()).unwrap(),
        }
    }
}
