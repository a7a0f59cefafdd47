//! Every way a pgbackrest can end or misbehave, had from a script in its place.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::jobs::id_of;
use crate::support::process::Process;
use crate::support::within;

fn instance_with_fake() -> (Instance, Fake) {
    let mut instance = Instance::new();
    let fake = Fake::installed_in(&mut instance);
    instance.start();
    instance.wait_ready();
    (instance, fake)
}

fn failed_backup(instance: &Instance) -> Value {
    let job = instance.backup(&json!({ "type": "full" }));
    assert_eq!(job["state"], "failed", "{job:#}");
    job["error"].clone()
}

#[test]
fn each_exit_code_fails_the_job_with_its_own_name() {
    let (instance, fake) = instance_with_fake();
    let mut names = Vec::new();
    for code in 25..=125 {
        fake.on(
            "backup",
            &format!("echo '2026-11-20 10:00:00.000 P00  ERROR: [{code:03}]: what went wrong {code}'; exit {code}"),
        );
        let error = failed_backup(&instance);
        assert_eq!(error["exit_code"], code, "{error:#}");
        assert_eq!(error["message"], format!("what went wrong {code}"), "{error:#}");
        assert!(!error["code"].as_str().unwrap().is_empty(), "{error:#}");
        assert!(!error["hints"].as_array().unwrap().is_empty(), "{error:#}");
        names.push(error["exit_name"].as_str().unwrap().to_owned());
    }
    let known = |code: usize| names[code - 25].as_str();
    assert_eq!(known(50), "LockAcquireError");
    assert_eq!(known(56), "DbConnectError");
    assert_eq!(known(82), "ArchiveTimeoutError");
    let mut distinct: Vec<_> = names.iter().filter(|name| *name != "unknown").collect();
    let count = distinct.len();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), count, "two codes have one name");
    assert!(count >= 70, "only {count} codes have a name");
    // Silent failures have a message as well.
    fake.on("backup", "exit 57");
    assert!(!failed_backup(&instance)["message"].as_str().unwrap().is_empty());
    assert_eq!(instance.http.probe("/livez"), Some(200));
}

#[test]
fn a_killed_pgbackrest_is_no_exit_code() {
    let (instance, fake) = instance_with_fake();
    for (signal, name) in [("KILL", "SIGKILL"), ("SEGV", "SIGSEGV"), ("TERM", "SIGTERM")] {
        fake.on("backup", &format!("kill -{signal} $$; sleep 60"));
        let error = failed_backup(&instance);
        assert_eq!(error["exit_code"], Value::Null, "{error:#}");
        assert_eq!(error["retryable"], true, "{error:#}");
        assert!(error["message"].as_str().unwrap().contains(name), "{error:#}");
    }
    // A main process that leaves its child behind with the pipe open is not waited for.
    fake.on("backup", "sleep 1000 & exit 41");
    let error = failed_backup(&instance);
    assert_eq!(error["exit_code"], 41);
    let left = |p: &Process| p.title.starts_with("sleep 1000");
    assert!(!instance.processes().iter().any(left), "the child is left");
}

#[test]
fn a_gibibyte_of_output_fills_neither_memory_nor_history() {
    let (instance, fake) = instance_with_fake();
    // Half in long lines, half in one line without an end.
    fake.on(
        "backup",
        "echo 'the first line'\n\
         yes \"$(printf '%4000s' | tr ' ' x)\" | head -c 536870912\n\
         echo\n\
         head -c 536870912 /dev/zero | tr '\\0' y\n\
         echo\necho 'the last line'\nexit 99",
    );
    let job = instance.backup(&json!({ "type": "full" }));
    assert_eq!(job["error"]["exit_code"], 99, "{:#}", job["error"]);
    let peak = Process::status(instance.pid(), "VmHWM").unwrap();
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 100 << 10, "{peak} kB at its peak");
    let log = instance.job_log(id_of(&job));
    assert!(log.len() < 16 << 20, "a log of {} bytes", log.len());
    assert!(log.contains("the first line") && log.contains("the last line"));
    assert!(log.contains("were not kept"), "nobody says that lines are missing");
    let history = fs::metadata(instance.root.join("state/headrest.db")).unwrap().len();
    assert!(history < 32 << 20, "a history of {history} bytes");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.len() < 10_000, "a message of {} bytes", message.len());
}

#[test]
fn output_that_is_no_text_is_shown_as_well_as_it_can_be() {
    let (instance, fake) = instance_with_fake();
    fake.on(
        "backup",
        r"printf 'begin \377\376\300 end\r\n\000\033[31mred\033[0m\n'; printf 'on stderr \351\n' >&2; exit 83",
    );
    let job = instance.backup(&json!({ "type": "full" }));
    assert_eq!(job["error"]["exit_code"], 83);
    let log = instance.job_log(id_of(&job));
    assert!(log.contains("begin ") && log.contains(" end") && log.contains("on stderr"), "{log:?}");
    assert!(!log.contains('\0') && !log.contains('\u{1b}'), "control characters: {log:?}");
}

#[test]
fn a_pgbackrest_that_cannot_be_started_fails_the_job_and_nothing_else() {
    let (instance, fake) = instance_with_fake();
    fs::set_permissions(fake.program(), fs::Permissions::from_mode(0o644)).unwrap();
    let error = failed_backup(&instance);
    assert_eq!(error["code"], "pgbackrest-not-started", "{error:#}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("pgbackrest") && message.contains("denied"), "{message}");
    assert_eq!(error["exit_code"], Value::Null);

    fs::remove_file(fake.program()).unwrap();
    let error = failed_backup(&instance);
    assert_eq!(error["code"], "pgbackrest-not-started", "{error:#}");
    assert!(error["message"].as_str().unwrap().contains("No such file"), "{error:#}");
    let info = instance.http.get("/api/v1/stanzas/main/info");
    assert_eq!(info.problem(503), "repository-unavailable");
    instance.wait_ready();
}

/// Missing from the beginning, the server still runs, and the reason is in the history.
#[test]
fn without_a_pgbackrest_the_server_still_starts() {
    let mut instance = Instance::new();
    let missing = instance.root.join("no-such-pgbackrest");
    instance.set("HEADREST_PGBACKREST__BIN", missing.display().to_string());
    instance.spawn();
    let up = within(Duration::from_secs(60), || {
        instance
            .exit_status()
            .map(Err)
            .or_else(|| (instance.http.probe("/readyz") == Some(200)).then_some(Ok(())))
    });
    match up.expect("neither up nor ended") {
        Ok(()) => {
            instance.sql.run("SELECT 1");
            let error = failed_backup(&instance);
            assert_eq!(error["code"], "pgbackrest-not-started", "{error:#}");
        }
        // Refusing to start is as good, with a line that names it.
        Err(status) => {
            assert!(status.code().is_some_and(|code| code == 1 || code == 64), "{status}");
            assert!(instance.log().contains("no-such-pgbackrest"), "{}", instance.log());
        }
    }
}
