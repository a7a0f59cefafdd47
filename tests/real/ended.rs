//! Ending a backup on request.

use serde_json::json;

use crate::interrupted::{slow_backups, wait_workers};
use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::{SOON, until};

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
