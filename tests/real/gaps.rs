//! WAL that is missing or damaged: waited at, named, never silently left out.

use std::time::{Duration, Instant};
use std::{fs, thread};

use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::restore_kills::{pause, phase_of};
use crate::support::archive::{Damage, Damaged};
use crate::support::client::Reply;
use crate::support::instance::Instance;
use crate::support::jobs::{RESTORES, id_of, is_final};
use crate::support::moments::{at, checks, request};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, SOON, process, until, within};
use crate::wal::set_writable;

/// Commits, each step of them with a WAL segment of its own.
struct Scene {
    /// The segment in the middle, the one to be damaged.
    middle: String,
    /// What was there before its first commit.
    before: Rows,
    /// A moment two segments later.
    moment: Timestamp,
    /// The same as a position.
    lsn: String,
    /// What was there then.
    then: Rows,
    /// What there is in the end.
    all: Rows,
}

impl Scene {
    /// Commits rows that no earlier scene had.
    #[track_caller]
    fn play(instance: &Instance, mut rows: Rows, number: u32) -> Self {
        rows.add_from(number * 1000 + 1, 10);
        instance.switch_wal();
        let before = rows.clone();
        rows.add(10);
        let middle = instance.switch_wal();
        rows.add(10);
        instance.switch_wal();
        rows.add(10);
        let (then, moment) = (rows.clone(), instance.sql.now());
        let lsn = instance.sql.run("SELECT pg_current_wal_insert_lsn()");
        rows.add(10);
        instance.switch_wal();
        Self { middle, before, moment, lsn, then, all: rows }
    }

    /// Where a restore may go: to the end, and to a moment after the segment in the middle, each
    /// with what is there then.
    fn goals(&self) -> [(Value, &Rows); 2] {
        [(json!({ "type": "latest" }), &self.all), (at(self.moment), &self.then)]
    }
}

/// Running for long enough that every moment from now on can be restored to.
fn running() -> (Instance, Rows) {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let rows = Rows::in_new_table(&instance.sql, "t");
    (instance, rows)
}

/// The timeline of a running server.
fn timeline(instance: &Instance) -> u32 {
    let name = instance.sql.run("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    u32::from_str_radix(&name[..8], 16).unwrap()
}

/// A restore that would have to cross the missing segment is refused, and nothing is touched.
#[track_caller]
fn is_refused(instance: &Instance, target: &Value, segment: &str) {
    let (postmaster, jobs) = (instance.postmaster(), instance.jobs().len());
    let reply = instance.http.post(RESTORES, &request(target, &json!({})));
    assert_eq!(reply.problem(409), "restore-refused", "{target}");
    let problem = reply.json();
    assert_eq!(checks(&problem, "fail"), ["wal-gap"], "{problem:#}");
    assert_eq!(problem["checks"][0]["acceptable"], true, "{problem:#}");
    assert!(problem["checks"].to_string().contains(segment), "{segment} not named: {problem:#}");
    assert_eq!(instance.jobs().len(), jobs, "a refused request became a job");
    assert_eq!(instance.postmaster(), postmaster, "the server was touched");
    assert_eq!(instance.http.probe("/readyz"), Some(200));
}

/// Waits until a restore says that it waits for this segment, and answers how it shows itself.
#[track_caller]
fn wait_at_gap(instance: &Instance, id: &str, segment: &str) -> Value {
    let mut last = Value::Null;
    let found = within(PATIENCE, || {
        last = instance.restore_view(id);
        assert!(!is_final(&last), "it did not wait: {last:#}\n{}", instance.job_log(id));
        let named = last["progress"]["phase"].as_str().is_some_and(|text| text.contains(segment));
        let waits = last["awaiting"]["reason"] == "wal-gap";
        (waits && named && last["awaiting"]["segment"] == segment).then(|| last.clone())
    });
    found.unwrap_or_else(|| {
        panic!("{id} does not wait for {segment}: {last:#}\n{}", instance.job_log(id))
    })
}

/// For some seconds a restore goes on waiting, and nothing is promoted.
#[track_caller]
fn goes_on_waiting(instance: &Instance, id: &str, segment: &str, timeline: u32) {
    let fence = instance.fence();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(2) {
        let view = instance.restore_view(id);
        assert_eq!(view["awaiting"]["reason"], "wal-gap", "{view:#}");
        assert_eq!(view["awaiting"]["segment"], segment, "{view:#}");
        assert_eq!(view["actions"], json!(["promote", "retarget", "abandon"]), "{view:#}");
        assert_eq!(phase_of(instance, id), "recovering");
        assert_eq!(instance.http.probe("/readyz"), Some(503));
        assert_eq!(instance.http.probe("/livez"), Some(200));
        assert!(instance.sql.attempt("SELECT 1").is_err(), "a client got in");
        assert_eq!(fence.run("SELECT pg_is_in_recovery()"), "t");
        assert_eq!(instance.control("Database cluster state"), "in archive recovery");
        let shown: u32 = instance.control("Latest checkpoint's TimeLineID").parse().unwrap();
        assert!(shown <= timeline, "promoted from timeline {timeline} to {shown}");
    }
}

/// Waits for the good end of a restore; these rows are there then.
#[track_caller]
fn ends_well(instance: &Instance, id: &str, rows: &Rows) {
    let job = instance.wait_job(id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id));
    instance.wait_ready();
    rows.check();
}

fn promote(instance: &Instance, id: &str, accept: &Value) -> Reply {
    instance.steer(id, "promote", accept)
}

/// To the end and to a moment after it: a restore waits at a damaged segment, and goes on by
/// itself once it is back.
fn a_damaged_segment_is_waited_for(damage: Damage) {
    let (instance, mut rows) = running();
    for goal in 0..2 {
        let scene = Scene::play(&instance, rows, goal);
        let (target, wanted) = &scene.goals()[goal as usize];
        let timeline = timeline(&instance);
        let damaged = Damaged::make(&instance, &scene.middle, damage);
        let mut more = json!({});
        if damage == Damage::Missing {
            is_refused(&instance, target, &scene.middle);
            more = json!({ "accept": ["wal-gap"] });
        }
        let id = instance.begin_restore_to(target, &more);
        wait_at_gap(&instance, &id, &scene.middle);
        goes_on_waiting(&instance, &id, &scene.middle, timeline);
        scene.before.seen_through(&instance.fence()).check();
        damaged.repair();
        ends_well(&instance, &id, wanted);
        let log = instance.job_log(&id);
        assert_eq!(instance.copies(&id), 1, "the files were copied again: {log}");
        assert_eq!(timeline + 1, self::timeline(&instance), "{log}");
        rows = (*wanted).clone();
    }
}

#[test]
fn a_missing_segment_is_refused_by_name_or_else_waited_for() {
    a_damaged_segment_is_waited_for(Damage::Missing);
}

#[test]
fn a_segment_that_nobody_may_read_is_waited_for() {
    a_damaged_segment_is_waited_for(Damage::Unreadable);
}

#[test]
fn a_segment_of_random_bytes_is_waited_for() {
    a_damaged_segment_is_waited_for(Damage::Garbage);
}

/// What is before a gap is no business of the gap's.
#[test]
fn a_moment_before_a_missing_segment_is_restored_without_a_word() {
    let (instance, mut rows) = running();
    rows.add(10);
    let (then, moment) = (rows.clone(), instance.sql.now());
    rows.add(10);
    instance.switch_wal();
    let scene = Scene::play(&instance, rows, 1);
    let _damaged = Damaged::make(&instance, &scene.middle, Damage::Missing);
    instance.restore_to(&at(moment), &json!({}));
    then.check();
}

/// Promoting before the gap has to be wanted by name; then exactly what is before the gap is there.
#[test]
fn promoted_before_a_gap_is_only_who_accepts_it_by_name() {
    let (instance, mut rows) = running();
    for goal in 0..2 {
        let scene = Scene::play(&instance, rows, goal);
        let (target, _) = &scene.goals()[goal as usize];
        let timeline = timeline(&instance);
        let damaged = Damaged::make(&instance, &scene.middle, Damage::Missing);
        // That one wants to see how far it comes is no wish to promote there.
        let id = instance.begin_restore_to(target, &json!({ "accept": ["wal-gap"] }));
        wait_at_gap(&instance, &id, &scene.middle);
        for not_enough in [json!({}), json!({ "accept": [] }), json!({ "accept": ["target"] })] {
            let refused = promote(&instance, &id, &not_enough);
            assert_eq!(refused.problem(409), "restore-not-waiting", "{not_enough}");
            let detail = refused.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("wal-gap"), "not told what to accept: {detail}");
        }
        goes_on_waiting(&instance, &id, &scene.middle, timeline);

        let reply = promote(&instance, &id, &json!({ "accept": ["wal-gap"] })).expect(202);
        assert_eq!(reply.json()["id"], *id);
        ends_well(&instance, &id, &scene.before);
        let view = instance.restore_view(&id);
        assert!(view["accepted"].as_array().unwrap().contains(&json!("wal-gap")), "{view:#}");
        let told = instance.job_log(&id);
        assert!(told.contains(&scene.middle), "the log does not say where it ended: {told}");

        let audit = instance.http.get("/api/v1/audit").expect(200).json();
        let deeds: Vec<&Value> = audit["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|deed| deed["subject"] == *id && deed["action"] == "restore.promote")
            .collect();
        let [deed] = deeds.as_slice() else { panic!("not one promotion of {id}: {audit:#}") };
        assert_eq!(deed["by"], view["by"], "{deed:#}");
        assert!(deed["by"].as_str().is_some_and(|by| !by.is_empty()), "{deed:#}");
        assert!(deed["at"].is_string(), "{deed:#}");
        let detail = deed["detail"].as_str().unwrap().to_lowercase().replace('-', "");
        assert!(detail.contains("walgap"), "what was accepted is not said: {deed:#}");

        damaged.repair();
        rows = scene.before;
    }
}

/// The segment comes back when the order to promote without it is taken already.
#[test]
fn a_segment_that_comes_back_after_the_order_lets_nothing_past_the_target_in() {
    let (instance, mut rows) = running();
    for (number, seconds) in [(0, 0.0), (1, 0.0), (2, 0.05), (3, 0.2)] {
        let scene = Scene::play(&instance, rows, number);
        let damaged = Damaged::make(&instance, &scene.middle, Damage::Missing);
        let accept = json!({ "accept": ["wal-gap"] });
        let id = instance.begin_restore_to(&at(scene.moment), &accept);
        wait_at_gap(&instance, &id, &scene.middle);
        promote(&instance, &id, &accept).expect(202);
        pause(seconds);
        damaged.repair();
        ends_well(&instance, &id, &scene.before);
        rows = scene.before;
    }
}

/// The order is given, but PostgreSQL takes its time to stop, which comes before the answer, and
/// meanwhile it finds the segment and replays on to the target. What comes out may be what is before the gap, or what is at the
/// target, and whatever is offered on the way is accepted.
fn comes_back_while_the_server_stops(target: impl Fn(&Scene) -> Value, stops: &str) {
    let (instance, rows) = running();
    let scene = Scene::play(&instance, rows, 0);
    let damaged = Damaged::make(&instance, &scene.middle, Damage::Missing);
    let accept = json!({ "accept": ["wal-gap"] });
    let id = instance.begin_restore_to(&target(&scene), &accept);
    wait_at_gap(&instance, &id, &scene.middle);
    let log = instance.root.join("state/log/postgres.log");
    let postmaster = instance.postmaster().expect("a postmaster");
    // A postmaster that is stopped ends nobody; the startup process works on.
    process::signal(postmaster, Signal::STOP);
    thread::scope(|scope| {
        let order = scope.spawn(|| promote(&instance, &id, &accept));
        until("PostgreSQL is told to stop", SOON, || {
            (instance.server()["state"] == "stopping").then_some(())
        });
        damaged.repair();
        let found = || fs::read_to_string(&log).unwrap().contains(stops);
        until(stops, PATIENCE, || found().then_some(()));
        process::signal(postmaster, Signal::CONT);
        order.join().unwrap().expect(202);
    });
    let mut offered = Vec::new();
    let job = until("the restore ends", PATIENCE, || {
        let view = instance.restore_view(&id);
        if !view["awaiting"].is_null() && offered.last() != Some(&view["awaiting"]) {
            offered.push(view["awaiting"].clone());
            promote(&instance, &id, &json!({ "accept": ["wal-gap", "target"] }));
        }
        is_final(&view).then_some(view)
    });
    eprintln!("offered on the way: {offered:#?}");
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    let count: u32 = instance.sql.run("SELECT count(*) FROM t").parse().unwrap();
    if count == scene.before.count() { scene.before } else { scene.then }.check();
}

#[test]
fn a_segment_that_comes_back_while_the_server_stops_lets_nothing_past_a_time_in() {
    comes_back_while_the_server_stops(|scene| at(scene.moment), "recovery stopping before commit");
}

#[test]
fn a_segment_that_comes_back_while_the_server_stops_lets_nothing_past_a_position_in() {
    comes_back_while_the_server_stops(
        |scene| json!({ "type": "lsn", "value": scene.lsn, "exclusive": true }),
        "recovery stopping before WAL location",
    );
}

/// Before consistency nobody can connect, and there is nothing that could be promoted.
#[test]
fn a_missing_segment_of_the_backup_itself_is_named_soon() {
    let (instance, mut rows) = running();
    let first = instance.labels().remove(0);
    rows.add(10);
    instance.good_backup("full");
    rows.add(10);
    instance.switch_wal();
    let list = instance.http.get("/api/v1/stanzas/main/info").expect(200).json();
    let segment = segment_of_backup(&list, &first);
    let damaged = Damaged::make(&instance, &segment, Damage::Missing);
    let latest = json!({ "type": "latest" });
    let more = json!({ "set": first, "accept": ["wal-gap"] });

    let waits = |target: &Value| {
        let id = instance.begin_restore_to(target, &more);
        until("phase recovering", PATIENCE, || {
            (phase_of(&instance, &id) == "recovering").then_some(())
        });
        let since = Instant::now();
        let view = wait_at_gap(&instance, &id, &segment);
        let waited = since.elapsed();
        eprintln!("{segment} named after {waited:?}: {}", view["progress"]["phase"]);
        assert!(waited < Duration::from_secs(15), "named only after {waited:?}");
        let early = promote(&instance, &id, &json!({ "accept": ["wal-gap"] }));
        assert_eq!(early.problem(409), "restore-not-waiting");
        assert_eq!(instance.http.probe("/readyz"), Some(503));
        id
    };

    // Given up, it goes back by way of the other backup.
    let id = waits(&latest);
    let body = json!({ "confirm": "main" });
    instance.steer(&id, "abandon", &body).expect(202);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "cancelled", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    rows.check();

    // Brought back, it goes on.
    rows.add_from(1001, 10);
    let (then, moment) = (rows.clone(), instance.sql.now());
    rows.add(10);
    let id = waits(&at(moment));
    damaged.repair();
    ends_well(&instance, &id, &then);
}

/// The segment with which the WAL of a backup begins, from pgBackRest's own `info`.
#[track_caller]
fn segment_of_backup(info: &Value, label: &str) -> String {
    let stanza = if info.is_array() { &info[0] } else { info };
    let backups = stanza["backup"].as_array().unwrap_or_else(|| panic!("{info:#}"));
    let backup = backups.iter().find(|backup| backup["label"] == label).expect("the backup");
    backup["archive"]["start"].as_str().unwrap().to_owned()
}

/// Makes the archive refuse everything, and waits until the archiver has noticed.
#[track_caller]
fn break_archive(instance: &Instance) {
    set_writable(&instance.root.join("repo/archive"), false);
    instance.sql.run("SELECT pg_switch_wal()");
    until("the archiver fails", PATIENCE, || {
        let failed = instance.sql.run(
            "SELECT last_failed_time > coalesce(last_archived_time, '-infinity') FROM \
             pg_stat_archiver",
        );
        (failed == "t").then_some(())
    });
}

/// Makes it good again, and waits until nothing is left to be archived.
#[track_caller]
fn mend_archive(instance: &Instance) {
    set_writable(&instance.root.join("repo/archive"), true);
    until("everything is archived", PATIENCE, || {
        let wal = instance.http.get("/api/v1/stanzas/main/wal").expect(200).json();
        (wal["backlog"]["count"] == 0).then_some(())
    });
}

/// What never reached the archive is saved before PGDATA is replaced: for a restore to the end,
/// and for one to a moment in between, in the same segment or in another.
#[test]
fn commits_that_never_reached_the_archive_can_be_restored_to() {
    let (instance, mut rows) = running();
    rows.add(10);
    break_archive(&instance);
    rows.add(10);
    let job = instance.restore_to(&json!({ "type": "latest" }), &json!({}));
    rows.check();
    let log = instance.job_log(id_of(&job));
    assert!(log.contains("kept"), "nothing had to be saved: {log}");
    mend_archive(&instance);

    for (number, other_segment) in [(1, false), (2, true)] {
        rows.add_from(number * 1000, 10);
        break_archive(&instance);
        rows.add(1);
        let (first, moment) = (rows.clone(), instance.sql.now());
        if other_segment {
            instance.sql.run("SELECT pg_switch_wal()");
        }
        rows.add(1);
        instance.restore_to(&at(moment), &json!({}));
        first.check();
        mend_archive(&instance);
        first.check();
        rows = first;
    }
    instance.good_backup("full");
    rows.add_from(3000, 10);
    instance.good_restore();
    rows.check();
}

/// Archiving stays broken from one restore to the next: the WAL that the second one needs is in
/// `pg_wal` only, and on the timeline before.
#[test]
fn a_second_restore_finds_what_the_first_one_saved_from_a_broken_archive() {
    let (instance, mut rows) = running();
    rows.add(10);
    break_archive(&instance);
    rows.add(1);
    let (first, moment) = (rows.clone(), instance.sql.now());
    rows.add(1);
    instance.restore_to(&at(moment), &json!({}));
    first.check();

    rows = first;
    rows.add_from(1001, 1);
    let (second, moment) = (rows.clone(), instance.sql.now());
    rows.add(1);
    instance.restore_to(&at(moment), &json!({}));
    second.check();
    mend_archive(&instance);
    second.check();
}

/// PostgreSQL looks for a missing segment on the older timelines too, and in the one in which the
/// branch begins it would replay what the restore had left behind.
#[test]
fn what_was_left_behind_does_not_fill_a_gap_where_the_branch_begins() {
    let (instance, mut rows) = running();
    rows.add(10);
    instance.switch_wal();
    let whole = rows.clone();
    rows.add(10);
    let (moment, then) = (instance.sql.now(), rows.clone());
    // In the same segment: what the restore leaves behind.
    rows.add(10);
    let left = instance.switch_wal();
    instance.restore_to(&at(moment), &json!({}));
    then.check();
    let mut rows = then;
    rows.add_from(1000, 10);
    instance.switch_wal();
    let first = left.replacen("00000001", "00000002", 1);
    let damaged = Damaged::make(&instance, &first, Damage::Missing);
    let latest = json!({ "type": "latest" });
    is_refused(&instance, &latest, &first);
    let id = instance.begin_restore_to(&latest, &json!({ "accept": ["wal-gap"] }));
    wait_at_gap(&instance, &id, &first);
    promote(&instance, &id, &json!({ "accept": ["wal-gap"] })).expect(202);
    ends_well(&instance, &id, &whole);
    // It comes back, and with it everything.
    damaged.repair();
    instance.undo(&id);
    rows.check();
}

/// Paused by a person who looks, far from the target: not taken for the target.
#[test]
fn a_pause_by_hand_at_a_gap_is_not_the_target() {
    let (instance, rows) = running();
    let scene = Scene::play(&instance, rows, 1);
    let damaged = Damaged::make(&instance, &scene.middle, Damage::Missing);
    let accepting = json!({ "accept": ["wal-gap"] });
    let id = instance.begin_restore_to(&at(scene.moment), &accepting);
    wait_at_gap(&instance, &id, &scene.middle);
    instance.fence().run("SELECT pg_wal_replay_pause()");
    until("recovery was started again", PATIENCE, || {
        instance.job_log(&id).contains("starting again to tell").then_some(())
    });
    wait_at_gap(&instance, &id, &scene.middle);
    damaged.repair();
    ends_well(&instance, &id, &scene.then);
}
