//! Headrest killed while a backup runs.

use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::{PATIENCE, SOON, until};

/// Makes backups take some seconds: a slow compression, two workers.
pub(crate) fn slow_backups(instance: &mut Instance) {
    instance.set("PGBACKREST_COMPRESS_TYPE", "bz2");
    instance.set("PGBACKREST_PROCESS_MAX", "2");
}

/// Waits until the workers of a backup copy files.
#[track_caller]
pub(crate) fn wait_workers(instance: &Instance) {
    until("two workers copy files", SOON, || {
        let workers = instance.pgbackrests().into_iter();
        (workers.filter(|p| p.title.contains("backup:local")).count() == 2).then_some(())
    });
}

#[test]
fn a_backup_that_headrest_did_not_survive_is_interrupted_and_the_next_one_works() {
    let mut instance = Instance::new();
    slow_backups(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let id = instance.begin_backup("full");
    wait_workers(&instance);
    let server = instance.postmaster();
    instance.kill();
    let job = instance.start_and_wait_for(&id);
    assert_eq!(job["state"], "interrupted", "{job:#}");
    assert_eq!(job["error"]["code"], "interrupted", "{job:#}");
    assert_eq!(job["error"]["retryable"], true, "{job:#}");
    assert!(job["finished_at"].is_string(), "{job:#}");
    instance.wait_no_pgbackrest();
    instance.wait_ready();
    assert_eq!(instance.postmaster(), server, "the server was restarted");
    instance.good_backup("full");
}

/// A pgbackrest that does not notice that Headrest is gone, and has a child that does not either.
#[test]
fn what_a_killed_headrest_left_running_is_ended_at_the_next_start() {
    let mut instance = Instance::new();
    let fake = Fake::installed_in(&mut instance);
    instance.start();
    instance.wait_ready();
    fake.on("backup", "trap '' PIPE HUP; sleep 1000 & exec sleep 2000");
    let id = instance.begin_backup("full");
    let sleepers = || -> Vec<_> {
        instance.processes().into_iter().filter(|p| p.title.starts_with("sleep ")).collect()
    };
    let group = until("both are there", PATIENCE, || {
        let sleepers = sleepers();
        (sleepers.len() == 2).then(|| sleepers[0].group)
    });
    assert!(sleepers().iter().all(|p| p.group == group), "not one group: {:?}", sleepers());
    let server = instance.postmaster();
    instance.kill();
    let left = instance.processes();
    assert_eq!(left.iter().filter(|p| p.group == group).count(), 2, "{left:?}");
    fake.on("backup", "exit 0");
    let job = instance.start_and_wait_for(&id);
    assert_eq!(job["state"], "interrupted", "{job:#}");
    until("nobody of that group is left", SOON, || {
        instance.processes().iter().all(|p| p.group != group).then_some(())
    });
    instance.wait_ready();
    assert_eq!(instance.postmaster(), server, "the server was restarted");
}
