//! Restores to a moment: exactly the rows of that moment are there, whatever the moment is given
//! by, and on whichever timeline it was.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::support::instance::Instance;
use crate::support::jobs::is_final;
use crate::support::moments::at;
use crate::support::rows::Rows;
use crate::support::sql::Sql;

const MICROS: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;";

/// A row, and the two moments that its commit was between.
struct Commit {
    id: u32,
    before: Timestamp,
    after: Timestamp,
}

/// Commits rows one by one, with 5 to 60 ms between them.
fn commit_apart(sql: &Sql, commits: &mut Vec<Commit>, count: u32, random: &mut StdRng) {
    let first = commits.last().map_or(1, |last| last.id + 1);
    let mut script = String::new();
    for id in first..first + count {
        let pause = random.random_range(0.005..0.06);
        write!(script, "BEGIN; INSERT INTO t VALUES ({id}); {MICROS} COMMIT; {MICROS}").unwrap();
        write!(script, "SELECT pg_sleep({pause:.4});").unwrap();
    }
    let answer = sql.run(&script);
    let moments: Vec<Timestamp> = answer
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| Timestamp::from_microsecond(line.parse().unwrap()).unwrap())
        .collect();
    assert_eq!(moments.len(), 2 * usize::try_from(count).unwrap(), "{answer}");
    let pairs = (first..).zip(moments.chunks(2));
    commits.extend(pairs.map(|(id, pair)| Commit { id, before: pair[0], after: pair[1] }));
}

/// A moment between two commits, and how many rows had been committed by then. Every second one is
/// as probable wherever it is, the others come near many commits.
fn draw(commits: &[Commit], random: &mut StdRng) -> (Timestamp, usize) {
    loop {
        let gap = if random.random::<bool>() {
            random.random_range(0..commits.len() - 1)
        } else {
            let ends = [commits.first(), commits.last()].map(|c| c.unwrap().after.as_microsecond());
            let moment = random.random_range(ends[0]..ends[1]);
            commits.iter().filter(|c| c.after.as_microsecond() <= moment).count() - 1
        };
        let begin = commits[gap].after.as_microsecond();
        let end = commits[gap + 1].before.as_microsecond();
        if begin < end {
            let moment = random.random_range(begin..end);
            return (Timestamp::from_microsecond(moment).unwrap(), gap + 1);
        }
    }
}

#[test]
fn twenty_random_moments_of_the_original_timeline_come_back_exactly() {
    let instance = Instance::with_full_backup();
    let first_backup = instance.wait_first_backup();
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    instance.sql.run("CREATE TABLE t (id integer PRIMARY KEY)");
    instance.wait_restorable(&first_backup);

    let mut commits = Vec::new();
    let switch = || instance.sql.run("SELECT pg_switch_wal()");
    commit_apart(&instance.sql, &mut commits, 20, &mut random);
    switch();
    commit_apart(&instance.sql, &mut commits, 10, &mut random);
    // Commits go on while the second backup is taken, and right after it.
    let second = instance.begin_backup("full");
    while !is_final(&instance.job(&second)) {
        commit_apart(&instance.sql, &mut commits, 10, &mut random);
    }
    let second_backup = instance.wait_job(&second);
    assert_eq!(second_backup["state"], "succeeded", "{second_backup:#}");
    commit_apart(&instance.sql, &mut commits, 20, &mut random);
    switch();
    commit_apart(&instance.sql, &mut commits, 20, &mut random);
    instance.sql.wait_past(Instance::first_moment(&second_backup));
    commit_apart(&instance.sql, &mut commits, 20, &mut random);
    switch();
    commit_apart(&instance.sql, &mut commits, 10, &mut random);

    let sets = [&first_backup, &second_backup];
    for round in 0..20 {
        let (moment, count) = draw(&commits, &mut random);
        let legal = sets.iter().rev().find(|set| Instance::first_moment(set) <= moment);
        let set = &legal.expect("every moment is after the first backup")["result"]["label"];
        eprintln!("round {round}: {moment}, {count} of {} rows, from {set}", commits.len());
        let job = instance.restore_to(&at(moment), &json!({}));
        assert_eq!(job["result"]["set"], *set, "{job:#}");
        let view = instance.restore_view(job["id"].as_str().unwrap());
        assert_eq!(view["timeline"], 1, "the server was on timeline 1 then: {view:#}");
        assert_eq!(job["result"]["timeline"], round + 2, "{job:#}");
        let found = instance.sql.run("SELECT id FROM t ORDER BY id");
        let found: BTreeSet<u32> = found.lines().map(|line| line.parse().unwrap()).collect();
        let wanted: BTreeSet<u32> = commits[..count].iter().map(|commit| commit.id).collect();
        assert_eq!(found, wanted, "seed {seed}, round {round}, {moment}");
    }
}

/// Nothing is committed after the moment but what Headrest commits itself; without that PostgreSQL
/// would not reach it.
#[test]
fn a_moment_of_an_idle_server_can_be_restored_to() {
    let instance = Instance::with_full_backup();
    let backup = instance.wait_first_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let ago = SignedDuration::from_secs(5);
    let idle_since = instance.sql.now().max(Instance::first_moment(&backup));
    instance.sql.wait_past(idle_since + ago);
    let job = instance.restore_to(&at(instance.sql.now() - ago), &json!({}));
    rows.check();
    assert_eq!(job["result"]["timeline"], 2, "{job:#}");
}

/// Left alone, PostgreSQL follows the newest timeline, which left the old one before the second
/// moment.
#[test]
fn a_second_restore_to_a_later_moment_of_the_old_timeline_finds_it() {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    let mut next = || {
        rows.add(10);
        instance.sql.run("SELECT pg_switch_wal()");
        (instance.sql.now(), rows.clone())
    };
    let (first, at_first) = next();
    let (second, at_second) = next();
    next();

    instance.restore_to(&at(first), &json!({}));
    at_first.check();
    // The second timeline, with a moment of its own.
    let mut rows = at_first.clone();
    rows.add_from(1000, 10);
    let (third, at_third) = (instance.sql.now(), rows.clone());
    rows.add(10);

    let job = instance.restore_to(&at(second), &json!({}));
    at_second.check();
    assert_eq!(job["result"]["timeline"], 3, "{job:#}");
    let mut rows = at_second.clone();
    rows.add_from(2000, 10);
    let (fourth, at_fourth) = (instance.sql.now(), rows.clone());
    rows.add(10);

    // The newest timeline, then the one before, then the first again.
    instance.restore_to(&at(fourth), &json!({}));
    at_fourth.check();
    instance.restore_to(&at(third), &json!({}));
    at_third.check();
    instance.restore_to(&at(first), &json!({}));
    at_first.check();
    // And what was committed last of all is there as well.
    let mut rows = at_first.clone();
    rows.add_from(3000, 10);
    instance.good_restore();
    rows.check();
}

/// When nothing could be committed the end of the timeline before is what there was.
#[test]
fn a_moment_in_which_a_restore_was_under_way_is_the_end_of_the_timeline_before() {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let (first, at_first) = (instance.sql.now(), rows.clone());
    rows.add(10);
    let at_end = rows;
    let id = instance.begin_restore_to(&at(first), &json!({ "on_reached": "pause" }));
    instance.wait_at(&id, first);
    let between = Timestamp::now();
    instance.steer(&id, "promote", &json!({})).expect(202);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "succeeded", "{job:#}");
    instance.wait_ready();
    let mut rows = at_first.clone();
    rows.add_from(1000, 10);
    let plan = instance.plan(&at(between), &json!({}));
    assert_eq!(plan["timeline"], 1, "{plan:#}");
    instance.restore_to(&at(between), &json!({}));
    at_end.check();
}

/// A commit, as its record and PostgreSQL tell it.
struct Known {
    xid: String,
    lsn: String,
    time: Timestamp,
}

fn commit_known(sql: &Sql, id: u32) -> Known {
    let from = sql.run("SELECT pg_current_wal_insert_lsn()");
    let xid = sql.run(&format!("INSERT INTO t VALUES ({id}) RETURNING pg_current_xact_id()"));
    let lsn = sql.run(&format!(
        "SELECT start_lsn FROM pg_get_wal_records_info('{from}', pg_current_wal_flush_lsn()) \
         WHERE xid = '{xid}' AND record_type = 'COMMIT'"
    ));
    let micros = sql.run(&format!(
        "SELECT (extract(epoch FROM pg_xact_commit_timestamp('{xid}')) * 1000000)::bigint"
    ));
    Known { xid, lsn, time: Timestamp::from_microsecond(micros.parse().unwrap()).unwrap() }
}

#[test]
fn what_is_exactly_at_the_target_is_there_unless_it_is_exclusive() {
    let mut instance = Instance::new();
    instance.set("HEADREST_POSTGRES__HEARTBEAT", "1s");
    let args = format!("{} -c track_commit_timestamp=on", instance.env["HEADREST_POSTGRES__ARGS"]);
    instance.set("HEADREST_POSTGRES__ARGS", args);
    instance.start();
    instance.wait_ready();
    let backup = instance.wait_first_backup();
    instance.sql.run("CREATE EXTENSION pg_walinspect");
    instance.sql.run("CREATE TABLE t (id integer PRIMARY KEY)");
    instance.wait_restorable(&backup);
    // A transaction id is found only after a commit that Headrest knows.
    instance.switch_wal();
    let commits: Vec<Known> = (1..=5).map(|id| commit_known(&instance.sql, id)).collect();
    let middle = &commits[2];

    let restored = |target: &Value, more: &Value| {
        let job = instance.restore_to(target, more);
        let followed = instance.restore_view(job["id"].as_str().unwrap())["timeline"].clone();
        let rows = instance.sql.run("SELECT id FROM t ORDER BY id").replace('\n', " ");
        (rows, followed.as_u64().unwrap())
    };
    let lsn =
        |exclusive: bool| json!({ "type": "lsn", "value": middle.lsn, "exclusive": exclusive });
    let xid =
        |exclusive: bool| json!({ "type": "xid", "value": middle.xid, "exclusive": exclusive });
    let time = |exclusive: bool| json!({ "type": "time", "value": middle.time.to_string(), "exclusive": exclusive });
    let original = json!({ "timeline": 1 });
    let (all, without) = (("1 2 3".to_owned(), 1), ("1 2".to_owned(), 1));
    // Where a position or a transaction is depends on the timeline; a moment says it itself.
    assert_eq!(restored(&lsn(false), &json!({})), all);
    assert_eq!(restored(&lsn(true), &original), without);
    assert_eq!(restored(&xid(false), &original), all);
    assert_eq!(restored(&xid(true), &json!({ "timeline": "1" })), without);
    assert_eq!(restored(&time(false), &json!({})), all);
    assert_eq!(restored(&time(true), &json!({})), without);
    // The present timeline left the first one after the second row, so it has this as well.
    let second = json!({ "type": "lsn", "value": commits[1].lsn });
    assert_eq!(restored(&second, &json!({ "timeline": "current" })), ("1 2".to_owned(), 7));
    let latest = json!({ "type": "latest" });
    instance.sql.run("INSERT INTO t VALUES (100)");
    assert_eq!(restored(&latest, &json!({ "timeline": "latest" })), ("1 2 100".to_owned(), 8));
    assert_eq!(restored(&latest, &original), ("1 2 3 4 5".to_owned(), 1));
}

#[test]
fn a_chosen_backup_can_be_restored_as_it_is() {
    let instance = Instance::with_full_backup();
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let backup = instance.good_backup("full");
    let set = backup["result"]["label"].as_str().unwrap();
    let in_backup = rows.clone();
    rows.add(10);
    instance.good_backup("incr");
    rows.add(10);
    let immediate = json!({ "type": "immediate" });
    let job = instance.restore_to(&immediate, &json!({ "set": set }));
    assert_eq!(job["result"]["set"], set, "{job:#}");
    in_backup.check();
    // Again, now that the server is on a timeline which the backup is no part of at its end.
    let job = instance.restore_to(&immediate, &json!({ "set": set }));
    assert_eq!(job["result"]["set"], set, "{job:#}");
    in_backup.check();
}

#[test]
fn a_named_moment_can_be_restored_to_from_wherever_the_server_is() {
    let instance = Instance::with_full_backup();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(10);
    let (before, at_before) = (instance.sql.now(), rows.clone());
    rows.add(10);
    let named = rows.clone();
    let points = "/api/v1/stanzas/main/restore-points";
    instance.http.post(points, &json!({ "name": "before-release" })).expect(201);
    rows.add(10);
    let target = json!({ "type": "name", "value": "before-release" });
    instance.restore_to(&target, &json!({}));
    named.check();
    // On the timeline that begins there; then on one that branched off before.
    rows = named.clone();
    rows.add_from(1000, 10);
    instance.restore_to(&target, &json!({}));
    named.check();
    instance.restore_to(&at(before), &json!({}));
    at_before.check();
    instance.restore_to(&target, &json!({}));
    named.check();
}
