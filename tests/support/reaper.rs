//! The shell that cleans up after an instance: when it is told to, and also when the test process
//! is gone, killed by a time limit for example. Then the pipe it reads from closes.
//!
//! A process belongs to an instance when its working directory is in the instance's directory or
//! a variable of its environment names a path there. Nothing else is touched.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::within;

const SCRIPT: &str = r#"
root=$1
read -r _
mine() {
    { grep -lsaF "=$root/" /proc/[0-9]*/environ
      find /proc -maxdepth 2 -name cwd \( -lname "$root" -o -lname "$root/*" \) 2>/dev/null
    } | cut -d/ -f3 | sort -u | grep -vx "$$"
}
servers() { for p in $(mine); do case "$(readlink "/proc/$p/exe")" in */postgres*) echo "$p";; esac; done; }
others() { for p in $(mine); do case "$(readlink "/proc/$p/exe")" in */postgres*) ;; *) echo "$p";; esac; done; }
# Whatever could start something goes first. Then the servers, gently, so that they give back
# their shared memory; then whoever is left.
for p in $(others); do kill -KILL "$p"; done
for p in $(servers); do kill -CONT "$p"; kill -QUIT "$p"; done
n=0
while [ -n "$(mine)" ] && [ $n -lt 100 ]; do
    [ $n -ge 40 ] && for p in $(mine); do kill -KILL "$p"; done
    n=$((n + 1)); sleep 0.1
done
# A killed postmaster leaves its segment: key and id are line 7 of its file.
for f in "$root"/*/postmaster.pid; do
    [ -f "$f" ] && ipcrm -m "$(sed -n 7p "$f" | awk '{print $2}')"
done
chmod -R u+rwX "$root"
rm -rf "$root"
"#;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Reaper(Child);

impl Reaper {
    /// Waits from now on for the end of the test.
    pub(crate) fn of(root: &Path) -> Self {
        let child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "headrest-test-reaper"])
            .arg(root)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not in the group that Ctrl-C and nextest's time limits end.
            .process_group(0)
            .spawn()
            .expect("cannot start /bin/sh");
        Self(child)
    }

    /// Ends and removes everything.
    pub(crate) fn reap(&mut self) {
        drop(self.0.stdin.take());
        let gone = within(Duration::from_secs(30), || self.0.try_wait().ok().flatten());
        if gone.is_none() {
            eprintln!("the reaper does not come to an end");
        }
    }
}
