//! What each kind of target gets over the wire.

use headrest::domain::event::{Event, EventKind, Severity};
use sha2::{Digest as _, Sha256};

use crate::receiver::{Answer, Receiver};
use crate::rig::{Rig, failure, start, target};

/// HMAC as RFC 2104 has it, written out.
fn hmac(key: &[u8], message: &[u8]) -> String {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let inner =
        Sha256::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(message).finalize();
    let outer = Sha256::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize();
    outer.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[tokio::test]
async fn a_webhook_gets_signed_json() {
    let receiver = Receiver::good().await;
    let more = "secret = \"key of the hook\"";
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/hook?a=b"), more)).await;
    let event = failure(1).with_detail("grün & <b>").of_stanza("main".parse().unwrap());
    rig.notifier.tell(&event).await;
    let got = receiver.wait_for(1).await.remove(0);
    assert_eq!(got.line, "POST /hook?a=b HTTP/1.1");
    assert_eq!(got.header("content-type"), "application/json");
    assert_eq!(got.header("headrest-event"), "backup.failed");
    let timestamp = got.header("headrest-timestamp");
    assert_eq!(timestamp, start().as_second().to_string());
    let signed = hmac(b"key of the hook", format!("{timestamp}.{}", got.body).as_bytes());
    assert_eq!(got.header("headrest-signature"), format!("v1={signed}"));
    let expect = serde_json::json!({
        "delivery": got.header("headrest-delivery"),
        "event": "backup.failed",
        "severity": "critical",
        "at": "2026-11-20T14:00:00Z",
        "stanza": "main",
        "subject": "job:1",
        "summary": "it failed",
        "detail": "grün & <b>",
        "job": null,
        "schedule": null,
        "repeats": 0,
    });
    assert_eq!(got.json(), expect);
}

#[tokio::test]
async fn without_a_secret_nothing_is_signed() {
    let receiver = Receiver::good().await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "")).await;
    rig.notifier.tell(&failure(1)).await;
    let got = receiver.wait_for(1).await.remove(0);
    assert!(!got.headers.contains_key("headrest-signature"), "{got:?}");
}

#[tokio::test]
async fn chats_and_phones_get_their_own_formats() {
    for (kind, more) in [("slack", ""), ("discord", ""), ("ntfy", "token = \"tk_1\"")] {
        let receiver = Receiver::good().await;
        let rig = Rig::new(&target("ops", kind, &receiver.url("/x"), more)).await;
        let event = Event::new(EventKind::WalGap, start(), "wal".into(), "Lücke <@all>\r\nX: y");
        rig.notifier.tell(&event).await;
        let got = receiver.wait_for(1).await.remove(0);
        match kind {
            "slack" => {
                let expect = "🔴 *Lücke &lt;@all&gt;  X: y*\nwal.gap";
                assert_eq!(got.json(), serde_json::json!({ "text": expect }));
            }
            "discord" => {
                let expect = "🔴 **Lücke \\<\\@all\\>  X: y**\nwal.gap";
                let nobody = serde_json::json!({ "parse": [] });
                let expect = serde_json::json!({ "content": expect, "allowed_mentions": nobody });
                assert_eq!(got.json(), expect);
            }
            _ => {
                assert_eq!(got.header("title"), "Lücke <@all>  X: y");
                assert_eq!(got.header("priority"), "5");
                assert_eq!(got.header("tags"), "rotating_light,wal.gap");
                assert_eq!(got.header("authorization"), "Bearer tk_1");
                assert!(!got.headers.contains_key("x"), "{got:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_program_gets_the_event_and_answers_by_its_exit_code() {
    let directory = tempfile::tempdir().unwrap();
    let (out, script) = (directory.path().join("out"), directory.path().join("tell"));
    let text = "#!/bin/sh\nprintf '%s\\n' \"$1\" \"$HEADREST_EVENT_KIND\" \"$HEADREST_EVENT_SUMMARY\" \
                \"$HEADREST_EVENT\" \"${HOME:-clean}\" >\"$2\"\n\
                [ \"$HEADREST_EVENT_KIND\" != wal.gap ] || { echo 'cannot tell' >&2; exit 3; }\n";
    std::fs::write(&script, text).unwrap();
    let command = format!(
        "[[notify]]\nname = \"ops\"\ntype = \"command\"\ncommand = [\"sh\", {script:?}, \"a b; $(c)\", \
         {out:?}]\n"
    );
    let rig = Rig::new(&command).await;
    rig.notifier.tell(&failure(1)).await;
    rig.until(|status| status.delivered_total == 1).await;
    let said = std::fs::read_to_string(&out).unwrap();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..3], ["a b; $(c)", "backup.failed", "it failed"]);
    let event: serde_json::Value = serde_json::from_str(lines[3]).unwrap();
    assert_eq!((&event["subject"], lines[4]), (&"job:1".into(), "clean"));
    let gap = Event::new(EventKind::WalGap, start(), "wal".into(), "gap");
    rig.notifier.tell(&gap).await;
    rig.until_failed(1).await;
    let error = rig.record("ops").await.error.unwrap();
    assert_eq!(error, "the program exited with code 3: cannot tell");
}

#[tokio::test]
async fn targets_get_what_they_want() {
    let receiver = Receiver::good().await;
    let url = |name: &str| receiver.url(&format!("/{name}"));
    let config = [
        target("default", "webhook", &url("default"), ""),
        target("wal", "webhook", &url("wal"), "events = [\"wal.*\", \"test\"]"),
        target("worst", "slack", &url("worst"), "events = [\"*\"]\nmin_severity = \"critical\""),
        target("other", "ntfy", &url("other"), "stanza = \"other\"\nevents = [\"*\"]"),
        target("switch", "healthchecks", &url("switch"), "schedules = [\"nightly\"]"),
    ];
    let stanzas = "[[stanza]]\nname = \"main\"\n[[stanza]]\nname = \"other\"\n";
    let rig = Rig::new(&format!("{stanzas}{}", config.concat())).await;
    let event = |kind, stanza: Option<&str>, schedule: Option<&str>| Event {
        stanza: stanza.map(|name| name.parse().unwrap()),
        schedule: schedule.map(str::to_owned),
        ..Event::new(kind, start(), "s".into(), "w")
    };
    let passed = Event { severity: Severity::Info, ..event(EventKind::HealthChanged, None, None) };
    let cases: [(Event, &[&str]); 8] = [
        (event(EventKind::BackupSucceeded, Some("main"), None), &[]),
        (event(EventKind::BackupSucceeded, Some("main"), Some("nightly")), &["switch"]),
        (event(EventKind::BackupSucceeded, Some("main"), Some("weekly")), &[]),
        (event(EventKind::BackupFailed, Some("other"), None), &["default", "worst", "other"]),
        (event(EventKind::WalGap, Some("main"), None), &["default", "wal", "worst"]),
        (event(EventKind::WalRecovered, Some("main"), None), &["default", "wal"]),
        (passed, &["default", "other"]),
        (event(EventKind::BackupMissed, Some("main"), Some("nightly")), &["default", "switch"]),
    ];
    for (event, expect) in cases {
        let notices = rig.notifier.routed(&event);
        let names: Vec<_> = notices.iter().map(|notice| notice.target.as_str()).collect();
        assert_eq!(names, expect, "{event:?}");
    }
}

#[tokio::test]
async fn a_test_goes_past_whatever_waits_and_tells_how_it_went() {
    let receiver = Receiver::start(Answer::Status(500, "", "down")).await;
    let more = "events = [\"wal.*\"]\nmin_severity = \"critical\"";
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/s3cret"), more)).await;
    assert_eq!(rig.notifier.test("nobody", "t").await, None);
    let failed = rig.notifier.test("ops", "t").await.unwrap();
    assert_eq!((failed.delivered, failed.status), (false, Some(500)));
    let gap = Event::new(EventKind::WalGap, start(), "wal".into(), "gap");
    rig.notifier.tell(&gap).await;
    rig.until_failed(1).await;
    receiver.answer.send_replace(Answer::Status(204, "", ""));
    let sent = rig.notifier.test("ops", "admin-token").await.unwrap();
    assert_eq!((sent.delivered, sent.status, sent.error), (true, Some(204), None));
    let got = receiver.requests().pop().unwrap();
    assert_eq!(got.header("headrest-event"), "test");
    assert!(got.json()["detail"].as_str().unwrap().contains("admin-token"));
    let record = rig.record("ops").await;
    assert_eq!((record.waiting, record.delivered_at), (1, Some(start())));
}
