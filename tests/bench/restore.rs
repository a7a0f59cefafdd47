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

/// The same to a moment between commits, in place: how long there is no database.
pub(crate) fn measure_moment(report: &mut Report) {
    let mut instance = Instance::with_full_backup();
    pgbench(&instance, &["-i", "-q", "-s", "70"]);
    instance.sql.run("CREATE TABLE bench_writes (id bigint GENERATED ALWAYS AS IDENTITY)");
    let writes = ["-n", "-t", "2000"];
    let (mut api, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let target = moment(&instance, &writes);
        plain.push(by_hand(&mut instance, &target_options(&target)));
        let target = moment(&instance, &writes);
        let target = serde_json::json!({ "type": "time", "value": target });
        api.push(through_the_api(&instance, &target));
    }
    let medians = Medians { api: median(api).as_secs_f64(), plain: median(plain).as_secs_f64() };
    report.note("to a moment, 1 GiB, by hand, median of 3", medians.plain, "s");
    let limit = medians.plain * 1.15 + 3.0;
    let what = "to a moment, 1 GiB, API; limit 1.15 x by hand + 3 s";
    report.judge(what, medians.api, "s", Limit::AtMost(limit));
}

/// A backup, writes, a moment, more writes. Answers the moment, RFC 3339.
fn moment(instance: &Instance, writes: &[&str]) -> String {
    prepare(instance, writes);
    let now = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', \
               'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let moment = instance.sql.run(now);
    pgbench(instance, writes);
    moment
}

/// `writes` are the arguments of the pgbench that writes between backup and restore.
fn alternate(instance: &mut Instance, writes: &[&str]) -> Medians {
    instance.sql.run("CREATE TABLE bench_writes (id bigint GENERATED ALWAYS AS IDENTITY)");
    let latest = serde_json::json!({ "type": "latest" });
    let (mut api, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        prepare(instance, writes);
        plain.push(by_hand(instance, &[]));
        prepare(instance, writes);
        api.push(through_the_api(instance, &latest));
    }
    Medians { api: median(api).as_secs_f64(), plain: median(plain).as_secs_f64() }
}

fn prepare(instance: &Instance, writes: &[&str]) {
    let body = serde_json::json!({ "type": "full", "on_conflict": "queue" });
    let job = instance.http.post_and_wait(BACKUPS, &body, WAIT_S).expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}");
    pgbench(instance, writes);
}

/// pgBackRest's options for a moment, as its user guide has them.
fn target_options(moment: &str) -> [String; 3] {
    let plain = moment.replace('T', " ").replace('Z', "+00");
    ["--type=time".to_owned(), format!("--target={plain}"), "--target-action=promote".to_owned()]
}

fn through_the_api(instance: &Instance, target: &serde_json::Value) -> Duration {
    let mut request = Instance::restore_request();
    request["target"] = target.clone();
    let begin = Instant::now();
    let reply = instance.http.post_and_wait(RESTORES, &request, WAIT_S);
    wait_for_writes(instance);
    let took = begin.elapsed();
    let job = reply.expect(200).json();
    assert_eq!(job["state"], "succeeded", "{job:#}");
    took
}

/// Headrest steps aside for it; neither its stop nor its start is measured.
fn by_hand(instance: &mut Instance, target: &[String]) -> Duration {
    let hand = ByHand::beside(instance);
    instance.stop();
    hand.start_server();
    let begin = Instant::now();
    hand.stop_server();
    let target = target.iter().map(String::as_str);
    hand.pgbackrest(&["--delta"].into_iter().chain(target).chain(["restore"]).collect::<Vec<_>>());
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
