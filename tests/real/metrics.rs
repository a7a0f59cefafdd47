//! A scrape of a service that works.

use crate::support::instance::Instance;
use crate::support::{SOON, until};

fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit_once(' ').unwrap().1.parse().ok()
}

#[test]
fn a_backup_and_a_crash_are_in_the_next_scrape_and_after_a_restart() {
    let mut instance = Instance::with_full_backup();
    let size = instance.http.get("/api/v1/stanzas/main/backups/latest").expect(200).json();
    let size = size["size_bytes"].as_f64().unwrap();
    let backups = "headrest_jobs_total{kind=\"backup\",outcome=\"succeeded\"}";
    let last_size = "pgbackrest_backup_last_size_bytes{backup_type=\"incr\"";
    let up = "headrest_process_up{process=\"postgres\"}";
    let restarts = "headrest_process_restarts_total{process=\"postgres\"}";
    let scrape = |instance: &Instance| instance.http.get("/metrics").expect(200).body;
    let text = until("the backup is counted", SOON, || {
        Some(scrape(&instance)).filter(|text| value(text, backups) == Some(1.0))
    });
    assert_eq!(value(&text, last_size), Some(size), "{text}");
    let age = value(&text, "pgbackrest_backup_since_last_completion_seconds").unwrap();
    assert!((0.0..600.0).contains(&age), "{age}");
    assert_eq!((value(&text, up), value(&text, restarts)), (Some(1.0), Some(0.0)));
    // pgBackRest's version as a number, whatever is installed here.
    assert!(value(&text, "pgbackrest_version_info").unwrap() >= 2_000_000.0);

    let postmaster = rustix::process::Pid::from_raw(instance.postmaster().unwrap()).unwrap();
    rustix::process::kill_process(postmaster, rustix::process::Signal::KILL).unwrap();
    until("the crash is counted", SOON, || {
        Some(scrape(&instance)).filter(|text| value(text, restarts) == Some(1.0))
    });
    instance.wait_ready();

    instance.stop();
    instance.start();
    // From the first scrape on: a counter that begins at 0 and jumps would be a job too many.
    assert_eq!(value(&scrape(&instance), backups), Some(1.0));
}
