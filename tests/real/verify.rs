//! Damage that a verification must find, and name.

use std::fs;

use serde_json::{Value, json};

use crate::support::archive::{Damage, Damaged};
use crate::support::files::walk;
use crate::support::instance::Instance;
use crate::support::jobs::{BACKUPS, id_of};

const VERIFY: &str = "/api/v1/stanzas/main/verify";

fn verify(instance: &Instance, body: &Value) -> Value {
    instance.http.post_and_wait(VERIFY, body, 90).expect(200).json()
}

#[track_caller]
fn fails_with(instance: &Instance, job: &Value, code: &str, parts: &[&str]) {
    let log = instance.job_log(id_of(job));
    assert_eq!(job["state"], "failed", "{job:#}\n{log}");
    assert_eq!(job["error"]["code"], code, "{job:#}\n{log}");
    let message = job["error"]["message"].as_str().unwrap();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
        assert!(log.contains(part), "{part:?} is not in the log\n{log}");
    }
}

fn switch(instance: &Instance) -> String {
    let path = "/api/v1/stanzas/main/wal/switch";
    let switched = instance.http.post(path, &json!({})).expect(200).json();
    assert_eq!(switched["archived"], true, "{switched}");
    switched["segment"].as_str().unwrap().to_owned()
}

#[test]
fn a_missing_wal_segment_is_found_and_named() {
    let instance = Instance::with_full_backup();
    let good = verify(&instance, &json!({}));
    assert_eq!(good["state"], "succeeded", "{good:#}\n{}", instance.job_log(id_of(&good)));
    let latest = || instance.http.get(&format!("{BACKUPS}/latest")).expect(200).json();
    let first = latest();
    assert!(first["verified_at"].is_string(), "{first:#}");
    assert!(good["result"]["files"].as_u64().unwrap() > 500, "{good:#}");

    let segments = [switch(&instance), switch(&instance), switch(&instance)];
    let damaged = Damaged::make(&instance, &segments[1], Damage::Missing);
    let job = verify(&instance, &json!({}));
    fails_with(&instance, &job, "wal-gap", &[&segments[1]]);
    assert_eq!(job["result"]["wal_gaps"].as_array().unwrap().len(), 1, "{job:#}");
    assert_eq!(job["result"]["errors"], json!([]));
    // The backup itself is good.
    let one = verify(&instance, &json!({ "set": first["label"] }));
    assert_eq!(one["state"], "succeeded", "{one:#}");
    damaged.repair();
    assert_eq!(verify(&instance, &json!({}))["state"], "succeeded");

    // Without a segment of its own a backup is worth nothing, whatever pgBackRest says.
    let own = first["wal"]["start"].as_str().unwrap();
    let damaged = Damaged::make(&instance, own, Damage::Missing);
    let job = verify(&instance, &json!({ "set": first["label"] }));
    fails_with(&instance, &job, "wal-gap", &[own, first["label"].as_str().unwrap()]);
    assert_eq!(latest()["verified_at"], Value::Null);
    damaged.repair();
    assert_eq!(verify(&instance, &json!({ "repo": 1 }))["state"], "succeeded");
    assert!(latest()["verified_at"].is_string());
    let unknown = instance.http.post(VERIFY, &json!({ "deep": true }));
    assert_eq!(unknown.problem(422), "invalid-field");
}

#[test]
fn a_damaged_file_of_a_backup_is_found_and_named() {
    let instance = Instance::with_full_backup();
    let full = instance.http.get(&format!("{BACKUPS}/latest")).expect(200).json();
    let label = full["label"].as_str().unwrap();
    let incr = instance.good_backup("incr")["result"]["label"].clone();
    let base = instance.root.join(format!("repo/backup/main/{label}/pg_data/base"));
    let files = walk(&base).into_iter();
    let file = files.max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let name = file.strip_prefix(instance.root.join("repo/backup/main")).unwrap();
    let name = name.to_str().unwrap();
    let whole = fs::read(&file).unwrap();
    let job_for = |bytes: Option<&[u8]>| {
        match bytes {
            Some(bytes) => fs::write(&file, bytes).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let job = verify(&instance, &json!({}));
        fs::write(&file, &whole).unwrap();
        instance.user.own(&file);
        job
    };
    let mut changed = whole.clone();
    let middle = changed.len() / 2;
    changed[middle] ^= 0xff;
    for bytes in [None, Some(&whole[..100]), Some(&changed[..])] {
        let job = job_for(bytes);
        fails_with(&instance, &job, "verify-errors", &[name]);
        assert_eq!(job["result"]["good"], false, "{job:#}");
        // Both backups need it.
        let errors = job["result"]["errors"].to_string();
        assert!(errors.contains(incr.as_str().unwrap()), "{errors}");
        assert!(errors.contains(&format!("backup {label}: invalid")), "{errors}");
    }
    assert_eq!(verify(&instance, &json!({}))["state"], "succeeded");
}
