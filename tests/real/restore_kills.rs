//! Headrest, pgbackrest and the server are killed during restores. Whatever was killed when: all
//! rows are there in the end, and no server ever runs on files that are half restored.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, thread};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::instance::Instance;
use crate::support::jobs::{RESTORES, accepted, is_final};
use crate::support::process;
use crate::support::rows::Rows;
use crate::support::{PATIENCE, until};

const INTACT: [&str; 5] = ["accepted", "quiesced", "safe-point", "stopping", "draining"];

/// The phases of a restore that changes something, in their order.
const PHASES: [&str; 10] = [
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

/// Kills Headrest as soon as this restore is in a phase, or in a later one: some phases are over
/// within a millisecond. Answers the phase that the journal is in then.
#[track_caller]
pub(crate) fn kill_in(instance: &mut Instance, id: &str, wanted: &str) -> String {
    let place = |phase: &str| match phase {
        "done" => Some(PHASES.len()),
        phase => PHASES.iter().position(|known| *known == phase),
    };
    let deadline = Instant::now() + PATIENCE;
    // Without a pause, so that a short phase is met most of the time.
    while place(&phase_of(instance, id)) < place(wanted) {
        assert!(Instant::now() < deadline, "phase {wanted} is not reached");
    }
    instance.kill();
    let phase = phase_of(instance, id);
    eprintln!("killed in phase {phase}, meant {wanted}");
    phase
}

/// Looks all the time whether a server runs while PGDATA is being replaced.
pub(crate) struct Watch {
    over: Arc<AtomicBool>,
    looking: Option<JoinHandle<Result<u64, String>>>,
}

impl Watch {
    pub(crate) fn over(instance: &Instance) -> Self {
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
    pub(crate) fn check(mut self) {
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
#[track_caller]
pub(crate) fn recover_and_check(instance: &mut Instance, id: &str, phase: &str, rows: &Rows) {
    if phase == "done" {
        // Killed between the end of the work and the note of it: the journal decides.
        let job = instance.start_and_wait_for(id);
        assert_eq!(job["state"], "succeeded", "{job:#}");
        assert!(!job["result"].is_null(), "{job:#}");
        instance.wait_ready();
        return rows.check();
    }
    let job = instance.start_and_wait_for(id);
    let intact = INTACT.contains(&phase) || phase.is_empty();
    let wanted = if intact { "interrupted" } else { "succeeded" };
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

/// The journal's phase of this restore.
pub(crate) fn phase_of(instance: &Instance, id: &str) -> String {
    let journal = instance.journal().unwrap_or_default();
    if journal["id"] == id { instance.journal_phase() } else { String::new() }
}

/// Lets some time pass: the moment of a kill is what is random here.
pub(crate) fn pause(seconds: f64) {
    thread::sleep(Duration::from_secs_f64(seconds));
}

#[test]
fn headrest_killed_in_each_phase_of_a_restore_loses_nothing() {
    let mut instance = Instance::with_full_backup();
    let watch = Watch::over(&instance);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    for wanted in PHASES {
        rows.add(10);
        let id = instance.begin_restore();
        let phase = kill_in(&mut instance, &id, wanted);
        recover_and_check(&mut instance, &id, &phase, &rows);
    }
    watch.check();
}

/// The journal says that it is done, and the job's row perhaps not yet.
#[test]
fn headrest_killed_as_soon_as_a_restore_is_done_has_succeeded() {
    let mut instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let request = json!({ "target": { "type": "latest" }, "confirm": "main" });
    let id = accepted(&instance.http.post(RESTORES, &request));
    let deadline = Instant::now() + PATIENCE;
    while phase_of(&instance, &id) != "done" {
        assert!(Instant::now() < deadline, "it is not done: {}", instance.job_log(&id));
    }
    instance.kill();
    let job = instance.start_and_wait_for(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    assert_eq!(job["result"]["timeline"], 2, "{job:#}");
    instance.wait_ready();
    rows.check();
    // The backup that belongs to it is made all the same.
    let after = until("the backup after the restore", PATIENCE, || {
        let of_restore = |job: &Value| job["trigger"] == "event:restore" && is_final(job);
        instance.jobs().into_iter().find(of_restore)
    });
    assert!(["succeeded", "interrupted"].contains(&after["state"].as_str().unwrap()), "{after:#}");
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
        pause(moment.as_secs_f64());
        instance.kill();
        let mut phase = phase_of(&instance, &id);
        eprintln!("round {round}: killed after {moment:?} in phase {phase:?}");
        // Sometimes a second time, while the first is being made good.
        if random.random_bool(0.3) {
            instance.start();
            pause(usual.as_secs_f64() * random.random_range(0.0..0.5));
            instance.kill();
            let now = phase_of(&instance, &id);
            eprintln!("round {round}: killed again in phase {now:?}");
            if now != "aborted" && now != "done" {
                phase = now;
            }
        }
        recover_and_check(&mut instance, &id, &phase, &rows);
    }
    watch.check();
    // And after all that a backup and a restore are as usual.
    instance.good_backup("full");
    rows.add(10);
    instance.good_restore();
    rows.check();
}
