//! Restores to a moment, with commits after it, that are cut off: whatever was killed when, and
//! whatever was lost, there is never a row past the target in the end.

use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::restore_kills::{Watch, pause, phase_of, recover_and_check};
use crate::support::fake::Fake;
use crate::support::files;
use crate::support::instance::Instance;
use crate::support::jobs::{BACKUPS, RESTORES, accepted, is_final, time};
use crate::support::moments::{at, request};
use crate::support::process::{self, Process};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, SOON, until, within};

const CHECK: &str = "/api/v1/stanzas/main/check";

/// Two moments with commits before, between and after them, to be restored to in turn, so that the
/// rows change from restore to restore.
struct Turns {
    moments: [(Timestamp, Rows); 2],
    number: u32,
}

impl Turns {
    #[track_caller]
    fn of(instance: &Instance) -> Self {
        instance.wait_restorable(&instance.wait_first_backup());
        let mut rows = Rows::in_new_table(&instance.sql, "t");
        let mut moment = || {
            rows.add(10);
            (instance.sql.now(), rows.clone())
        };
        let moments = [moment(), moment()];
        moment();
        // The archive tells when a segment came by the second: where that is all that is known, a
        // moment of the same second might be after its last commit.
        instance.sql.wait_past(moments[1].0 + SignedDuration::from_secs(1));
        instance.switch_wal();
        Self { moments, number: 0 }
    }

    /// Commits what must vanish, and answers where to go next and what is there then.
    #[track_caller]
    fn next(&mut self, instance: &Instance) -> (Value, Rows) {
        self.number += 1;
        let (moment, rows) = &self.moments[self.number as usize % 2];
        instance.sql.run(&format!("INSERT INTO t VALUES ({})", 1000 + self.number));
        (at(*moment), rows.clone())
    }
}

/// Waits for a job's end. Whoever gets in meanwhile sees these rows, and none past the target.
#[track_caller]
fn wait_and_look(instance: &Instance, id: &str, rows: &Rows) -> Value {
    instance.wait_job_until(id, "has ended", |job| {
        if let Ok(count) = instance.sql.attempt("SELECT count(*) FROM t") {
            assert_eq!(count, rows.count().to_string(), "a client got in and saw other rows");
        }
        is_final(job)
    })
}

/// The postmaster and everybody it started, at once. Answers whom.
fn kill_servers(instance: &Instance, postmaster: i32) -> usize {
    process::signal(postmaster, Signal::KILL);
    let data = instance.data_dir();
    let theirs = |p: &Process| {
        p.program == "postgres" && process::working_directory(p.pid).as_ref() == Some(&data)
    };
    let all: Vec<_> = process::all().into_iter().filter(theirs).collect();
    for process in &all {
        process::signal(process.pid, Signal::KILL);
    }
    all.len()
}

/// When the server is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Critical {
    /// The new timeline has a number, and nothing more.
    Selected,
    /// PostgreSQL says that it has recovered.
    Recovered,
    /// It answers that it is out of recovery.
    OutOfRecovery,
    /// The checkpoint that makes the promotion durable is being made.
    Checkpoint,
}

impl Critical {
    const ALL: [Self; 4] = [Self::Selected, Self::Recovered, Self::OutOfRecovery, Self::Checkpoint];

    /// Waits for it, without a pause: it lasts some milliseconds.
    #[track_caller]
    fn wait(self, instance: &Instance, logged: usize) {
        let log = instance.root.join("state/log/postgres.log");
        let said = |words: &[&str]| {
            let text = fs::read(&log).unwrap();
            let text = String::from_utf8_lossy(&text[logged..]).into_owned();
            let mut rest = text.as_str();
            words.iter().all(|word| match rest.split_once(word) {
                Some((_, after)) => {
                    rest = after;
                    true
                }
                None => false,
            })
        };
        let recovered = "archive recovery complete";
        let fence = instance.fence();
        let deadline = Instant::now() + PATIENCE;
        let reached = || match self {
            Self::Selected => said(&["selected new timeline ID"]),
            Self::Recovered => said(&[recovered]),
            Self::OutOfRecovery => {
                said(&["selected new timeline ID"])
                    && fence.attempt("SELECT pg_is_in_recovery()").as_deref() != Ok("t")
            }
            Self::Checkpoint => said(&[recovered, "checkpoint starting"]),
        };
        while !reached() {
            assert!(Instant::now() < deadline, "{self:?} is not reached");
        }
    }
}

/// Ten promotions are cut off by the death of the server, in the four moments in turn.
fn servers_killed_while_promoting(with_headrest: bool) {
    let mut instance = Instance::with_full_backup();
    let mut turns = Turns::of(&instance);
    let watch = Watch::over(&instance);
    let mut hits = 0;
    for (round, critical) in Critical::ALL.into_iter().cycle().take(10).enumerate() {
        let (target, rows) = turns.next(&instance);
        let logged = fs::read(instance.root.join("state/log/postgres.log")).unwrap().len();
        let id = instance.begin_restore_to(&target, &json!({}));
        until("a fenced server", PATIENCE, || {
            (phase_of(&instance, &id) == "recovering").then_some(())
        });
        until("a postmaster", SOON, || instance.postmaster().filter(|pid| Process::lives(*pid)));
        critical.wait(&instance, logged);
        let postmaster = instance.postmaster().expect("a postmaster");
        let killed = kill_servers(&instance, postmaster);
        let phase = if with_headrest {
            instance.kill();
            let phase = phase_of(&instance, &id);
            let shown = instance.control("Latest checkpoint's TimeLineID");
            eprintln!(
                "round {round}, {critical:?}: {killed} killed in {phase}, on timeline {shown}"
            );
            instance.start();
            phase
        } else {
            "alive".to_owned()
        };
        let job = wait_and_look(&instance, &id, &rows);
        let log = instance.job_log(&id);
        assert_eq!(job["state"], "succeeded", "round {round}, {critical:?}: {job:#}\n{log}");
        let again = log.matches("restore command begin").count();
        eprintln!("round {round}, {critical:?}, {phase}: {killed} killed, copied {again} times");
        hits += usize::from(again > 1);
        instance.wait_ready();
        rows.check();
        assert_eq!(instance.server()["fenced_by"], Value::Null, "still fenced");
    }
    watch.check();
    assert!(hits > 0, "no promotion was cut off before it was durable");
}

#[test]
fn a_server_killed_while_it_is_promoted_brings_back_nothing_past_the_target() {
    servers_killed_while_promoting(false);
}

#[test]
fn a_server_killed_with_headrest_while_it_is_promoted_brings_back_nothing_past_the_target() {
    servers_killed_while_promoting(true);
}

/// Headrest is killed ten times, so many milliseconds after the first file is touched.
fn headrest_killed_while_files_are_replaced(millis: u64) {
    let mut instance = Instance::with_full_backup();
    let mut turns = Turns::of(&instance);
    let watch = Watch::over(&instance);
    for round in 0..10 {
        let (target, rows) = turns.next(&instance);
        let id = instance.begin_restore_to(&target, &json!({}));
        let deadline = Instant::now() + PATIENCE;
        while phase_of(&instance, &id) != "restoring" {
            assert!(Instant::now() < deadline, "phase restoring is not reached");
        }
        pause(Duration::from_millis(millis).as_secs_f64());
        instance.kill();
        let phase = phase_of(&instance, &id);
        eprintln!("round {round}: killed {millis} ms later, in phase {phase}");
        recover_and_check(&mut instance, &id, &phase, &rows);
    }
    watch.check();
}

#[test]
fn headrest_killed_20_ms_after_the_first_file_is_touched_ends_at_the_target() {
    headrest_killed_while_files_are_replaced(20);
}

#[test]
fn headrest_killed_100_ms_after_the_first_file_is_touched_ends_at_the_target() {
    headrest_killed_while_files_are_replaced(100);
}

#[test]
fn headrest_killed_300_ms_after_the_first_file_is_touched_ends_at_the_target() {
    headrest_killed_while_files_are_replaced(300);
}

#[test]
fn headrest_killed_600_ms_after_the_first_file_is_touched_ends_at_the_target() {
    headrest_killed_while_files_are_replaced(600);
}

/// Only the main process: its workers go on writing to PGDATA while it is tried again.
#[test]
fn a_killed_pgbackrest_whose_workers_live_on_ends_at_the_target() {
    let mut instance = Instance::new();
    instance.set("PGBACKREST_PROCESS_MAX", "2");
    instance.start();
    instance.wait_ready();
    let mut turns = Turns::of(&instance);
    let watch = Watch::over(&instance);
    for round in 0..3 {
        let (target, rows) = turns.next(&instance);
        instance.switch_wal();
        instance.stop_server();
        // So that there is much to copy.
        fs::remove_dir_all(instance.data_dir().join("base")).unwrap();
        let id = instance.begin_restore_to(&target, &json!({}));
        let worker = until("a worker is at work", SOON, || {
            let is_worker = |p: &Process| p.title.contains("restore:local");
            instance.pgbackrests().into_iter().find(is_worker)
        });
        process::signal(worker.parent, Signal::KILL);
        let job = wait_and_look(&instance, &id, &rows);
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
        let attempts = instance.journal().unwrap()["attempts"].as_u64();
        assert!(attempts >= Some(2), "round {round}: it was not killed in time");
        instance.wait_ready();
        rows.check();
    }
    watch.check();
}

/// The files are complete, but Headrest did not live to hear of it.
#[test]
fn headrest_killed_between_the_end_of_pgbackrest_and_its_note_ends_at_the_target() {
    let mut instance = Instance::new();
    let fake = Fake::around_the_real_one(&mut instance);
    instance.start();
    instance.wait_ready();
    let mut turns = Turns::of(&instance);
    let watch = Watch::over(&instance);
    let real = files::pgbackrest().display().to_string();
    let died = instance.root.join("died");
    for _ in 0..3 {
        let (target, rows) = turns.next(&instance);
        // The script's parent is Headrest.
        let script = format!(
            "{real} \"$@\"\nended=$?\nkill -9 $PPID\necho $ended > '{}'\nexit $ended",
            died.display()
        );
        fake.on("restore", &script);
        let id = instance.begin_restore_to(&target, &json!({}));
        instance.wait_exit();
        assert_eq!(instance.journal_phase(), "restoring");
        assert_eq!(instance.servers(), [], "a server on PGDATA");
        fake.forget("restore");
        recover_and_check(&mut instance, &id, "restoring", &rows);
    }
    watch.check();
}

/// Where a restore is cut off whose journal is lost then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CutOff {
    /// pgbackrest has begun: PGDATA is not a database.
    Restoring,
    /// The fenced server replays.
    Recovering,
    /// The order to promote is being given.
    Promoting,
    /// PostgreSQL has promoted itself, but a crash would undo it.
    Promoted,
}

/// Begins a restore and kills Headrest there.
#[track_caller]
fn kill_at(instance: &mut Instance, target: &Value, cut_off: CutOff) -> String {
    let log = instance.root.join("state/log/postgres.log");
    let logged = fs::read(&log).unwrap().len();
    let id = instance.begin_restore_to(target, &json!({}));
    let is_there = || {
        let phase = phase_of(instance, &id);
        match cut_off {
            CutOff::Restoring => {
                phase == "restoring" && !instance.data_dir().join("global/pg_control").exists()
            }
            CutOff::Recovering => {
                phase == "recovering" && instance.postmaster().is_some_and(Process::lives)
            }
            CutOff::Promoting => phase == "promoting",
            CutOff::Promoted => {
                let text = fs::read(&log).unwrap();
                String::from_utf8_lossy(&text[logged..]).contains("archive recovery complete")
            }
        }
    };
    let deadline = Instant::now() + PATIENCE;
    // Without a pause: what is waited for may be over within milliseconds.
    while !is_there() {
        assert!(Instant::now() < deadline, "{cut_off:?} is not reached");
    }
    instance.kill();
    eprintln!("killed in phase {}, meant {cut_off:?}", phase_of(instance, &id));
    id
}

/// Kills all servers of an instance whose Headrest is dead.
#[track_caller]
fn end_servers(instance: &Instance) {
    until("all server processes are gone", SOON, || {
        let all = instance.servers();
        for process in &all {
            process::signal(process.pid, Signal::KILL);
        }
        all.is_empty().then_some(())
    });
}

/// However a start of Headrest found things: either it ends the restore by itself, or it says that
/// one must restore again, and that helps. Nobody ever sees other rows than these.
#[track_caller]
fn comes_back(instance: &Instance, target: &Value, rows: &Rows) -> &'static str {
    let mut last = Value::Null;
    let how = within(PATIENCE, || {
        if let Ok(count) = instance.sql.attempt("SELECT count(*) FROM t") {
            assert_eq!(count, rows.count().to_string(), "a client got in and saw other rows");
        }
        last = instance.server();
        let reason = last["reason"].as_str().unwrap_or_default().to_lowercase();
        if last["state"] == "failed" && reason.contains("restore") {
            return Some("restored again");
        }
        (instance.http.probe("/readyz") == Some(200)).then_some("resumed by itself")
    });
    let how = how.unwrap_or_else(|| panic!("neither served nor explained: {last:#}"));
    if how == "restored again" {
        eprintln!("it says: {}", last["reason"]);
        assert_eq!(instance.servers(), [], "a server on a PGDATA that is not whole");
        instance.restore_to(target, &json!({}));
    }
    instance.wait_ready();
    until("all jobs have ended", PATIENCE, || instance.jobs().iter().all(is_final).then_some(()));
    rows.check();
    assert_eq!(instance.server()["fenced_by"], Value::Null, "still fenced");
    how
}

/// The journal is gone after a kill, and with it the note that PGDATA is not a database.
fn journal_lost(server_too: bool) {
    let mut instance = Instance::with_full_backup();
    let mut turns = Turns::of(&instance);
    let journal = instance.root.join("state/restore/main.json");
    for cut_off in [CutOff::Restoring, CutOff::Recovering, CutOff::Promoting, CutOff::Promoted] {
        let (target, rows) = turns.next(&instance);
        kill_at(&mut instance, &target, cut_off);
        if server_too {
            end_servers(&instance);
        }
        fs::remove_file(&journal).unwrap();
        instance.start();
        let how = comes_back(&instance, &target, &rows);
        eprintln!("{cut_off:?}: {how}");
    }
}

#[test]
fn a_restore_whose_journal_is_lost_is_never_served_half_way() {
    journal_lost(false);
}

#[test]
fn a_restore_whose_journal_and_server_are_lost_is_never_served_half_way() {
    journal_lost(true);
}

/// Removes the restore journal with all that goes with it, and the history.
fn forget_everything(instance: &Instance) {
    let state = instance.root.join("state");
    fs::remove_dir_all(state.join("restore")).unwrap();
    for entry in fs::read_dir(&state).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("headrest.db") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// Everything that Headrest knew of a restore is gone. What PGDATA shows of itself must do.
#[track_caller]
fn everything_forgotten(cut_off: CutOff, server_too: bool) {
    let mut instance = Instance::with_full_backup();
    let mut turns = Turns::of(&instance);
    let (target, rows) = turns.next(&instance);
    kill_at(&mut instance, &target, cut_off);
    if server_too {
        end_servers(&instance);
    }
    forget_everything(&instance);
    instance.start();
    let mut last = Value::Null;
    let told = within(SOON, || {
        assert!(instance.sql.attempt("SELECT 1").is_err(), "a client got in");
        assert_ne!(instance.http.probe("/readyz"), Some(200));
        last = instance.server();
        let reason = last["reason"].as_str()?.to_lowercase();
        reason.contains("restore again").then_some(())
    });
    assert!(told.is_some(), "nobody says that one must restore again: {last:#}");
    eprintln!("{}", last["reason"]);
    assert_eq!(last["state"], "failed", "{last:#}");
    assert_eq!(instance.servers(), [], "a server on a PGDATA that is not whole");
    assert_eq!(instance.http.probe("/livez"), Some(200));
    instance.restore_to(&target, &json!({}));
    rows.check();
}

#[test]
fn a_restore_that_is_forgotten_while_files_are_replaced_is_told_and_not_served() {
    everything_forgotten(CutOff::Restoring, false);
}

#[test]
fn a_restore_that_is_forgotten_while_it_recovers_is_told_and_not_served() {
    everything_forgotten(CutOff::Recovering, false);
}

#[test]
fn a_restore_that_is_forgotten_and_whose_server_is_dead_is_told_and_not_served() {
    everything_forgotten(CutOff::Recovering, true);
}

#[test]
fn a_promotion_that_is_forgotten_before_it_is_durable_is_told_and_not_served() {
    everything_forgotten(CutOff::Promoted, true);
}

/// The server that was promoted lives on, in the fence: nobody can reach it, and it archives nothing.
#[test]
fn a_promoted_server_that_is_forgotten_in_the_fence_is_not_called_ready() {
    let mut instance = Instance::with_full_backup();
    let mut turns = Turns::of(&instance);
    let (target, rows) = turns.next(&instance);
    kill_at(&mut instance, &target, CutOff::Promoted);
    forget_everything(&instance);
    instance.start();
    let mut last = Value::Null;
    let how = within(PATIENCE, || {
        let ready = instance.http.probe("/readyz") == Some(200);
        last = instance.server();
        if ready {
            let count = instance.sql.attempt("SELECT count(*) FROM t");
            assert_eq!(count, Ok(rows.count().to_string()), "ready, but not for clients: {last:#}");
            assert_ne!(instance.sql.run("SHOW archive_command"), "");
            return Some("served");
        }
        let reason = last["reason"].as_str().unwrap_or_default().to_lowercase();
        reason.contains("restore again").then_some("told")
    });
    let how = how.unwrap_or_else(|| panic!("neither served nor explained: {last:#}"));
    if how == "told" {
        instance.restore_to(&target, &json!({}));
    }
    rows.check();
}

/// A restore that waits at its target has the lane, and lets nobody in.
#[test]
fn nothing_else_happens_during_a_restore() {
    let instance = Instance::with_full_backup();
    let mut turns = Turns::of(&instance);
    let (target, rows) = turns.next(&instance);
    let moment = time(&target["value"]);
    let id = instance.begin_restore_to(&target, &json!({ "on_reached": "pause" }));
    let second = || request(&json!({ "type": "latest" }), &json!({}));
    let refused = |moment: &str| {
        for (path, body) in [
            (BACKUPS, json!({ "type": "full" })),
            (BACKUPS, json!({ "type": "incr", "on_conflict": "refuse" })),
            (CHECK, json!({})),
            (RESTORES, second()),
        ] {
            let reply = instance.http.post(path, &body);
            assert_eq!(reply.problem(409), "lane-busy", "{moment}: {path} {body}");
            assert!(reply.json()["job"].to_string().contains(&id), "{moment}: {}", reply.body);
        }
    };
    refused("at the beginning");
    instance.wait_at(&id, moment);
    refused("at the target");
    let queued = json!({ "type": "full", "on_conflict": "queue" });
    let backup = accepted(&instance.http.post(BACKUPS, &queued));

    let port = instance.sql.port;
    for _ in 0..20 {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "somebody listens on TCP");
        assert!(instance.sql.attempt("SELECT 1").is_err(), "a client got in by the socket");
        assert_eq!(instance.http.probe("/readyz"), Some(503));
        let job = instance.job(&backup);
        assert_eq!(job["state"], "queued", "{job:#}");
    }
    rows.seen_through(&instance.fence()).check();
    let view = instance.restore_view(&id);
    assert_eq!(view["awaiting"]["reason"], "target-reached", "{view:#}");
    assert_eq!(instance.copies(&id), 1);

    instance.steer(&id, "promote", &json!({})).expect(202);
    let job = wait_and_look(&instance, &id, &rows);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    rows.check();
    let backup = instance.wait_job(&backup);
    assert_eq!(backup["state"], "succeeded", "{backup:#}");
    assert!(time(&backup["started_at"]) >= time(&job["finished_at"]), "{backup:#} {job:#}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "nobody listens any more");
}
