//! `pgbackrest info` in all the ways it has been seen to answer, and some it has not.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::fake::{Fake, GOOD_INFO};
use crate::support::instance::Instance;
use crate::support::jobs::BACKUPS;
use crate::support::process::{self, Process};
use crate::support::{SOON, until, within};

const STANZA: &str = "/api/v1/stanzas/main";

fn instance_with_fake() -> (Instance, Fake) {
    let mut instance = Instance::new();
    let fake = Fake::installed_in(&mut instance);
    // Runs of info are counted here; the health asks for its own once.
    instance.set("HEADREST_HEALTH__INTERVAL", "1h");
    instance.start();
    instance.wait_ready();
    (instance, fake)
}

/// `info` with a status, as pgBackRest 2.45 prints it, and no backups.
fn with_status(code: i32, message: &str, repo_message: &str) -> String {
    let mut info: Value = serde_json::from_str(GOOD_INFO).unwrap();
    info[0]["backup"] = json!([]);
    info[0]["archive"] = json!([]);
    info[0]["status"] =
        json!({ "code": code, "lock": { "backup": { "held": false } }, "message": message });
    info[0]["repo"][0]["status"] = json!({ "code": code, "message": repo_message });
    info.to_string()
}

/// Asks without the cache: the stanza as it is now.
fn fresh(instance: &Instance, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = String::new();
    let found = within(Duration::from_secs(20), || {
        let request = instance.http.request(reqwest::Method::GET, STANZA);
        let reply = crate::support::client::send(request.header("Cache-Control", "no-cache"));
        last = format!("{} {}", reply.status, reply.body);
        let body = reply.json();
        wanted(&body).then_some(body)
    });
    found.unwrap_or_else(|| panic!("the last answer was {last}"))
}

#[test]
fn every_status_of_a_stanza_is_shown_as_it_is() {
    let (instance, fake) = instance_with_fake();
    let seen = fresh(&instance, |stanza| stanza["status"]["code"] == 0);
    assert_eq!(seen["backups"]["count"], 1, "{seen:#}");

    let answers = [
        (1, "missing stanza path", "missing stanza path"),
        (2, "no valid backups", "no valid backups"),
        (
            99,
            "other",
            "[FileOpenError] unable to get info for path/file '/repo/backup/main/backup.info': [13] Permission denied",
        ),
    ];
    for (code, message, repo_message) in answers {
        fake.answer_info(&with_status(code, message, repo_message));
        let seen = fresh(&instance, |stanza| stanza["status"]["code"] == code);
        assert_eq!(seen["status"]["message"], message, "{seen:#}");
        assert_eq!(seen["backups"]["count"], 0, "{seen:#}");
        assert_eq!(seen["repos"][0]["status"]["message"], repo_message, "{seen:#}");
        let list = instance.http.get(BACKUPS);
        if code == 99 {
            // Nothing is known, and an empty list would say that there are none.
            assert_eq!(list.problem(503), "repository-unavailable");
        } else {
            assert_eq!(list.expect(200).json()["items"], json!([]));
        }
        // The raw answer is untouched.
        let raw = instance.http.get(&format!("{STANZA}/info")).expect(200);
        assert_eq!(raw.json()[0]["status"]["code"], code);
    }

    // Not a word of the stanza: its repository is not there.
    fake.answer_info("[]");
    let seen = fresh(&instance, |stanza| stanza["status"]["code"] != 99);
    assert_eq!(seen["status"]["code"], 1, "{seen:#}");
    assert_eq!(seen["name"], "main");

    // It all comes back by itself.
    fake.answer_info(GOOD_INFO);
    fresh(&instance, |stanza| stanza["backups"]["count"] == 1);
}

#[test]
fn five_megabytes_on_one_line_are_read_whole() {
    let (instance, fake) = instance_with_fake();
    let mut info: Value = serde_json::from_str(GOOD_INFO).unwrap();
    let one = info[0]["backup"][0].clone();
    let mut all = Vec::new();
    for number in 0..9000u32 {
        let mut backup = one.clone();
        let (hour, minute, second) = (number / 3600, number / 60 % 60, number % 60);
        backup["label"] = format!("20261101-{hour:02}{minute:02}{second:02}F").into();
        backup["timestamp"] =
            json!({ "start": 1_793_491_200 + number, "stop": 1_793_491_203 + number });
        backup["an-unknown-key"] = "x".repeat(150).into();
        all.push(backup);
    }
    info[0]["backup"] = Value::Array(all);
    let text = info.to_string();
    assert!(text.len() > 5_000_000 && !text.contains('\n'), "{}", text.len());
    fake.answer_info(&text);
    let seen = fresh(&instance, |stanza| stanza["backups"]["count"] == 9000);
    assert_eq!(seen["backups"]["latest"]["label"], "20261101-022959F");
    let raw = instance.http.get(&format!("{STANZA}/info")).expect(200);
    assert_eq!(raw.body.trim_end().len(), text.len(), "the raw answer was changed");
    let page = instance.http.get(&format!("{BACKUPS}?limit=200")).expect(200).json();
    assert_eq!(page["items"].as_array().unwrap().len(), 200);
    assert!(page["next_cursor"].is_string());
}

#[test]
fn an_info_that_makes_no_sense_is_a_503_that_says_why() {
    let (instance, fake) = instance_with_fake();
    let not_good = |what: &str, part: &str| {
        let seen = fresh(&instance, |body| body["code"] == "repository-unavailable");
        assert_eq!(seen["status"], 503, "{what}: {seen:#}");
        let detail = seen["detail"].as_str().unwrap();
        assert!(detail.contains(part), "{what}: {part:?} is not in {detail:?}");
        assert!(detail.len() < 5000, "{what}: a detail of {} bytes", detail.len());
        let short = instance.http.get("/pgBackRest/info");
        assert!(short.status == 503 || short.status == 200, "{what}: {}", short.status);
        fake.answer_info(GOOD_INFO);
        fresh(&instance, |body| body["backups"]["count"] == 1);
    };
    fake.answer_info("this is no JSON");
    not_good("garbage", "");
    fake.answer_info("");
    not_good("nothing", "");
    fake.answer_info("[{\"name\":\"main\",");
    not_good("half of it", "");
    fake.answer_info_bytes(b"\xff\xfe\x00garbage");
    not_good("no text", "");
    fake.on("info", "echo 'ERROR: [029]: this is the reason' >&2; exit 29");
    not_good("an exit code", "this is the reason");
    fake.on("info", "kill -KILL $$; sleep 60");
    not_good("a signal", "SIGKILL");
    fake.on("info", "yes '[{\"name\":\"main\"}]' | head -c 200000000");
    not_good("200 MB", "");
    let peak = Process::status(instance.pid(), "VmHWM").unwrap();
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 200 << 10, "{peak} kB at its peak");
}

#[test]
fn an_info_that_hangs_holds_nobody_up_for_ever_and_is_not_asked_ten_times() {
    let (instance, fake) = instance_with_fake();
    // The health looks once more as soon as it has seen that the server takes writes, and then for an hour
    // no more: who asks after that is served after it.
    until("the health has seen the server", SOON, || {
        let health = instance.http.get("/api/v1/health").json();
        let mut checks = health["checks"].as_array()?.iter();
        checks.any(|check| check["detail"] == "takes writes").then_some(())
    });
    fresh(&instance, |body| body["backups"]["count"] == 1);
    fresh(&instance, |body| body["backups"]["count"] == 1);
    fake.on("info", "exec sleep 1000");
    let hanging = || -> Vec<i32> {
        let all = instance.processes().into_iter();
        all.filter(|p| p.title == "sleep 1000").map(|p| p.pid).collect()
    };
    let askers: Vec<_> = (0..10)
        .map(|_| {
            let http = instance.http.clone();
            std::thread::spawn(move || {
                let request = http.request(reqwest::Method::GET, STANZA);
                crate::support::client::send(request.header("Cache-Control", "no-cache")).status
            })
        })
        .collect();
    // Who came while the first run was under way is served by a second one; more it never takes.
    let first = until("info runs", SOON, || hanging().first().copied());
    assert_eq!(hanging().len(), 1, "ten askers cost more than one info at a time");
    process::signal(first, Signal::KILL);
    let second =
        until("info runs again", SOON, || hanging().first().copied().filter(|pid| *pid != first));
    // Meanwhile everything else answers.
    assert_eq!(instance.http.probe("/livez"), Some(200));
    instance.server();
    instance.jobs();
    let began = Instant::now();
    for asker in askers {
        assert_eq!(asker.join().unwrap(), 503);
    }
    assert!(began.elapsed() < Duration::from_secs(70), "{:?}", began.elapsed());
    assert_eq!(hanging(), [] as [i32; 0], "of {first} and {second} one is left");
    fake.answer_info(GOOD_INFO);
    fresh(&instance, |body| body["backups"]["count"] == 1);
}
