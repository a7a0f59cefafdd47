//! A small file system in an instance's directory.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::instance::Instance;
use super::{PATIENCE, within};

/// An instance that has one.
pub(crate) struct SmallDisk {
    pub(crate) instance: Instance,
    // After the instance: as long as its processes live it is in use.
    _unmount: Unmount,
}

/// The shell that unmounts it, however the test ends.
struct Unmount(Child);

const UNMOUNT: &str = r#"
read -r _
n=0
until umount "$1/small" 2>/dev/null; do
    n=$((n + 1)); [ $n -gt 400 ] && { umount -l "$1/small"; break; }
    sleep 0.1
done
rmdir "$1/small" "$1"
"#;

impl SmallDisk {
    /// Mounts it; for root alone.
    pub(crate) fn around(instance: Instance, megabytes: u32) -> Self {
        let place = instance.root.join("small");
        instance.user.make_directory(&place, 0o755);
        let shell = Command::new("/bin/sh")
            .args(["-c", UNMOUNT, "headrest-test-unmount"])
            .arg(&instance.root)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        let unmount = Unmount(shell.expect("cannot start /bin/sh"));
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=755"), "tmpfs"]);
        let mounted = mount.arg(&place).status().expect("cannot run mount");
        assert!(mounted.success(), "cannot mount a tmpfs: {mounted}");
        Self { instance, _unmount: unmount }
    }

    /// Where it is.
    pub(crate) fn place(&self) -> PathBuf {
        self.instance.root.join("small")
    }

    /// Puts PGDATA on it, which must be empty yet.
    pub(crate) fn hold_data_dir(&mut self) {
        let data = self.place().join("data");
        // Where the harness looks for it.
        fs::remove_dir(self.instance.data_dir()).unwrap();
        self.instance.user.make_directory(&data, 0o700);
        symlink(&data, self.instance.data_dir()).unwrap();
        self.instance.set("HEADREST_POSTGRES__DATA_DIR", data.display().to_string());
    }

    /// Leaves so many megabytes.
    pub(crate) fn fill(&self, left: u64) -> PathBuf {
        let file = self.place().join("filling");
        let mut filling = fs::File::create(&file).unwrap();
        loop {
            let all = rustix::fs::statvfs(self.place()).unwrap();
            let more = (all.f_bavail * all.f_frsize).saturating_sub(left << 20).min(1 << 20);
            // Others write meanwhile.
            if more == 0 || filling.write_all(&vec![0; usize::try_from(more).unwrap()]).is_err() {
                return file;
            }
        }
    }
}

impl Drop for Unmount {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if within(PATIENCE, || self.0.try_wait().ok().flatten()).is_none() {
            eprintln!("the small disk is not unmounted");
        }
    }
}
