//! Ending a backup on request.

use rustix::process::Signal;
use serde_json::json;

use crate::interrupted::{slow_backups, wait_workers};
use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::rows::Rows;
use crate::support::{SOON, process, until};

fn cancel(instance: &Instance, id: &str) -> crate::support::client::Reply {
    instance.http.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({}))
}

#[test]
fn a_cancelled_backup_leaves_nobody_behind_and_the_next_one_works() {
    let mut instance = Instance::new();
    slow_backups(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let id = instance.begin_backup("full");
    wait_workers(&instance);
    let answer = cancel(&instance, &id).expect(202).json();
    assert_eq!(answer["state"], "cancelling");
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "cancelled", "{job:#}");
    assert_eq!(instance.pgbackrests(), [], "somebody is left when the job has ended");
    assert_eq!(cancel(&instance, &id).status, 409, "it has ended already");
    let unknown = cancel(&instance, "019aa0c4-6d2e-7cc1-a3a5-2f3ef8f1b0d1");
    assert_eq!(unknown.problem(404), "no-such-job");
    instance.good_backup("full");
}

/// One that does not listen is killed after its grace, with what it started.
#[test]
fn a_backup_that_does_not_listen_is_killed() {
    let mut instance = Instance::new();
    let fake = Fake::installed_in(&mut instance);
    instance.start();
    instance.wait_ready();
    fake.on(
        "backup",
        "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & while :; do sleep 1; done",
    );
    let id = instance.begin_backup("full");
    let group = until("it is there", SOON, || {
        let shells: Vec<_> =
            instance.processes().into_iter().filter(|p| p.title.ends_with("backup")).collect();
        (shells.len() >= 2).then(|| shells[0].group)
    });
    cancel(&instance, &id).expect(202);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "cancelled", "{job:#}");
    let left: Vec<_> = instance.processes().into_iter().filter(|p| p.group == group).collect();
    assert_eq!(left, []);
}

/// Somebody else kills pgbackrest, or the server, while a backup runs.
#[test]
fn a_backup_whose_pgbackrest_or_server_is_killed_fails_and_the_next_one_works() {
    let mut instance = Instance::new();
    slow_backups(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    let id = instance.begin_backup("full");
    wait_workers(&instance);
    let worker = instance.pgbackrests().into_iter().find(|p| p.title.contains("backup:local"));
    process::signal(worker.unwrap().parent, Signal::KILL);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "failed", "{job:#}");
    assert_eq!(job["error"]["code"], "interrupted", "{job:#}");
    assert_eq!(instance.pgbackrests(), [], "workers are left");

    let id = instance.begin_backup("full");
    wait_workers(&instance);
    process::signal(instance.postmaster().unwrap(), Signal::KILL);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "failed", "{job:#}");
    assert!(job["error"]["exit_code"].is_i64(), "{job:#}");
    instance.wait_server("ready");
    rows.check();
    instance.good_backup("full");
}
