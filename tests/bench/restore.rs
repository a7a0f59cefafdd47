//! A delta restore through the API against: stop, `pgbackrest restore --delta`, start, wait until
//! it takes writes.
//!
//! Each restore ends in a promotion to a new timeline. So a full backup and the same writes come
//! before every one of them: both sides restore the same kind of set and replay as much.

use std::time::{Duration, Instant};

use crate::by_hand::{ByHand, pgbench};
use crate::report::{Limit, Report, median};
use crate::support::instance::Instance;
use crate::support::jobs::{BACKUPS, RESTORES};
use crate::support::until;

const PAIRS: usize = 3;
const LONG: Duration = Duration::from_mins(5);
/// Seconds that a request waits for its job; the harness gives up a little later.
const WAIT_S: u32 = 230;

/// Medians of both sides, in seconds.
struct Medians {
    api: f64,
    plain: f64,
}

/// A cluster as initdb makes it.
pub(crate) fn measure_empty(report: &mut Report) {
    let mut instance = Instance::with_full_backup();
    let medians = alternate(&mut instance, &["-i", "-q", "-s", "1"]);
    report.note("restore of an empty cluster by hand, median of 3", medians.plain, "s");
    report.note("restore of an empty cluster through the API, median of 3", medians.api, "s");
    let more = medians.api - medians.plain;
    report.judge("restore of an empty cluster, API - by hand", more, "s", Limit::AtMost(2.0));
}

/// `pgbench -i -s 70`.
pub(crate) fn measure_large(report: &mut Report) {
    let mut instance = Instance::with_full_backup();
    pgbench(&instance, &["-i", "-q", "-s", "70"]);
    let size = instance.sql.run("SELECT pg_database_size('postgres') / 1048576");
    report.note("size of the database", size.parse().expect("a number"), "MiB");
    let medians = alternate(&mut instance, &["-n", "-t", "2000"]);
    report.note("restore of it by hand, median of 3", medians.plain, "s");
    report.note("restore of it through the API, median of 3", medians.api, "s");
    let ratio = medians.api / medians.plain;
    report.judge("restore of a 1 GiB cluster, API / by hand", ratio, "", Limit::AtMost(1.10));
}

/// `writes` are the arguments of the pgbench that writes between backup and restore.
fn alternate(instance: &mut Instance, writes: &[&str]) -> Medians {
    instance.sql.run("CREATE TABLE bench_writes (id bigint GENERATED ALWAYS AS IDENTITY)");
    let (mut api, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        prepare(instance, writes);
        plain.push(by_hand(instance));
        prepare(instance, writes);
        api.push(through_the_api(instance));
    }
    Medians { api: median(api).as_secs_f64(), plain: median(plain).as_secs_f64() }
}

fn prepare(instance: &Instance, writes: &[&str]) {
    let body = serde_json::json!({ "type": "full", "on_conflict": "queue" });
    let job = instance.http.post_and_wait(BACKUPS, &body, WAIT_S).expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}");
    pgbench(instance, writes);
}

fn through_the_api(instance: &Instance) -> Duration {
    let begin = Instant::now();
    let reply = instance.http.post_and_wait(RESTORES, &Instance::restore_request(), WAIT_S);
    wait_for_writes(instance);
    let took = begin.elapsed();
    let job = reply.expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}");
    took
}

/// Headrest steps aside for it; neither its stop nor its start is measured.
fn by_hand(instance: &mut Instance) -> Duration {
    let hand = ByHand::beside(instance);
    instance.stop();
    hand.start_server();
    let begin = Instant::now();
    hand.stop_server();
    hand.pgbackrest(&["--delta", "restore"]);
    hand.start_server();
    wait_for_writes(instance);
    let took = begin.elapsed();
    hand.stop_server();
    instance.start();
    instance.wait_ready();
    took
}

fn wait_for_writes(instance: &Instance) {
    until("PostgreSQL takes writes", LONG, || {
        instance.sql.attempt("INSERT INTO bench_writes DEFAULT VALUES").ok()
    });
}
