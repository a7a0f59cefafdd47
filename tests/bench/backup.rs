//! A backup through the API against `pgbackrest backup`.
//!
//! pgBackRest waits for the next full second of the clock before it copies, so what a backup of a
//! small cluster takes depends on the moment it begins at. Hence a cluster of 600 MiB, and both
//! sides of a pair begin at the same fraction of a second, each pair at another.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::by_hand::{ByHand, pgbench};
use crate::report::{Limit, Report, median};
use crate::support::instance::Instance;

const PAIRS: u32 = 5;

/// Full backups, in alternation.
pub(crate) fn measure(report: &mut Report) {
    let instance = Instance::with_full_backup();
    pgbench(&instance, &["-i", "-q", "-s", "40"]);
    let hand = ByHand::beside(&instance);
    let (mut api, mut plain, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let phase = Duration::from_secs(1) * pair / PAIRS;
        let by_hand = || timed(phase, || hand.pgbackrest(&["--type=full", "backup"]));
        let through_the_api = || timed(phase, || drop(instance.good_backup("full")));
        // Neither side always finds the disk as the other one left it.
        let (by_hand, through_the_api) = if pair % 2 == 0 {
            (by_hand(), through_the_api())
        } else {
            let second = through_the_api();
            (by_hand(), second)
        };
        ratios.push(through_the_api.as_secs_f64() / by_hand.as_secs_f64());
        plain.push(by_hand);
        api.push(through_the_api);
    }
    ratios.sort_by(f64::total_cmp);
    report.note("full backup by hand, median of 5", median(plain).as_secs_f64(), "s");
    report.note("full backup through the API, median of 5", median(api).as_secs_f64(), "s");
    let ratio = ratios[ratios.len() / 2];
    report.judge("backup, API / by hand, median of 5 pairs", ratio, "", Limit::AtMost(1.05));
}

/// Begins at this fraction of a second of the clock.
fn timed(phase: Duration, work: impl FnOnce()) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    let now = Duration::from_nanos(now.subsec_nanos().into());
    let later = phase + Duration::from_secs(1);
    thread::sleep(phase.checked_sub(now).unwrap_or_else(|| later.saturating_sub(now)));
    let begin = Instant::now();
    work();
    begin.elapsed()
}
