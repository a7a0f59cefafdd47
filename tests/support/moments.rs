//! Moments between commits, and restores to them.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::client::Reply;
use super::instance::Instance;
use super::jobs::{BACKUPS, RESTORES, accepted, id_of, is_final, time};
use super::sql::Sql;
use super::{PATIENCE, SOON, until, within};

pub(crate) const PLANS: &str = "/api/v1/stanzas/main/restore-plans";

/// How long a restore may take that is waited for by `Prefer: wait`.
const WAIT_S: u32 = 120;

impl Sql {
    /// The server's clock: later than every commit before, earlier than every one after.
    #[track_caller]
    pub(crate) fn now(&self) -> Timestamp {
        let micros = self.run("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
        Timestamp::from_microsecond(micros.parse().unwrap()).unwrap()
    }

    /// Waits until the clock is past a moment.
    #[track_caller]
    pub(crate) fn wait_past(&self, moment: Timestamp) {
        until(&format!("it is later than {moment}"), PATIENCE, || {
            (self.now() > moment).then_some(())
        });
    }
}

/// The target of a moment.
pub(crate) fn at(moment: Timestamp) -> Value {
    json!({ "type": "time", "value": moment.to_string() })
}

/// A confirmed request to restore to a target, with whatever else is asked for.
pub(crate) fn request(target: &Value, more: &Value) -> Value {
    let mut body = json!({ "target": target, "confirm": "main", "backup_after": false });
    let fields = more.as_object().into_iter().flatten();
    body.as_object_mut().unwrap().extend(fields.map(|(name, value)| (name.clone(), value.clone())));
    body
}

/// The same as a plan is asked for.
pub(crate) fn plan_request(target: &Value, more: &Value) -> Value {
    let mut body = request(target, more);
    for field in ["confirm", "backup_after"] {
        body.as_object_mut().unwrap().remove(field);
    }
    body
}

/// The checks of a plan or problem that came out like this.
pub(crate) fn checks(of: &Value, verdict: &str) -> Vec<String> {
    let all = of["checks"].as_array().into_iter().flatten();
    let some = all.filter(|check| check["verdict"] == verdict);
    some.map(|check| check["id"].as_str().unwrap().to_owned()).collect()
}

impl Instance {
    /// The first moment that a finished backup can be restored to.
    pub(crate) fn first_moment(backup: &Value) -> Timestamp {
        time(&backup["result"]["stopped_at"]) + SignedDuration::from_secs(1)
    }

    /// Waits until moments can be restored to that are after the end of a finished backup.
    #[track_caller]
    pub(crate) fn wait_restorable(&self, backup: &Value) {
        self.sql.wait_past(Self::first_moment(backup));
    }

    /// Asks for a restore to a target and does not wait; answers the job's id.
    #[track_caller]
    pub(crate) fn begin_restore_to(&self, target: &Value, more: &Value) -> String {
        accepted(&self.http.post(RESTORES, &request(target, more)))
    }

    /// A restore to a target that must succeed; afterwards clients can write.
    #[track_caller]
    pub(crate) fn restore_to(&self, target: &Value, more: &Value) -> Value {
        let reply = self.http.post_and_wait(RESTORES, &request(target, more), WAIT_S);
        self.good_end(&reply)
    }

    /// An instance that notes a commit every second.
    pub(crate) fn beating() -> Self {
        let mut instance = Self::new();
        instance.set("HEADREST_POSTGRES__HEARTBEAT", "1s");
        instance.start();
        instance.wait_ready();
        instance
    }

    /// The undo of a restore, which must succeed.
    #[track_caller]
    pub(crate) fn undo(&self, id: &str) -> Value {
        let body = json!({ "confirm": "main", "backup_after": false });
        let reply = self.http.post_and_wait(&format!("/api/v1/restores/{id}/undo"), &body, WAIT_S);
        self.good_end(&reply)
    }

    #[track_caller]
    fn good_end(&self, reply: &Reply) -> Value {
        assert_eq!(reply.status, 200, "{}", reply.body);
        let job = reply.json();
        assert!(is_final(&job), "{job:#}");
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", self.job_log(id_of(&job)));
        assert_eq!(job["restore"]["phase"], "done", "{job:#}");
        self.wait_ready();
        job
    }

    /// A plan that must be made.
    #[track_caller]
    pub(crate) fn plan(&self, target: &Value, more: &Value) -> Value {
        self.http.post(PLANS, &plan_request(target, more)).expect(201).json()
    }

    /// A restore as `/restores` shows it.
    #[track_caller]
    pub(crate) fn restore_view(&self, id: &str) -> Value {
        self.http.get(&format!("/api/v1/restores/{id}")).expect(200).json()
    }

    /// Waits until a restore waits at this target for somebody to decide.
    #[track_caller]
    pub(crate) fn wait_at(&self, id: &str, target: Timestamp) -> Value {
        let mut last = Value::Null;
        let found = within(PATIENCE, || {
            last = self.restore_view(id);
            assert!(!is_final(&last), "it did not wait: {last:#}\n{}", self.job_log(id));
            let is_there = last["awaiting"]["reason"] == "target-reached"
                && time(&last["target"]["value"]) == target;
            is_there.then(|| last.clone())
        });
        found.unwrap_or_else(|| {
            panic!("restore {id} does not wait at {target}: {last:#}\n{}", self.job_log(id))
        })
    }

    /// What somebody decides about a restore.
    #[track_caller]
    pub(crate) fn steer(&self, id: &str, action: &str, body: &Value) -> Reply {
        self.http.post(&format!("/api/v1/restores/{id}/{action}"), body)
    }

    /// Where a fenced server can be looked into.
    pub(crate) fn fence(&self) -> Sql {
        Sql { socket_dir: self.root.join("state/fence"), ..self.sql.clone() }
    }

    /// How often `pgbackrest restore` ran for a restore, as its log tells.
    #[track_caller]
    pub(crate) fn copies(&self, id: &str) -> usize {
        self.job_log(id).matches("restore command begin").count()
    }

    /// The labels of all backups, oldest first.
    #[track_caller]
    pub(crate) fn labels(&self) -> Vec<String> {
        let list = self.http.get(BACKUPS).expect(200).json();
        let items = list["items"].as_array().expect("items").iter().rev();
        items.map(|backup| backup["label"].as_str().unwrap().to_owned()).collect()
    }

    /// The recovery window, looked at from now on: an answer may be a few seconds old.
    #[track_caller]
    pub(crate) fn window(&self) -> Value {
        let now = Timestamp::now();
        until("the window is looked at anew", SOON, || {
            let window = self.http.get("/api/v1/stanzas/main/recovery-window").expect(200).json();
            (time(&window["observed_at"]) >= now).then_some(window)
        })
    }

    /// Ends the WAL segment, with a commit that Headrest knows; it must reach the archive.
    #[track_caller]
    pub(crate) fn switch_wal(&self) -> String {
        let reply = self.http.post("/api/v1/stanzas/main/wal/switch", &json!({})).expect(200);
        let switched = reply.json();
        assert_eq!(switched["archived"], true, "{switched}");
        switched["segment"].as_str().unwrap().to_owned()
    }
}
