//! What a restore works with is killed or fails: pgbackrest, the fenced server, everything.

use std::fs;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::Value;

use crate::restore_kills::{Watch, pause, phase_of, recover_and_check};
use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::jobs::is_final;
use crate::support::process::{self, Process};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, SOON, until};

/// The workers of this instance's restore.
fn workers(instance: &Instance, command: &str) -> Vec<Process> {
    let is_worker = |p: &Process| p.title.contains(&format!("{command}:local"));
    instance.pgbackrests().into_iter().filter(is_worker).collect()
}

/// Makes the next restore have much to copy.
fn lose_all_tables(instance: &Instance) {
    fs::remove_dir_all(instance.data_dir().join("base")).unwrap();
}

#[test]
fn a_restore_whose_pgbackrest_is_killed_is_tried_again() {
    let mut instance = Instance::new();
    instance.set("PGBACKREST_PROCESS_MAX", "2");
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let watch = Watch::over(&instance);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    instance.stop_server();
    lose_all_tables(&instance);
    let id = instance.begin_restore();
    let worker = until("a worker is at work", SOON, || workers(&instance, "restore").pop());
    process::signal(worker.parent, Signal::KILL);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    assert!(
        instance.journal().unwrap()["attempts"].as_u64() >= Some(2),
        "it was not killed in time"
    );
    instance.wait_ready();
    rows.check();
    watch.check();
}

#[test]
fn a_fenced_server_that_is_killed_does_not_end_the_restore() {
    let (mut instance, fake) = Fake::with_first_backup();
    // So that it takes a while: the kill has to find it recovering.
    fake.delay("archive-get", 0.5);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    let id = instance.begin_restore();
    let fenced = |phase: &str| {
        until(&format!("phase {phase}"), PATIENCE, || {
            let job = instance.job(&id);
            assert!(!is_final(&job), "it was over too soon: {job}");
            (phase_of(&instance, &id) == phase).then_some(())
        });
        until("a fenced server", SOON, || {
            let pid = instance.postmaster()?;
            process::working_directory(pid).filter(|at| *at == instance.data_dir())?;
            Some(pid)
        })
    };
    process::signal(fenced("recovering"), Signal::KILL);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    rows.check();

    // Killed together with Headrest, too.
    rows.add(50);
    let id = instance.begin_restore();
    until("phase recovering", PATIENCE, || {
        (phase_of(&instance, &id) == "recovering").then_some(())
    });
    until("a fenced server", SOON, || instance.postmaster());
    instance.kill();
    if let Some(pid) = instance.postmaster().filter(|pid| Process::lives(*pid)) {
        assert_eq!(process::working_directory(pid), Some(instance.data_dir()));
        process::signal(pid, Signal::KILL);
    }
    let job = instance.start_and_wait_for(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    rows.check();
}

/// What cannot be restored stays down, says so, and is mended by the next restore.
#[test]
fn a_restore_that_fails_half_way_stays_down_until_a_restore_succeeds() {
    let (mut instance, fake) = Fake::with_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    let control = instance.data_dir().join("global/pg_control");
    fake.on(
        "restore",
        &format!(
            "rm -f '{0}'; echo half > '{0}.pgbackrest.tmp'\n\
             echo '2026-11-20 10:00:00.000 P00  ERROR: [064]: no space left'; exit 64",
            control.display()
        ),
    );
    let job = instance.restore();
    assert_eq!(job["state"], "failed", "{job:#}");
    assert_eq!(job["restore"]["phase"], "needs-operator", "{job:#}");
    assert_eq!(job["error"]["exit_code"], 64, "{job:#}");
    assert_eq!(instance.journal().unwrap()["attempts"], 3);
    let stays_down = |instance: &Instance| {
        assert_eq!(instance.servers(), [], "a server on a half-restored PGDATA");
        let start = instance.http.post("/api/v1/processes/postgres/start", &Value::Null);
        assert_eq!(start.problem(409), "postgres-fenced");
        assert_eq!(instance.http.probe("/livez"), Some(200));
        assert_eq!(instance.http.probe("/readyz"), Some(503));
        assert_eq!(instance.servers(), [], "a server on a half-restored PGDATA");
    };
    stays_down(&instance);
    // A new start of Headrest does not forget it, whichever way it ended.
    assert!(instance.stop().success());
    instance.start();
    stays_down(&instance);
    instance.kill();
    instance.start();
    stays_down(&instance);

    fake.forget("restore");
    instance.good_restore();
    rows.check();
}

/// As when the machine loses its power: nothing of the instance lives on.
#[test]
fn everything_killed_at_once_at_eight_random_moments_of_a_restore_loses_nothing() {
    let mut instance = Instance::with_full_backup();
    let watch = Watch::over(&instance);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    // The dangerous moments: files are replaced, recovery runs, the promotion is not yet durable.
    let phases = ["restoring", "recovering", "verified", "promoting"];
    for round in 0..8 {
        rows.add(10);
        let wanted = phases[round % phases.len()];
        let id = instance.begin_restore();
        let order = |phase: &str| phases.iter().position(|known| *known == phase);
        until(&format!("phase {wanted}"), PATIENCE, || {
            let phase = phase_of(&instance, &id);
            (order(&phase) >= order(wanted) || phase == "unfencing" || phase == "done")
                .then_some(())
        });
        pause(0.12 * random.random::<f64>());
        instance.kill();
        until("everything is gone", SOON, || {
            let all = instance.processes();
            for process in &all {
                process::signal(process.pid, Signal::KILL);
            }
            all.is_empty().then_some(())
        });
        let phase = phase_of(&instance, &id);
        eprintln!("round {round}: everything killed in phase {phase}, meant {wanted}");
        recover_and_check(&mut instance, &id, &phase, &rows);
    }
    watch.check();
}
