//! Restores end by themselves, and name a gap, however long one archive-get takes.
//!
//! `ARCHIVE_GET_SECONDS="0.06 0.3 1 5"` plays the whole scene with other delays than the one that
//! every run has.

use std::process::{Child, Command};
use std::{env, fs};

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::support::archive::{Damage, Damaged};
use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::jobs::id_of;
use crate::support::jobs::{is_final, time};
use crate::support::moments::at;
use crate::support::rows::Rows;
use crate::support::{PATIENCE, within};

/// What a restore may take after its last segment, beyond three archive-gets.
const END_PATIENCE: f64 = 5.0;
/// How long a gap may stay without its name, beyond three archive-gets.
const GAP_PATIENCE: f64 = 10.0;

/// The delays of this run.
fn delays() -> Vec<f64> {
    let given = env::var("ARCHIVE_GET_SECONDS").unwrap_or_else(|_| "0.12".to_owned());
    given.split_whitespace().map(|delay| delay.parse().expect("seconds")).collect()
}

/// When the server last got a segment from the archive, by its log.
#[track_caller]
fn last_segment_at(instance: &Instance) -> Timestamp {
    let log = fs::read_to_string(instance.root.join("state/log/postgres.log")).unwrap();
    let is_segment = |line: &&str| {
        let file = line.split("restored log file \"").nth(1);
        file.is_some_and(|file| file.split('"').next().is_some_and(|name| name.len() == 24))
    };
    let line = log.lines().rev().find(is_segment).expect("a restored segment");
    let at: DateTime = line[..23].parse().expect("a time");
    at.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp()
}

/// Waits for the good end of a restore, which must come soon after its last segment.
#[track_caller]
fn ends_soon(instance: &Instance, id: &str, delay: f64, outcome: &str) {
    let job = within(PATIENCE, || Some(instance.job(id)).filter(is_final));
    let log = instance.job_log(id);
    let job = job.unwrap_or_else(|| panic!("it does not end: {:#}\n{log}", instance.job(id)));
    assert_eq!(job["state"], outcome, "{job:#}\n{log}");
    let after = time(&job["finished_at"]).duration_since(last_segment_at(instance));
    eprintln!("archive-get of {delay} s: ended {after:?} after the last segment");
    let limit = SignedDuration::try_from_secs_f64(3.0 * delay + END_PATIENCE).unwrap();
    assert!(after <= limit, "{after:?} after the last segment, not within {limit:?}\n{log}");
    instance.wait_ready();
}

/// Makes a gap with commits before and after it; answers it, the rows, and a moment after it.
#[track_caller]
fn make_a_gap(instance: &Instance, rows: &mut Rows) -> (String, Damaged, Timestamp) {
    let first = rows.count() + 1000;
    rows.add_from(first, 10);
    let segment = instance.switch_wal();
    rows.add(10);
    instance.switch_wal();
    rows.add(10);
    let damaged = Damaged::make(instance, &segment, Damage::Missing);
    (segment, damaged, instance.sql.now())
}

/// A restore waits at a missing segment and says so in time; it is brought back, and it goes on.
#[track_caller]
fn names_the_gap(instance: &Instance, id: &str, segment: &str, damaged: &Damaged, delay: f64) {
    let view = within(PATIENCE, || {
        let view = instance.restore_view(id);
        (!view["awaiting"].is_null()).then_some(view)
    });
    let log = instance.job_log(id);
    let view = view.unwrap_or_else(|| panic!("{:#}\n{log}", instance.restore_view(id)));
    assert_eq!(view["awaiting"]["reason"], "wal-gap", "{view:#}");
    assert_eq!(view["awaiting"]["segment"], *segment, "{view:#}");
    assert_eq!(view["actions"], json!(["promote", "retarget", "abandon"]), "{view:#}");
    let after = time(&view["awaiting"]["since"]).duration_since(last_segment_at(instance));
    eprintln!("archive-get of {delay} s: the gap was named {after:?} after the last segment");
    let limit = SignedDuration::try_from_secs_f64(3.0 * delay + GAP_PATIENCE).unwrap();
    assert!(after <= limit, "named after {after:?}, not within {limit:?}\n{log}");
    damaged.repair();
    ends_soon(instance, id, delay, "succeeded");
}

/// To the end, to a moment, back again, given up on the way, and with a gap in between.
#[test]
fn every_restore_ends_however_slow_the_archive_is() {
    for delay in delays() {
        let (instance, fake) = Fake::with_first_backup();
        instance.wait_restorable(&instance.wait_first_backup());
        fake.delay("archive-get", delay);
        let mut rows = Rows::in_new_table(&instance.sql, "t");
        rows.add(10);
        instance.switch_wal();
        rows.add(10);
        let id = instance.begin_restore();
        ends_soon(&instance, &id, delay, "succeeded");
        rows.check();

        let (then, moment) = (rows.clone(), instance.sql.now());
        rows.add(10);
        let id = instance.begin_restore_to(&at(moment), &json!({}));
        ends_soon(&instance, &id, delay, "succeeded");
        then.check();
        let body = json!({ "confirm": "main", "backup_after": false });
        let undo = instance.http.post(&format!("/api/v1/restores/{id}/undo"), &body).expect(202);
        ends_soon(&instance, id_of(&undo.json()), delay, "succeeded");
        rows.check();

        let id = instance.begin_restore_to(&at(moment), &json!({ "on_reached": "pause" }));
        instance.wait_at(&id, moment);
        then.seen_through(&instance.fence()).check();
        instance.steer(&id, "abandon", &json!({ "confirm": "main" })).expect(202);
        ends_soon(&instance, &id, delay, "cancelled");
        rows.check();

        let accept = json!({ "accept": ["wal-gap"] });
        let (segment, damaged, _) = make_a_gap(&instance, &mut rows);
        let id = instance.begin_restore_to(&json!({ "type": "latest" }), &accept);
        names_the_gap(&instance, &id, &segment, &damaged, delay);
        rows.check();

        let (segment, damaged, moment) = make_a_gap(&instance, &mut rows);
        let then = rows.clone();
        rows.add(10);
        let id = instance.begin_restore_to(&at(moment), &accept);
        names_the_gap(&instance, &id, &segment, &damaged, delay);
        then.check();

        let damaged = Damaged::make(&instance, &segment, Damage::Missing);
        let body = json!({ "confirm": "main", "backup_after": false, "accept": ["wal-gap"] });
        let undo = instance.http.post(&format!("/api/v1/restores/{id}/undo"), &body).expect(202);
        names_the_gap(&instance, id_of(&undo.json()), &segment, &damaged, delay);
        rows.check();
    }
}

#[test]
fn an_empty_pgdata_is_restored_however_slow_the_archive_is() {
    for delay in delays() {
        let (mut instance, fake) = Fake::with_first_backup();
        let mut rows = Rows::in_new_table(&instance.sql, "t");
        rows.add(10);
        instance.switch_wal();
        rows.add(10);
        instance.switch_wal();
        instance.stop();
        for name in ["data", "state"] {
            fs::remove_dir_all(instance.root.join(name)).unwrap();
        }
        instance.user.make_directory(&instance.data_dir(), 0o700);
        fake.delay("archive-get", delay);
        instance.set("HEADREST_BOOTSTRAP_FROM", "latest");
        instance.start();
        let restore =
            within(PATIENCE, || instance.jobs().into_iter().find(|j| j["kind"] == "restore"));
        let restore = restore.expect("a restore");
        ends_soon(&instance, id_of(&restore), delay, "succeeded");
        rows.check();
    }
}

#[test]
fn asynchronous_archiving_ends_a_restore() {
    let mut instance = Instance::new();
    instance.set("PGBACKREST_ARCHIVE_ASYNC", "y");
    instance.start();
    instance.wait_ready();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.switch_wal();
    rows.add(10);
    let id = instance.begin_restore();
    ends_soon(&instance, &id, 0.3, "succeeded");
    rows.check();
    let (then, moment) = (rows.clone(), instance.sql.now());
    rows.add(10);
    let id = instance.begin_restore_to(&at(moment), &json!({}));
    ends_soon(&instance, &id, 0.3, "succeeded");
    then.check();
    instance.undo(&id);
    rows.check();
}

/// Processes that want all of every processor, until they are dropped.
struct Load(Vec<Child>);

impl Load {
    fn of(count: usize) -> Self {
        let busy = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..count).map(|_| busy()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_restore_ends_on_a_machine_with_16_busy_processes() {
    let mut instance = Instance::new();
    let fake = Fake::around_the_real_one(&mut instance);
    // The processors are what is busy here. A server that starts writes every file of its data to the
    // disk, which is another machine's trouble.
    instance.set("HEADREST_POSTGRES__ARGS", "-c listen_addresses=127.0.0.1 -c fsync=off");
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    fake.delay("archive-get", 0.12);
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    instance.switch_wal();
    rows.add(10);
    let load = Load::of(16);
    let id = instance.begin_restore();
    // How long it takes is the machine's business.
    let job = instance.wait_job(&id);
    drop(load);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    rows.check();
}
