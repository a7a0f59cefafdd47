//! As whom everything runs, and what is left of what has ended.

use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use crate::running;
use crate::support::files::walk;
use crate::support::instance::Instance;
use crate::support::process::{self, Process};
use crate::support::{SOON, until};

/// Nobody is root, not even in one of its four ids or by a group or capability it kept.
fn is_the_servers_user(instance: &Instance, process: &Process) {
    let field = |name: &str| Process::status(process.pid, name).unwrap_or_default();
    let ids = |name: &str| -> Vec<u32> {
        field(name).split_whitespace().map(|id| id.parse().unwrap()).collect()
    };
    let (user, group) = (instance.user.uid, instance.user.gid);
    assert_eq!(ids("Uid"), [user; 4], "{process:?}");
    assert_eq!(ids("Gid"), [group; 4], "{process:?}");
    if rustix::process::geteuid().is_root() {
        assert!(!ids("Groups").contains(&0), "{process:?} is in root's group");
        assert_eq!(field("CapEff").trim_start_matches('0'), "", "{process:?}");
        assert_eq!(field("CapPrm").trim_start_matches('0'), "", "{process:?}");
    }
}

#[test]
fn headrest_and_everything_it_starts_run_as_the_servers_user() {
    let (instance, fake) = running();
    fake.on("backup", "sleep 1000 & wait");
    let id = instance.begin_backup("full");
    until("it runs", SOON, || instance.processes().into_iter().find(|p| p.title == "sleep 1000"));
    is_the_servers_user(&instance, &Process::read(instance.pid()).unwrap());
    let all = instance.processes();
    assert!(all.len() >= 8, "{all:#?}");
    for process in &all {
        is_the_servers_user(&instance, process);
    }
    instance.http.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({})).expect(202);
    instance.wait_job(&id);
    for path in walk(&instance.root.join("state")) {
        assert_eq!(path.symlink_metadata().unwrap().uid(), instance.user.uid, "{}", path.display());
    }
    // Secrets are nobody else's business: nobody else can even enter.
    let mode = instance.root.join("state").metadata().unwrap().mode();
    assert_eq!(mode & 0o777, 0o700, "mode {mode:o}");
}

#[test]
fn no_zombie_is_left_of_twenty_backups() {
    let (instance, fake) = running();
    for round in 0..20 {
        // Children that outlive their parent and parents that are killed, too.
        let script = ["exit 0", "sleep 0.01 & exit 0", "sleep 1000 & kill -KILL $$", "exit 55"];
        fake.on("backup", script[round % script.len()]);
        instance.backup(&json!({ "type": "full" }));
        instance.http.get("/api/v1/stanzas/main/info").expect(200);
    }
    until("no zombie is left", SOON, || {
        let children = process::all().into_iter().filter(|p| p.parent == instance.pid());
        let dead: Vec<_> = children.filter(|p| p.state == 'Z').collect();
        dead.is_empty().then_some(())
    });
    let children: Vec<_> =
        process::all().into_iter().filter(|p| p.parent == instance.pid()).collect();
    let [postmaster] = children.as_slice() else { panic!("children are left: {children:#?}") };
    assert_eq!(Some(postmaster.pid), instance.postmaster());
    assert!(!instance.processes().iter().any(|p| p.title == "sleep 1000"));
    // Nor are descriptors.
    let open = std::fs::read_dir(format!("/proc/{}/fd", instance.pid())).unwrap().count();
    assert!(open < 60, "{open} open files");
}
