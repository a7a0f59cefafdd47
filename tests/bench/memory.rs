//! What Headrest keeps: resident memory after 100 jobs, and its size on disk.
//!
//! The jobs are checks by a script that says as much as the real one: what is measured is
//! Headrest's memory of them. PostgreSQL is real.

use std::fs;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::report::{Limit, Report};
use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::process::Process;

const JOBS: usize = 100;
const LOG: &str = include_str!("../fixtures/pgbackrest/2.45/log-backup-full.txt");

/// Resident memory, idle, and the executable.
pub(crate) fn measure(report: &mut Report) {
    let mut instance = Instance::new();
    let fake = Fake::installed_in(&mut instance);
    let log = instance.root.join("fake/log");
    fs::write(&log, LOG).expect("write");
    fake.on("check", &format!("cat '{}'", log.display()));
    instance.start();
    instance.wait_ready();
    report.note("resident memory after the start", resident_mib(&instance), "MiB");
    for _ in 0..JOBS {
        let reply = instance.http.post_and_wait("/api/v1/stanzas/main/check", &json!({}), 60);
        let job = reply.expect(200).json();
        assert_eq!(job["state"], "succeeded", "{job:#}");
    }
    // Idle: buffers of the last requests are given back.
    thread::sleep(Duration::from_secs(5));
    let resident = resident_mib(&instance);
    report.judge("resident memory after 100 jobs", resident, "MiB", Limit::AtMost(25.0));
    let binary = fs::metadata(env!("CARGO_BIN_EXE_headrest")).expect("the executable");
    report.note("the executable", mib(binary.len()), "MiB");
}

fn resident_mib(instance: &Instance) -> f64 {
    let shown = Process::status(instance.pid(), "VmRSS").expect("VmRSS");
    let kib = shown.strip_suffix(" kB").and_then(|kib| kib.trim().parse::<u64>().ok());
    mib(kib.expect("a number") * 1024)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}
