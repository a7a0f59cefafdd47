//! Schedules against the real clock, with Headrest killed in between.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::support::fake::Fake;
use crate::support::instance::Instance;
use crate::support::until;

const EVERY_MINUTE: &str = "/api/v1/schedules/every-minute";
/// How late a run may begin.
const LATE: SignedDuration = SignedDuration::from_millis(1500);

#[expect(clippy::disallowed_methods, reason = "the test compares with the real time")]
fn now() -> Timestamp {
    Timestamp::now()
}

/// The jobs of the schedule, oldest first.
fn jobs(instance: &Instance) -> Vec<Value> {
    let all = instance.http.get("/api/v1/jobs?kind=check&limit=200").expect(200).json();
    let mut own: Vec<Value> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|job| job["trigger"] == "schedule:every-minute")
        .cloned()
        .collect();
    own.reverse();
    own
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

/// The whole minute before.
fn minute(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second() / 60 * 60).unwrap()
}

#[track_caller]
fn wait_until(at: Timestamp) {
    let left = Duration::try_from(at.duration_since(now())).unwrap_or_default();
    until("a moment comes", left + Duration::from_secs(5), || (now() >= at).then_some(()));
}

/// Waits for one more job, ended.
#[track_caller]
fn next_job(instance: &Instance, known: usize) -> Value {
    until("the schedule's next job", Duration::from_secs(75), || {
        let job = jobs(instance).get(known).cloned()?;
        job["outcome"].is_string().then_some(job)
    })
}

#[test]
fn every_minute_is_served_on_time_and_a_killed_headrest_loses_none() {
    let mut instance = Instance::new();
    instance.set("HEADREST_POSTGRES__SUPERVISE", "false");
    let fake = Fake::installed_in(&mut instance);
    fake.on("check", "echo checked");
    instance.start();
    let schedule = json!({"name": "every-minute", "type": "check", "cron": "* * * * *"});
    instance.http.post("/api/v1/schedules", &schedule).expect(201);
    let first = next_job(&instance, 0);
    let begun = time(&first["started_at"]);
    let slot = minute(begun);
    assert!(begun.duration_since(slot) <= LATE, "{begun} is too late for {slot}");
    assert_eq!(first["state"], "succeeded");

    // Killed before the next moment and started after it: late, and not lost.
    let minutes = |n| slot.checked_add(SignedDuration::from_mins(n)).unwrap();
    let seconds = SignedDuration::from_secs;
    wait_until(minutes(1).checked_sub(seconds(2)).unwrap());
    instance.kill();
    wait_until(minutes(1).checked_add(seconds(2)).unwrap());
    instance.start();
    let second = next_job(&instance, 1);
    assert_eq!(minute(time(&second["started_at"])), minutes(1), "{second}");

    // Killed while its job runs: the job is interrupted, and what it was for is done again.
    let gate = instance.root.join("gate");
    fake.on("check", &format!("while [ ! -e '{}' ]; do sleep 0.1; done", gate.display()));
    let running = until("the third begins", Duration::from_secs(75), || {
        jobs(&instance).get(2).filter(|job| job["state"] == "running").cloned()
    });
    let begun = time(&running["started_at"]);
    assert!(begun.duration_since(minutes(2)) <= LATE, "{begun} is too late for {}", minutes(2));
    instance.kill();
    instance.start();
    let again = until("it is done again", Duration::from_secs(30), || {
        jobs(&instance).get(3).filter(|job| job["state"] == "running").cloned()
    });
    std::fs::write(&gate, "").unwrap();
    let all = until("both are ended", Duration::from_secs(20), || {
        let all = jobs(&instance);
        all.iter().take(4).all(|job| job["outcome"].is_string()).then_some(all)
    });
    assert_eq!((&all[2]["state"], &all[3]["id"]), (&json!("interrupted"), &again["id"]), "{all:?}");
    let shown = instance.http.get(EVERY_MINUTE).expect(200).json();
    let mut run: Vec<_> = shown["verdicts"].as_array().unwrap().iter().collect();
    run.reverse();
    let told: Vec<_> = run
        .iter()
        .take(3)
        .map(|told| (told["verdict"].as_str().unwrap(), time(&told["first"]), &told["count"]))
        .collect();
    let one = json!(1);
    let expect: Vec<_> = (0..3).map(|n| ("run", minutes(n), &one)).collect();
    assert_eq!(told, expect, "each moment once");
}

#[test]
fn with_nothing_configured_there_are_two_and_one_switch_turns_them_off() {
    let names = |instance: &Instance| -> Vec<(String, String)> {
        let all = instance.http.get("/api/v1/schedules").expect(200).json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let items = all["items"].as_array().unwrap().iter();
        items.map(|item| (text(&item["name"]), text(&item["origin"]))).collect()
    };
    let mut instance = Instance::new();
    let _fake = Fake::installed_in(&mut instance);
    instance.env.remove("HEADREST_DEFAULT_SCHEDULE");
    instance.start();
    let default = |name: &str| (name.to_owned(), "default".to_owned());
    assert_eq!(names(&instance), [default("daily-diff"), default("weekly-full")]);
    let path = "/api/v1/schedules/daily-diff";
    let change = json!({"type": "full", "cron": "@daily"});
    let change = instance.http.request(reqwest::Method::PUT, path).json(&change);
    assert_eq!(crate::support::client::send(change).problem(409), "schedule-read-only");
    instance.stop();
    instance.set("HEADREST_DEFAULT_SCHEDULE", "off");
    instance.start();
    assert_eq!(names(&instance), []);
    instance.stop();
    // Nothing that is not backed up has a schedule.
    instance.env.remove("HEADREST_DEFAULT_SCHEDULE");
    instance.set("HEADREST_BACKUPS", "off");
    instance.start();
    assert_eq!(names(&instance), []);
}
