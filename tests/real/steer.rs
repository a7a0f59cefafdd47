//! A restore that waits at its target: looked at, sent on, sent back, promoted, given up.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::support::instance::Instance;
use crate::support::jobs::{RESTORES, id_of, is_final, time};
use crate::support::moments::{at, request};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, until};

/// An instance with a few moments in its past, and what was there at each; the last is the present.
fn with_moments() -> (Instance, Vec<(Timestamp, Rows)>) {
    let mut instance = Instance::new();
    let told = instance.root.join("log/told").display().to_string();
    instance.set("HEADREST_NOTIFY__0__NAME", "file");
    instance.set("HEADREST_NOTIFY__0__TYPE", "command");
    instance.set("HEADREST_NOTIFY__0__EVENTS", "restore.*");
    let script = format!("sh -c 'echo \"$HEADREST_EVENT_KIND $HEADREST_EVENT_JOB\" >>{told}'");
    instance.set("HEADREST_NOTIFY__0__COMMAND", script);
    instance.start();
    instance.wait_ready();
    instance.wait_restorable(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    let mut moments = Vec::new();
    for round in 0..4 {
        rows.add(10);
        moments.push((instance.sql.now(), rows.clone()));
        if round % 2 == 0 {
            instance.sql.run("SELECT pg_switch_wal()");
        }
    }
    (instance, moments)
}

fn pause() -> Value {
    json!({ "on_reached": "pause" })
}

/// Waits until a restore waits at a moment, and looks at the rows there as a person would.
#[track_caller]
fn look(instance: &Instance, id: &str, (moment, rows): &(Timestamp, Rows)) -> Value {
    let view = instance.wait_at(id, *moment);
    rows.seen_through(&instance.fence()).check();
    view
}

#[track_caller]
fn retarget(instance: &Instance, id: &str, moment: Timestamp, more: &Value) {
    let mut body = request(&at(moment), more);
    for field in ["confirm", "backup_after"] {
        body.as_object_mut().unwrap().remove(field);
    }
    instance.steer(id, "retarget", &body).expect(202);
}

/// Waits for the end of a restore that succeeds.
#[track_caller]
fn wait_success(instance: &Instance, id: &str) -> Value {
    let job = instance.wait_job(id);
    assert_eq!(job["state"], "succeeded", "{job:#}\n{}", instance.job_log(id));
    instance.wait_ready();
    job
}

/// Starts Headrest and waits until the restore waits: until then what it waited for before is all
/// that is known of it.
#[track_caller]
fn start_again(instance: &mut Instance) {
    let before = instance.journal().unwrap()["written_at"].clone();
    instance.start();
    until("the restore waits again", PATIENCE, || {
        let journal = instance.journal()?;
        (journal["awaiting"] == "target-reached" && journal["written_at"] != before).then_some(())
    });
}

/// What was done to a restore, oldest first, as the audit tells.
fn deeds(instance: &Instance, id: &str) -> Vec<String> {
    let list = instance.http.get("/api/v1/audit?limit=200").expect(200).json();
    let items = list["items"].as_array().unwrap().iter().rev();
    let about = items.filter(|deed| {
        deed["subject"] == id || deed["detail"].as_str().unwrap_or_default().contains(id)
    });
    about.map(|deed| deed["action"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn at_the_target_one_can_look_go_on_twice_without_copying_again_and_promote() {
    let (instance, moments) = with_moments();
    let id = instance.begin_restore_to(&at(moments[0].0), &pause());
    let view = look(&instance, &id, &moments[0]);
    for action in ["promote", "retarget", "abandon"] {
        assert!(view["actions"].as_array().unwrap().contains(&json!(action)), "{view:#}");
    }
    assert_eq!(view["attempts"], 1, "{view:#}");
    let command = view["awaiting"]["look"].as_str().expect("how to look");
    assert!(command.contains(instance.root.join("state/fence").to_str().unwrap()), "{command}");

    // Only to look: nobody writes, nobody gets in from outside, nobody stops it half way.
    let error =
        instance.fence().attempt("INSERT INTO t VALUES (0)").expect_err("it was written to");
    assert!(error.contains("read-only transaction"), "{error}");
    assert!(instance.sql.attempt("SELECT 1").is_err(), "a client got in");
    assert_eq!(instance.http.probe("/readyz"), Some(503));
    assert_eq!(instance.http.probe("/livez"), Some(200));
    let cancel = instance.http.post(&format!("/api/v1/jobs/{id}/cancel"), &json!({}));
    assert_eq!(cancel.problem(409), "too-late-to-cancel");
    let second = instance.http.post(RESTORES, &Instance::restore_request());
    assert_eq!(second.problem(409), "lane-busy");
    let start = instance.http.post("/api/v1/processes/postgres/start", &json!({}));
    assert_eq!(start.problem(409), "postgres-fenced");

    // A moment that cannot be reached is refused, and the restore waits on.
    let future = json!({ "target": at(Timestamp::now() + SignedDuration::from_hours(1)) });
    assert_eq!(instance.steer(&id, "retarget", &future).problem(422), "target-outside-window");
    assert_eq!(instance.wait_at(&id, moments[0].0)["awaiting"]["reason"], "target-reached");

    for round in [1, 2] {
        // The second time it pauses because it did before.
        let more = if round == 1 { pause() } else { json!({}) };
        retarget(&instance, &id, moments[round].0, &more);
        let view = look(&instance, &id, &moments[round]);
        assert_eq!(view["attempts"], 1, "copied again: {view:#}");
        assert_eq!(instance.journal().unwrap()["attempts"], 1);
    }
    assert_eq!(instance.copies(&id), 1, "{}", instance.job_log(&id));

    instance.steer(&id, "promote", &json!({})).expect(202);
    let job = wait_success(&instance, &id);
    moments[2].1.check();
    assert_eq!(job["result"]["timeline"], 2, "{job:#}");
    assert_eq!(instance.restore_view(&id)["awaiting"], Value::Null);
    let all = ["restore.begin", "restore.retarget", "restore.retarget", "restore.promote"];
    assert_eq!(deeds(&instance, &id), all);
    // It is a database like any other.
    let mut rows = moments[2].1.clone();
    rows.add_from(1000, 10);
    instance.good_backup("full");
    instance.good_restore();
    rows.check();
}

#[test]
fn an_earlier_moment_is_reached_by_copying_again() {
    let (instance, moments) = with_moments();
    let id = instance.begin_restore_to(&at(moments[2].0), &pause());
    look(&instance, &id, &moments[2]);
    retarget(&instance, &id, moments[0].0, &json!({}));
    let view = look(&instance, &id, &moments[0]);
    assert_eq!(view["attempts"], 2, "{view:#}");
    assert_eq!(instance.copies(&id), 2, "{}", instance.job_log(&id));
    // Forward again, this time without another look.
    retarget(&instance, &id, moments[1].0, &json!({ "on_reached": "promote" }));
    wait_success(&instance, &id);
    moments[1].1.check();
    assert_eq!(instance.copies(&id), 2, "{}", instance.job_log(&id));
}

#[test]
fn what_was_there_before_comes_back_when_a_restore_is_abandoned() {
    let (instance, moments) = with_moments();
    let mut rows = moments[3].1.clone();
    // Whatever was committed last: in no archive, and not even known to Headrest.
    rows.add(5);
    let id = instance.begin_restore_to(&at(moments[0].0), &pause());
    look(&instance, &id, &moments[0]);
    for body in [json!({}), json!({ "confirm": "mian" })] {
        let reply = instance.steer(&id, "abandon", &body);
        assert_eq!(reply.problem(422), "confirmation-required", "{body}");
    }
    look(&instance, &id, &moments[0]);
    instance.steer(&id, "abandon", &json!({ "confirm": "main" })).expect(202);
    let job = instance.wait_job(&id);
    assert_eq!(job["state"], "cancelled", "{job:#}\n{}", instance.job_log(&id));
    instance.wait_ready();
    rows.check();
    assert_eq!(instance.server()["fenced_by"], Value::Null);
    assert_eq!(deeds(&instance, &id), ["restore.begin", "restore.abandon"]);
    let expect = ["started", "waiting", "cancelled"].map(|what| format!("restore.{what} {id}\n"));
    until("all of it is told", PATIENCE, || {
        let told = std::fs::read_to_string(instance.root.join("log/told")).ok()?;
        assert!(expect.concat().starts_with(&told), "{told}");
        (told == expect.concat()).then_some(())
    });
    // The moments are still there to be chosen, and so is everything after them.
    rows.add_from(1000, 5);
    let job = instance.restore_to(&at(moments[1].0), &json!({}));
    moments[1].1.check();
    instance.undo(id_of(&job));
    rows.check();
}

#[test]
fn a_restore_that_waits_still_waits_after_headrest_was_killed_or_stopped() {
    let (mut instance, moments) = with_moments();
    let id = instance.begin_restore_to(&at(moments[1].0), &pause());
    look(&instance, &id, &moments[1]);
    for killed in [true, false] {
        if killed {
            instance.kill();
        } else {
            assert!(instance.stop().success());
        }
        start_again(&mut instance);
        let view = look(&instance, &id, &moments[1]);
        assert_eq!(view["attempts"], 1, "{view:#}");
        assert_eq!(instance.http.probe("/readyz"), Some(503));
        assert!(instance.sql.attempt("SELECT 1").is_err(), "a client got in");
    }
    // Killed with the order written down but not carried out: it is carried out.
    retarget(&instance, &id, moments[2].0, &pause());
    instance.kill();
    start_again(&mut instance);
    look(&instance, &id, &moments[2]);
    assert_eq!(instance.copies(&id), 1, "{}", instance.job_log(&id));
    instance.steer(&id, "promote", &json!({})).expect(202);
    wait_success(&instance, &id);
    moments[2].1.check();
}

#[test]
fn a_restore_that_does_not_wait_takes_no_decisions() {
    let (instance, moments) = with_moments();
    let refused = |id: &str| {
        for (action, body) in [
            ("promote", json!({})),
            ("promote", json!({ "accept": ["wal-gap", "target"] })),
            ("retarget", json!({ "target": at(moments[1].0) })),
            ("abandon", json!({ "confirm": "main" })),
        ] {
            let reply = instance.steer(id, action, &body);
            assert_eq!(reply.problem(409), "restore-not-waiting", "{action} {body}");
        }
    };
    let id = instance.begin_restore_to(&at(moments[2].0), &json!({}));
    let mut rounds = 0;
    until("the restore has ended", PATIENCE, || {
        // Whatever phase it is in; a look before and after so that it counts.
        let under_way = !is_final(&instance.job(&id));
        refused(&id);
        rounds += u32::from(under_way);
        (!under_way).then_some(())
    });
    assert!(rounds > 2, "it was over too soon");
    wait_success(&instance, &id);
    refused(&id);
    moments[2].1.check();
    let audited = deeds(&instance, &id);
    assert_eq!(audited, ["restore.begin"], "what was refused was written down as done");

    // Nor does what is no restore, or is not there at all.
    let backup = instance.good_backup("incr");
    let nobody = "01a21390-3847-77af-aece-f19c71ca0d14";
    for id in [id_of(&backup), nobody] {
        assert_eq!(instance.steer(id, "promote", &json!({})).problem(404), "no-such-job");
        assert_eq!(instance.http.get(&format!("/api/v1/restores/{id}")).status, 404);
    }
    assert!(time(&backup["result"]["stopped_at"]) > moments[2].0);
}

/// Whoever looks can do as a superuser can; what comes of it is not what the restore was asked for.
#[test]
fn a_server_that_somebody_promotes_by_hand_is_restored_again() {
    let (instance, moments) = with_moments();
    let id = instance.begin_restore_to(&at(moments[1].0), &pause());
    look(&instance, &id, &moments[1]);
    // Without waiting: Headrest stops the server as soon as it sees that it was promoted.
    assert_eq!(instance.fence().run("SELECT pg_promote(false)"), "t");
    until("it is copied again", PATIENCE, || (instance.copies(&id) == 2).then_some(()));
    look(&instance, &id, &moments[1]);
    assert!(instance.sql.attempt("SELECT 1").is_err(), "a client got in");
    instance.steer(&id, "promote", &json!({})).expect(202);
    wait_success(&instance, &id);
    moments[1].1.check();
}
