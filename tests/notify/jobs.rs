//! Job events become notifications, each once, whatever ends in between.

use std::time::Duration;

use headrest::domain::event::{Event, EventKind};
use headrest::domain::job::{
    BackupOptions, BackupSpec, ExpireSpec, Job, JobError, JobEvent, JobSpec, Outcome, RestoreSpec,
    Trigger, VerifySpec,
};
use headrest::domain::recovery::RecoveryTarget;
use headrest::domain::{Annotations, BackupType, JobId};
use headrest::store::{NewEvent, Store};
use jiff::Timestamp;

use crate::receiver::{PATIENCE, Receiver};
use crate::rig::{Rig, start, target};

fn backup(trigger: Trigger) -> Job {
    let spec = BackupSpec {
        stanza: "main".parse().unwrap(),
        repo: None,
        backup_type: BackupType::Full,
        annotations: Annotations::default(),
        options: BackupOptions::default(),
    };
    Job::queued(JobId::new(start()), JobSpec::Backup(spec), trigger, "t".into(), start())
}

fn event(at: Timestamp, kind: &'static str, text: String) -> NewEvent {
    NewEvent { at, kind, level: None, process: None, text }
}

/// Stores a change of a job's state as the queue does.
async fn save(store: &Store, job: &Job) -> i64 {
    let data = serde_json::json!({ "state": job.state, "outcome": job.state.outcome() });
    let events = vec![event(start(), "state", data.to_string())];
    store.update_state(job.clone(), events).await.unwrap().unwrap()
}

/// A job from its beginning to its end, with some lines of log.
async fn run(store: &Store, mut job: Job, outcome: Outcome) -> i64 {
    store.insert_job(job.clone(), None).await.unwrap();
    job.apply(JobEvent::Start, start()).unwrap();
    save(store, &job).await;
    let lines = (0..500).map(|line| event(start(), "log", format!("line {line}"))).collect();
    store.append_events(job.id, None, lines).await.unwrap();
    job.apply(JobEvent::Finish(outcome), start()).unwrap();
    save(store, &job).await
}

#[tokio::test]
async fn a_job_is_told_from_its_beginning_to_its_end() {
    let receiver = Receiver::good().await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "events = [\"*\"]")).await;
    let last = run(&rig.store, backup(Trigger::Api), Outcome::Failed).await;
    rig.wake.send_replace(last);
    let got = receiver.wait_for(2).await;
    let told: Vec<_> = got.iter().map(|got| got.header("headrest-event")).collect();
    assert_eq!(told, ["backup.started", "backup.failed"]);
    // Told late, the beginning is still one.
    assert_eq!(got[0].json()["summary"], "full backup of main has begun");
}

#[tokio::test]
async fn what_happened_while_nobody_told_is_told_once_after_the_next_start() {
    let receiver = Receiver::good().await;
    let config = target("ops", "webhook", &receiver.url("/"), "events = [\"backup.*\"]");
    let mut rig = Rig::new(&config).await;
    // The follower is not woken: Headrest ends right after the change is stored.
    for outcome in [Outcome::Succeeded, Outcome::Interrupted] {
        run(&rig.store, backup(Trigger::Api), outcome).await;
        rig = rig.crash().await;
    }
    for _ in 0..3 {
        rig = rig.crash().await;
    }
    rig.tasks.close(PATIENCE).await;
    let got = receiver.requests();
    let mut ids: Vec<_> = got.iter().map(|got| got.header("headrest-delivery")).collect();
    let mut told: Vec<_> = got.iter().map(|got| got.header("headrest-event")).collect();
    // One that was under way in a crash may arrive twice, with the same id.
    ids.dedup();
    told.dedup();
    assert_eq!(ids.len(), 4, "{ids:?}");
    assert_eq!(
        told,
        ["backup.started", "backup.succeeded", "backup.started", "backup.interrupted"]
    );
}

#[tokio::test]
async fn a_target_is_not_told_what_was_before_it() {
    let receiver = Receiver::good().await;
    let rig = Rig::new("").await;
    run(&rig.store, backup(Trigger::Api), Outcome::Failed).await;
    let config = target("ops", "webhook", &receiver.url("/"), "events = [\"*\"]");
    let rig = rig.crash_into(&config).await;
    let last = run(&rig.store, backup(Trigger::Api), Outcome::Warned).await;
    rig.wake.send_replace(last);
    rig.tasks.close(PATIENCE).await;
    let got = receiver.requests();
    let told: Vec<_> = got.iter().map(|got| got.header("headrest-event")).collect();
    assert_eq!(told, ["backup.started", "backup.warned"]);
}

#[tokio::test]
async fn a_dead_mans_switch_hears_from_its_schedule_alone() {
    let receiver = Receiver::good().await;
    let more = "schedules = [\"nightly\"]";
    let rig = Rig::new(&target("switch", "healthchecks", &receiver.url("/ping/1"), more)).await;
    let of = |name: &str| Trigger::Schedule(name.to_owned());
    run(&rig.store, backup(of("nightly")), Outcome::Succeeded).await;
    run(&rig.store, backup(of("weekly")), Outcome::Failed).await;
    run(&rig.store, backup(Trigger::Api), Outcome::Failed).await;
    let last = run(&rig.store, backup(of("nightly")), Outcome::Failed).await;
    rig.wake.send_replace(last);
    rig.tasks.close(PATIENCE).await;
    let lines: Vec<_> = receiver.requests().into_iter().map(|got| got.line).collect();
    let expect = ["/ping/1/start", "/ping/1", "/ping/1/start", "/ping/1/fail"];
    assert_eq!(lines, expect.map(|path| format!("POST {path} HTTP/1.1")));
    assert!(receiver.requests()[3].body.starts_with("full backup of main failed"));
}

fn of_schedule(spec: JobSpec) -> Job {
    let trigger = Trigger::Schedule("nightly".to_owned());
    Job::queued(JobId::new(start()), spec, trigger, "t".into(), start())
}

/// The paths that a switch was pinged at, without the part that all have.
fn pings(receiver: &Receiver) -> Vec<String> {
    let path = |line: String| line.split(' ').nth(1).unwrap().to_owned();
    receiver.requests().into_iter().map(|got| path(got.line)).collect()
}

#[tokio::test]
async fn a_dead_mans_switch_hears_the_beginning_and_the_end_of_every_kind() {
    let receiver = Receiver::good().await;
    let rig = Rig::new(&target("switch", "healthchecks", &receiver.url("/p"), "")).await;
    let stanza = || "main".parse().unwrap();
    let mut last = 0;
    for spec in [
        JobSpec::Expire(ExpireSpec { stanza: stanza(), set: None, repo: None, dry_run: false }),
        JobSpec::Verify(VerifySpec { stanza: stanza(), set: None, repo: None }),
        JobSpec::Check { stanza: stanza() },
    ] {
        last = run(&rig.store, of_schedule(spec), Outcome::Succeeded).await;
    }
    rig.wake.send_replace(last);
    rig.tasks.close(PATIENCE).await;
    assert_eq!(pings(&receiver), ["/p/start", "/p", "/p/start", "/p", "/p/start", "/p"]);
}

#[tokio::test]
async fn a_backup_with_page_errors_is_told_and_the_health_tells_only_the_others() {
    let (receiver, ops) = (Receiver::good().await, Receiver::good().await);
    let switch = target("switch", "healthchecks", &receiver.url("/p"), "");
    let others = Receiver::good().await;
    let health = target("health", "webhook", &others.url("/"), "events = [\"health.*\"]");
    let all = switch + &target("ops", "webhook", &ops.url("/"), "") + &health;
    let rig = Rig::new(&all).await;
    let mut job = backup(Trigger::Schedule("nightly".to_owned()));
    job.error = Some(JobError {
        code: "page-checksum-errors".to_owned(),
        exit_code: None,
        exit_name: None,
        message: "page checksum errors were found".to_owned(),
        hints: Vec::new(),
        retryable: false,
    });
    let last = run(&rig.store, job, Outcome::Warned).await;
    rig.wake.send_replace(last);
    let damaged =
        Event::new(EventKind::HealthChanged, start(), "health:page-checksums".into(), "x");
    let damaged = Event { told_as: Some(EventKind::BackupWarned), ..damaged };
    rig.notifier.tell(&damaged).await;
    rig.tasks.close(PATIENCE).await;
    assert_eq!(pings(&receiver), ["/p/start", "/p"]);
    let summary =
        "full backup of main succeeded, with something to look at: page checksum errors were found";
    let told: Vec<_> = ops.requests().iter().map(Receiver::gist).collect();
    assert_eq!(told, [("warning".into(), summary.into())]);
    let told: Vec<_> = others.requests().iter().map(Receiver::gist).collect();
    assert_eq!(told, [("warning".into(), "x".into())]);
}

#[tokio::test]
async fn only_the_last_try_of_a_schedule_is_an_alarm() {
    let (receiver, ops) = (Receiver::good().await, Receiver::good().await);
    let switch = target("switch", "healthchecks", &receiver.url("/p"), "");
    let rig = Rig::new(&(switch + &target("ops", "webhook", &ops.url("/"), ""))).await;
    let again = backup(Trigger::Schedule("nightly".to_owned()));
    run(&rig.store, Job { tried_again: true, ..again }, Outcome::Failed).await;
    let last = backup(Trigger::Schedule("nightly".to_owned()));
    let last = run(&rig.store, last, Outcome::Failed).await;
    rig.wake.send_replace(last);
    rig.tasks.close(PATIENCE).await;
    assert_eq!(pings(&receiver), ["/p/start", "/p/start", "/p/fail"]);
    let told: Vec<_> = ops.requests().iter().map(Receiver::gist).collect();
    assert_eq!(
        told[0],
        ("warning".into(), "full backup of main failed and will be tried again".into())
    );
    assert_eq!(told[1], ("critical".into(), "full backup of main failed".into()));
}

#[tokio::test]
async fn a_restore_that_waits_is_told_once() {
    let receiver = Receiver::good().await;
    let more = "events = [\"restore.*\"]";
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), more)).await;
    let spec = JobSpec::Restore(RestoreSpec::new("main".parse().unwrap(), RecoveryTarget::Latest));
    let mut job = Job::queued(JobId::new(start()), spec, Trigger::Api, "t".into(), start());
    rig.store.insert_job(job.clone(), None).await.unwrap();
    job.apply(JobEvent::Start, start()).unwrap();
    // Twice: Headrest was restarted, and the restore goes on.
    save(&rig.store, &job).await;
    save(&rig.store, &job).await;
    let at = start() + Duration::from_secs(60);
    let data = serde_json::json!({ "state": "running", "outcome": null, "awaiting": "wal-gap" });
    let waits = vec![event(at, "state", data.to_string())];
    let last = rig.store.append_events(job.id, None, waits).await.unwrap().unwrap();
    rig.wake.send_replace(last);
    rig.tasks.close(PATIENCE).await;
    let got = receiver.requests();
    let told: Vec<_> = got.iter().map(|got| got.header("headrest-event")).collect();
    assert_eq!(told, ["restore.started", "restore.waiting"]);
    assert_eq!(got[1].json()["at"], "2026-11-20T14:01:00Z");
}
