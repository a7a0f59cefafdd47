//! Following a job as it happens.

use std::collections::HashSet;

use crate::interrupted::slow_backups;
use crate::support::events::{Event, Events};
use crate::support::instance::Instance;
use crate::support::jobs::id_of;
use crate::support::{PATIENCE, SOON};

fn follow(instance: &Instance, path: &str, after: Option<&str>) -> Events {
    let headers: Vec<_> = after.into_iter().map(|id| ("Last-Event-ID", id)).collect();
    Events::of(instance.http.stream(path, &headers))
}

fn numbered(events: &[Event]) -> Vec<Event> {
    events.iter().filter(|event| !event.id.is_empty()).cloned().collect()
}

#[test]
fn a_log_that_is_followed_in_pieces_is_the_whole_log() {
    let mut instance = Instance::new();
    slow_backups(&mut instance);
    instance.start();
    instance.wait_ready();
    instance.wait_first_backup();
    let id = instance.begin_backup("full");
    let path = format!("/api/v1/jobs/{id}/events");

    // One follows all the time, one leaves again and again and comes back with what it saw last.
    let steady = follow(&instance, &path, None);
    let mut pieces: Vec<Event> = Vec::new();
    let mut connections = 0;
    loop {
        let last = pieces.last().map(|event| event.id.clone());
        let headers: Vec<_> = last.iter().map(|id| ("Last-Event-ID", id.as_str())).collect();
        let response = instance.http.stream(&path, &headers);
        if response.status().as_u16() == 204 {
            break;
        }
        let stream = Events::of(response);
        connections += 1;
        let first = stream.next(SOON).expect("a first event");
        assert_eq!(first.name, "job", "the snapshot comes first: {first:?}");
        assert_eq!(id_of(&first.json()), id);
        let mut taken = 0;
        let some = stream.take_until(PATIENCE, |event| {
            taken += 1;
            event.name == "end" || taken >= 3
        });
        let ended = some.last().is_none_or(|event| event.name == "end");
        pieces.extend(numbered(&some));
        if ended {
            break;
        }
    }
    assert!(connections > 3, "only {connections} connections: nothing was resumed");
    let whole = numbered(&steady.take_until(PATIENCE, |event| event.name == "end"));
    assert!(steady.next(SOON).is_none(), "something comes after the end");
    assert_eq!(pieces, whole, "following in pieces lost or repeated something");
    let ids: Vec<u64> = whole.iter().map(|event| event.id.parse().unwrap()).collect();
    assert!(ids.is_sorted() && ids.iter().collect::<HashSet<_>>().len() == ids.len(), "{ids:?}");

    // It is the same as the log.
    let lines: Vec<_> = whole.iter().filter(|event| event.name == "log").collect();
    let log = instance.job_log(&id);
    assert_eq!(lines.len(), log.lines().count(), "{log}");
    for (event, line) in lines.iter().zip(log.lines()) {
        let data = event.json();
        let text = data["text"].as_str().unwrap();
        assert!(line.ends_with(text), "{line:?} is not {text:?}");
    }
    let states: Vec<_> = whole.iter().filter(|event| event.name == "state").collect();
    assert_eq!(states.last().unwrap().json()["state"], "succeeded");
    assert!(whole.iter().any(|event| event.name == "progress"), "no progress was told");

    // Who has seen everything is told not to come back.
    let last = whole.last().unwrap().id.clone();
    let response = instance.http.stream(&path, &[("Last-Event-ID", &last)]);
    assert_eq!(response.status().as_u16(), 204);
}

#[test]
fn everybody_sees_every_job_and_a_restart_loses_nothing() {
    let mut instance = Instance::with_full_backup();
    let stream = follow(&instance, "/api/v1/events", None);
    let hello = stream.next(SOON).expect("a first event");
    let id = instance.begin_backup("incr");
    let is_end = |event: &Event| {
        event.name == "state" && event.json()["job"] == id.as_str() && {
            event.json()["outcome"].is_string()
        }
    };
    let live = numbered(&stream.take_until(PATIENCE, is_end));
    assert!(live.iter().any(|event| event.name == "state" && event.json()["state"] == "running"));
    assert!(live.iter().all(|event| event.name != "log"), "log lines are in the job's own stream");
    // A stop of Headrest ends the stream, in order, and the client comes back with its last id.
    assert!(instance.stop().success());
    let rest = stream.take_until(SOON, |_| false);
    instance.start();
    let again = follow(&instance, "/api/v1/events", Some(&hello.id));
    again.next(SOON).expect("a first event");
    let replayed = numbered(&again.take_until(PATIENCE, is_end));
    assert_eq!(replayed, live, "after {rest:?}");
}
