//! Asking for backups and restores, and waiting for jobs.

use std::fs;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::Reply;
use super::instance::Instance;
use super::{PATIENCE, until, within};

pub(crate) const BACKUPS: &str = "/api/v1/stanzas/main/backups";
pub(crate) const RESTORES: &str = "/api/v1/stanzas/main/restores";

/// How long a job may take that is waited for by `Prefer: wait`.
const WAIT_S: u32 = 120;

impl Instance {
    /// Waits for the jobs of the first start and answers the backup.
    #[track_caller]
    pub(crate) fn wait_first_backup(&self) -> Value {
        until("the first backup has ended", PATIENCE, || {
            let first = |job: &Value| {
                job["kind"] == "backup" && job["trigger"] == "event:first-start" && is_final(job)
            };
            self.jobs().into_iter().find(first)
        })
    }

    /// The newest jobs, newest first.
    #[track_caller]
    pub(crate) fn jobs(&self) -> Vec<Value> {
        let list = self.http.get("/api/v1/jobs?limit=200").expect(200).json();
        list["items"].as_array().expect("items").clone()
    }

    #[track_caller]
    pub(crate) fn job(&self, id: &str) -> Value {
        self.http.get(&format!("/api/v1/jobs/{id}")).expect(200).json()
    }

    /// Asks for a backup and does not wait; answers the job's id.
    #[track_caller]
    pub(crate) fn begin_backup(&self, backup_type: &str) -> String {
        accepted(&self.http.post(BACKUPS, &json!({ "type": backup_type })))
    }

    /// Asks for a backup and answers the finished job, whatever its outcome.
    #[track_caller]
    pub(crate) fn backup(&self, body: &Value) -> Value {
        let job = self.http.post_and_wait(BACKUPS, body, WAIT_S).expect(200).json();
        assert!(is_final(&job), "{job}");
        job
    }

    /// A backup of this type that must succeed, and be of this type.
    #[track_caller]
    pub(crate) fn good_backup(&self, backup_type: &str) -> Value {
        let job = self.backup(&json!({ "type": backup_type }));
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", self.job_log(id_of(&job)));
        assert_eq!(job["result"]["type"], backup_type, "{job:#}");
        job
    }

    /// What is sent for a restore to the end of the archive.
    pub(crate) fn restore_request() -> Value {
        json!({ "target": { "type": "latest" }, "confirm": "main", "backup_after": false })
    }

    /// Asks for a restore and does not wait; answers the job's id.
    #[track_caller]
    pub(crate) fn begin_restore(&self) -> String {
        accepted(&self.http.post(RESTORES, &Self::restore_request()))
    }

    /// Asks for a restore and answers the finished job, whatever its outcome.
    #[track_caller]
    pub(crate) fn restore(&self) -> Value {
        let reply = self.http.post_and_wait(RESTORES, &Self::restore_request(), WAIT_S);
        let job = reply.expect(200).json();
        assert!(is_final(&job), "{job}");
        job
    }

    /// A restore that must succeed; afterwards clients can write.
    #[track_caller]
    pub(crate) fn good_restore(&self) -> Value {
        let job = self.restore();
        assert_eq!(job["state"], "succeeded", "{job:#}\n{}", self.job_log(id_of(&job)));
        assert_eq!(job["restore"]["phase"], "done", "{job:#}");
        self.wait_ready();
        job
    }

    /// Waits until a job has ended.
    #[track_caller]
    pub(crate) fn wait_job(&self, id: &str) -> Value {
        self.wait_job_until(id, "has ended", is_final)
    }

    /// Waits until a job satisfies something.
    #[track_caller]
    pub(crate) fn wait_job_until(
        &self,
        id: &str,
        what: &str,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Value {
        let mut last = Value::Null;
        let found = within(PATIENCE, || {
            last = self.job(id);
            wanted(&last).then(|| last.clone())
        });
        found.unwrap_or_else(|| {
            panic!("job {id} not in time: {what}\n{last:#}\n{}", self.job_log(id))
        })
    }

    /// A job's log as text.
    #[track_caller]
    pub(crate) fn job_log(&self, id: &str) -> String {
        self.http.get(&format!("/api/v1/jobs/{id}/log")).body
    }

    /// The restore journal, `None` before the first restore.
    pub(crate) fn journal(&self) -> Option<Value> {
        let text = fs::read_to_string(self.root.join("state/restore/main.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// The phase in the restore journal, empty when there is none.
    pub(crate) fn journal_phase(&self) -> String {
        let journal = self.journal().unwrap_or_default();
        journal["phase"].as_str().unwrap_or_default().to_owned()
    }

    /// Starts Headrest again, which goes on with whatever it finds, and waits for a job's end.
    #[track_caller]
    pub(crate) fn start_and_wait_for(&mut self, job: &str) -> Value {
        self.start();
        self.wait_job(job)
    }
}

/// The id of the job that a 202 announces; header and body must agree.
#[track_caller]
pub(crate) fn accepted(reply: &Reply) -> String {
    assert_eq!(reply.status, 202, "{}", reply.body);
    let job = reply.json();
    let id = id_of(&job).to_owned();
    assert_eq!(reply.header("location"), format!("/api/v1/jobs/{id}"));
    id
}

#[track_caller]
pub(crate) fn id_of(job: &Value) -> &str {
    job["id"].as_str().unwrap_or_else(|| panic!("no id in {job}"))
}

/// A time of an answer. (As text they do not compare: zeroes at the end are left out.)
#[track_caller]
pub(crate) fn time(value: &Value) -> Timestamp {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is no time"));
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Whether a job has ended.
pub(crate) fn is_final(job: &Value) -> bool {
    let finals = ["succeeded", "warned", "failed", "cancelled", "interrupted"];
    job["state"].as_str().is_some_and(|state| finals.contains(&state))
}
