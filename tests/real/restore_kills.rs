//! Headrest, pgbackrest and the server are killed during restores. Whatever was killed when: all
//! rows are there in the end, and no server ever runs on files that are half restored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, thread};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::instance::Instance;
use crate::support::jobs::{id_of, is_final};
use crate::support::process::{self, Process};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, SOON, until, within};

const INTACT: [&str; 5] = ["accepted", "quiesced", "safe-point", "stopping", "draining"];

/// Looks all the time whether a server runs while PGDATA is being replaced.
struct Watch {
    over: Arc<AtomicBool>,
    looking: Option<JoinHandle<Result<u64, String>>>,
}

impl Watch {
    fn over(instance: &Instance) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (end, root) = (Arc::clone(&over), instance.root.clone());
        let looking = thread::spawn(move || {
            let journal = || -> Option<(Value, Value)> {
                let text = fs::read_to_string(root.join("state/restore/main.json")).ok()?;
                let mut journal: Value = serde_json::from_str(&text).ok()?;
                Some((journal["phase"].take(), journal["written_at"].take()))
            };
            let data = root.join("data");
            let mut looks = 0;
            while !end.load(Ordering::Relaxed) {
                let before = journal();
                if before.as_ref().is_some_and(|(phase, _)| phase == "restoring") {
                    let servers: Vec<_> = process::all()
                        .into_iter()
                        .filter(|p| p.program == "postgres" && p.state != 'Z')
                        .filter(|p| process::working_directory(p.pid).as_ref() == Some(&data))
                        .collect();
                    // Only if it was the same phase all the time.
                    if journal() == before {
                        looks += 1;
                        if !servers.is_empty() {
                            return Err(format!("{servers:?} on a half-restored PGDATA"));
                        }
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
            Ok(looks)
        });
        Self { over, looking: Some(looking) }
    }

    /// Ends it; it must have seen something, and nothing wrong.
    fn check(mut self) {
        self.over.store(true, Ordering::Relaxed);
        let looks = self.looking.take().unwrap().join().unwrap();
        assert!(looks.unwrap() > 0, "nobody looked during phase restoring");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Starts Headrest after a kill in this phase and says whether all is as it must be.
fn recover_and_check(instance: &mut Instance, id: &str, phase: &str, rows: &Rows) {
    let job = instance.start_and_wait_for(id);
    let intact = INTACT.contains(&phase) || phase.is_empty();
    let wanted = if intact { "interrupted" } else { "succeeded" };
    // Killed between the end of the work and the note of it, both are right.
    let log = instance.job_log(id);
    assert!(
        job["state"] == wanted || (phase == "aborted" && is_final(&job)),
        "killed in phase {phase:?}, the job is not {wanted}: {job:#}\n{log}"
    );
    instance.wait_ready();
    assert_eq!(instance.server()["fenced_by"], Value::Null, "still fenced");
    rows.check();
    instance.wait_no_pgbackrest();
}

fn phase_of(instance: &Instance, id: &str) -> String {
    let journal = instance.journal().unwrap_or_default();
    if journal["id"] == id { instance.journal_phase() } else { String::new() }
}

#[test]
fn headrest_killed_in_each_phase_of_a_restore_loses_nothing() {
    let mut instance = Instance::with_full_backup();
    let watch = Watch::over(&instance);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    let phases = [
        "quiesced",
        "safe-point",
        "stopping",
        "draining",
        "restoring",
        "restored",
        "recovering",
        "verified",
        "promoting",
        "unfencing",
    ];
    for wanted in phases {
        rows.add(10);
        let id = instance.begin_restore();
        let deadline = Instant::now() + PATIENCE;
        let wanted_at = phases.iter().position(|phase| *phase == wanted);
        // Without a pause: some phases are over within a millisecond. Then it is the next one.
        while phases.iter().position(|phase| *phase == phase_of(&instance, &id)) < wanted_at {
            assert!(Instant::now() < deadline, "phase {wanted} is not reached");
        }
        instance.kill();
        let phase = phase_of(&instance, &id);
        eprintln!("killed in phase {phase}, meant {wanted}");
        recover_and_check(&mut instance, &id, &phase, &rows);
    }
    watch.check();
}

#[test]
fn headrest_killed_at_ten_random_moments_of_a_restore_loses_nothing() {
    let mut instance = Instance::with_full_backup();
    let watch = Watch::over(&instance);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let began = Instant::now();
    instance.good_restore();
    let usual = began.elapsed();
    rows.check();
    let seed: u64 = rand::random();
    eprintln!("seed {seed}, a restore takes {usual:?}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..10 {
        rows.add(10);
        let id = instance.begin_restore();
        let moment = usual.mul_f64(random.random_range(0.0..0.95));
        let over = Instant::now() + moment;
        within(moment, || (Instant::now() >= over).then_some(()));
        instance.kill();
        let mut phase = phase_of(&instance, &id);
        eprintln!("round {round}: killed after {moment:?} in phase {phase:?}");
        // Sometimes a second time, while the first is being made good.
        if random.random_bool(0.3) {
            instance.start();
            within(usual.mul_f64(random.random_range(0.0..0.5)), || None::<()>);
            instance.kill();
            let now = phase_of(&instance, &id);
            eprintln!("round {round}: killed again in phase {now:?}");
            if now != "aborted" && now != "done" {
                phase = now;
            }
        }
        if phase == "done" {
            instance.start();
            assert_eq!(instance.wait_job(&id)["outcome"].is_string(), true);
            instance.wait_ready();
            rows.check();
        } else {
            recover_and_check(&mut instance, &id, &phase, &rows);
        }
    }
    watch.check();
    // And after all that a backup and a restore are as usual.
    instance.good_backup("full");
    rows.add(10);
    instance.good_restore();
    rows.check();
}

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
    let mut instance = Instance::with_full_backup();
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
    let mut instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(50);
    instance.stop_server();
    lose_all_tables(&instance);
    // The files of the backup are out of reach, what `info` reads is not.
    let full = fs::read_dir(instance.root.join("repo/backup/main")).unwrap().flatten();
    let full = full.map(|entry| entry.path()).find(|path| path.join("pg_data").is_dir()).unwrap();
    let aside = full.join("pg_data_aside");
    fs::rename(full.join("pg_data"), &aside).unwrap();
    let job = instance.restore();
    assert_eq!(job["state"], "failed", "{job:#}");
    assert_eq!(job["restore"]["phase"], "needs-operator", "{job:#}");
    assert_eq!(instance.servers(), [], "a server on a half-restored PGDATA");
    let start = instance.http.post("/api/v1/processes/postgres/start", &Value::Null);
    assert_eq!(start.status, 409, "{}", start.body);

    // A new start of Headrest does not forget it.
    assert!(instance.stop().success());
    instance.start();
    assert_eq!(instance.http.probe("/livez"), Some(200));
    assert_eq!(instance.http.probe("/readyz"), Some(503));
    let start = instance.http.post("/api/v1/processes/postgres/start", &Value::Null);
    assert_eq!(start.status, 409, "{}", start.body);
    assert_eq!(instance.servers(), [], "a server on a half-restored PGDATA");

    fs::rename(&aside, full.join("pg_data")).unwrap();
    let job = instance.good_restore();
    assert_ne!(id_of(&job), "", "{job}");
    rows.check();
}
