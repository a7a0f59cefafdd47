//! Backup sets that are damaged, or whose manifest cannot be read: known at once, counted for nothing, and
//! taken by no restore that has another one.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::fake::Fake;
use crate::support::files::walk;
use crate::support::instance::Instance;
use crate::support::jobs::{BACKUPS, RESTORES, id_of};
use crate::support::moments::{checks, request};
use crate::support::rows::Rows;
use crate::support::{PATIENCE, until};

const EXPIRE: &str = "/api/v1/stanzas/main/expire";

fn latest() -> Value {
    json!({ "type": "latest" })
}

fn label_of(job: &Value) -> String {
    job["result"]["label"].as_str().unwrap_or_else(|| panic!("{job:#}")).to_owned()
}

/// The set that a restore took.
fn set_of(instance: &Instance, restore: &Value) -> String {
    instance.restore_view(id_of(restore))["set"].as_str().unwrap().to_owned()
}

fn place(instance: &Instance, label: &str) -> PathBuf {
    instance.root.join(format!("repo/backup/main/{label}"))
}

/// Cuts both copies of a manifest in half, as a full disk of the repository would.
fn cut_manifest(instance: &Instance, label: &str) {
    for name in ["backup.manifest", "backup.manifest.copy"] {
        let file = place(instance, label).join(name);
        let text = fs::read(&file).unwrap();
        fs::write(&file, &text[..text.len() / 2]).unwrap();
    }
}

/// Backups as they are listed, newest first: label and state.
fn states(instance: &Instance) -> Vec<(String, String)> {
    let list = instance.http.get(BACKUPS).expect(200).json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let items = list["items"].as_array().unwrap().iter();
    items.map(|backup| (text(&backup["label"]), text(&backup["state"]))).collect()
}

#[track_caller]
fn state_of(instance: &Instance, label: &str) -> Value {
    instance.http.get(&format!("{BACKUPS}/{label}")).expect(200).json()
}

fn check(instance: &Instance, name: &str) -> Value {
    let health = instance.http.get("/api/v1/health").json();
    let all = health["checks"].as_array().unwrap().clone();
    all.into_iter().find(|check| check["name"] == name).unwrap_or_default()
}

#[track_caller]
fn detail(plan: &Value, id: &str) -> String {
    let found = plan["checks"].as_array().unwrap().iter().find(|check| check["id"] == id);
    found.unwrap_or_else(|| panic!("no check {id}: {plan:#}"))["detail"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Running, with a good backup, and rows after it.
fn running() -> (Instance, String, Rows) {
    let instance = Instance::with_full_backup();
    let first = label_of(&instance.wait_first_backup());
    let mut rows = Rows::in_new_table(&instance.sql, "t");
    rows.add(1000);
    instance.switch_wal();
    (instance, first, rows)
}

/// A page of the table is broken on the disk.
fn break_page(instance: &Instance, rows: &Rows) {
    instance.sql.run("CHECKPOINT");
    let file = instance.data_dir().join(rows.file());
    instance.stop_server();
    let mut bytes = fs::read(&file).unwrap();
    for byte in &mut bytes[8192 + 4000..8192 + 4100] {
        *byte ^= 0x55;
    }
    fs::write(&file, bytes).unwrap();
    instance.order("start");
    instance.wait_ready();
}

#[test]
fn a_set_with_page_errors_is_taken_only_when_nothing_else_reaches_the_target() {
    let (instance, first, rows) = running();
    break_page(&instance, &rows);
    let broken = instance.backup(&json!({ "type": "full" }));
    assert_eq!(broken["state"], "warned", "{broken:#}");
    let broken = label_of(&broken);
    assert_eq!(state_of(&instance, &broken)["state"], "page-errors");
    assert!(instance.http.get("/").body.contains("page errors"));
    // The older one is taken, and the plan says why.
    let plan = instance.plan(&latest(), &json!({}));
    assert_eq!(plan["set"], first.as_str(), "{plan:#}");
    assert!(checks(&plan, "warn").contains(&"damaged-set".to_owned()), "{plan:#}");
    assert!(detail(&plan, "damaged-set").contains(&broken), "{plan:#}");
    // The broken one by its name: refused, and accepted by name.
    let named = json!({ "set": broken });
    let refused = instance.http.post(RESTORES, &request(&latest(), &named));
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert_eq!(checks(&refused.json(), "fail"), ["damaged-set"], "{}", refused.body);
    let accepted = json!({ "set": broken, "accept": ["damaged-set"] });
    let job = instance.restore_to(&latest(), &accepted);
    assert_eq!(set_of(&instance, &job), broken, "{job:#}");
    let read = instance.sql.attempt("SELECT count(*) FROM t");
    assert!(read.unwrap_err().contains("invalid page"), "the page came back as it was");
    // From the older one it comes back whole.
    let job = instance.restore_to(&latest(), &json!({}));
    assert_eq!(set_of(&instance, &job), first, "{job:#}");
    rows.check_later();
}

#[test]
fn a_set_that_a_verification_found_damaged_is_passed_over() {
    let (instance, first, mut rows) = running();
    let second = label_of(&instance.good_backup("full"));
    rows.add(10);
    instance.switch_wal();
    let base = place(&instance, &second).join("pg_data/base");
    let file = walk(&base).into_iter().max_by_key(|f| fs::metadata(f).unwrap().len()).unwrap();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let verify = instance.http.post_and_wait("/api/v1/stanzas/main/verify", &json!({}), 90);
    assert_eq!(verify.json()["state"], "failed", "{}", verify.body);
    let view = state_of(&instance, &second);
    assert_eq!(view["state"], "damaged", "{view:#}");
    assert!(view["state_reason"].is_string() && view["state_since"].is_string(), "{view:#}");
    assert_eq!(state_of(&instance, &first)["state"], "good");
    until("the health warns", PATIENCE, || {
        let check = check(&instance, "backup-sets");
        (check["status"] == "warn" && check["detail"].as_str()?.contains(&second)).then_some(())
    });
    let job = instance.restore_to(&latest(), &json!({}));
    assert_eq!(set_of(&instance, &job), first, "{job:#}");
    rows.check_later();
    fs::write(&file, whole).unwrap();
}

/// pgBackRest takes a name with a line break, and cannot read the manifest back.
#[test]
fn a_backup_whose_manifest_cannot_be_read_fails_and_counts_for_nothing() {
    let (instance, first, mut rows) = running();
    instance.sql.run("CREATE DATABASE \"a\nb\"");
    let mut bad = Vec::new();
    for _ in 0..2 {
        let job = instance.backup(&json!({ "type": "full" }));
        assert_eq!(job["state"], "failed", "{job:#}");
        assert_eq!(job["error"]["code"], "backup-unreadable", "{job:#}");
        let hints = job["error"]["hints"].to_string();
        assert!(hints.contains("line break") && hints.contains("RENAME"), "{hints}");
        bad.push(label_of(&job));
    }
    // The default keeps two fulls: none of these counts as one of them.
    let expire = instance.http.post_and_wait(EXPIRE, &json!({}), 60).json();
    assert_eq!(expire["state"], "succeeded", "{expire:#}");
    assert!(states(&instance).contains(&(first.clone(), "unverified".to_owned())));
    for label in &bad {
        assert_eq!(state_of(&instance, label)["state"], "unreadable");
    }
    assert!(instance.http.get("/").body.contains("unreadable"));
    until("the health warns", PATIENCE, || {
        let check = check(&instance, "backup-sets");
        (check["status"] == "warn" && check["detail"].as_str()?.contains(&bad[1])).then_some(())
    });
    // A restore takes the older one, and says so.
    rows.add(10);
    let plan = instance.plan(&latest(), &json!({}));
    assert_eq!(plan["set"], first.as_str(), "{plan:#}");
    assert!(detail(&plan, "damaged-set").contains(&bad[1]), "{plan:#}");
    let window = instance.window();
    assert!(window["windows"].to_string().contains("ranges"), "{window:#}");
    let named = json!({ "set": bad[1], "accept": ["damaged-set", "wal-gap", "wal-loss"] });
    let refused = instance.http.post(RESTORES, &request(&latest(), &named));
    assert_eq!(refused.status, 409, "{}", refused.body);
    assert_eq!(checks(&refused.json(), "fail"), ["set-readable"], "{}", refused.body);
    instance.restore_to(&latest(), &json!({}));
    rows.check_later();
    // Nothing can be built upon such a backup: a full is made instead.
    instance.sql.run("ALTER DATABASE \"a\nb\" RENAME TO good");
    let job = instance.backup(&json!({ "type": "incr" }));
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("warned"), &json!("became-full")));
    assert!(job["error"]["message"].as_str().unwrap().contains(&bad[1]), "{job:#}");
    instance.good_backup("incr");
    instance.restore_to(&latest(), &json!({}));
    rows.check_later();
}

/// What was read back once may be damaged later.
#[test]
fn a_manifest_that_is_damaged_later_lets_no_good_backup_go() {
    let (instance, first, mut rows) = running();
    let second = label_of(&instance.good_backup("full"));
    cut_manifest(&instance, &second);
    let third = label_of(&instance.good_backup("full"));
    let labels = |instance: &Instance| -> Vec<String> {
        states(instance).into_iter().map(|(label, _)| label).rev().collect()
    };
    assert_eq!(labels(&instance), [&first, &second, &third].map(String::clone));
    assert_eq!(state_of(&instance, &second)["state"], "unreadable");
    // The newest as well, and one that is not there at all.
    for name in ["backup.manifest", "backup.manifest.copy"] {
        fs::remove_file(place(&instance, &third).join(name)).unwrap();
    }
    rows.add(10);
    let plan = instance.plan(&latest(), &json!({}));
    assert_eq!(plan["set"], first.as_str(), "{plan:#}");
    assert!(detail(&plan, "damaged-set").contains(&third), "{plan:#}");
    let fourth = label_of(&instance.good_backup("full"));
    assert!(labels(&instance).contains(&first), "the only other good one");
    cut_manifest(&instance, &fourth);
    let job = instance.restore_to(&latest(), &json!({}));
    assert_eq!(set_of(&instance, &job), first, "{job:#}");
    rows.check_later();
    instance.steer(id_of(&job), "release", &json!({})).expect(200);
    // With two that are good the damaged ones and the old one go.
    instance.good_backup("full");
    instance.good_backup("full");
    let left = labels(&instance);
    assert!(!left.contains(&first) && left.len() <= 3, "{left:?}");
}

#[test]
fn a_backup_that_another_one_needs_must_be_there() {
    let (instance, first, mut rows) = running();
    let incr = label_of(&instance.good_backup("incr"));
    rows.add(10);
    let (from, to) = (place(&instance, &first), instance.root.join("away"));
    fs::rename(&from, &to).unwrap();
    let refused = instance.http.post(RESTORES, &request(&latest(), &json!({ "set": incr })));
    assert_eq!(refused.status, 409, "{}", refused.body);
    let problem = refused.json();
    assert_eq!(checks(&problem, "fail"), ["set-readable"], "{problem:#}");
    assert!(detail(&problem, "set-readable").contains(&first), "{problem:#}");
    rows.check();
    fs::rename(&to, &from).unwrap();
    instance.restore_to(&latest(), &json!({ "set": incr }));
    rows.check_later();
}

/// What cannot be asked is no answer: nothing is removed for it.
#[test]
fn nothing_is_removed_while_it_is_not_known_what_can_be_read() {
    let (instance, fake) = Fake::with_first_backup();
    let first = label_of(&instance.wait_first_backup());
    instance.good_backup("full");
    let real = crate::support::files::pgbackrest();
    fake.on(
        "info",
        &format!(
            "case \"$*\" in *--set=*) echo 'ERROR: [124]: timeout' >&2; exit 124 ;; esac\nexec '{}' \
             \"$@\"",
            real.display()
        ),
    );
    let job = instance.backup(&json!({ "type": "full" }));
    assert_eq!(job["state"], "warned", "{job:#}");
    assert_eq!(job["error"]["code"], "expire-failed", "{job:#}");
    let message = job["error"]["message"].as_str().unwrap();
    assert!(message.contains("is not known"), "{message}");
    assert_eq!(states(&instance).len(), 3);
    let plan = instance.plan(&latest(), &json!({}));
    assert_eq!(checks(&plan, "fail"), ["set-readable"], "{plan:#}");
    fake.forget("info");
    let expire = instance.http.post_and_wait(EXPIRE, &json!({}), 60).json();
    assert_eq!(expire["state"], "succeeded", "{expire:#}\n{}", instance.job_log(id_of(&expire)));
    assert!(!states(&instance).iter().any(|(label, _)| *label == first));
}
