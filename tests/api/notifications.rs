//! Targets of notifications: what is told of them, a test, and that no job waits for one.

use headrest::config::{Config, Environment, Flags, NotifyConfig};
use tokio::net::TcpListener;

use crate::service::{Options, Service};

fn targets(text: &str) -> Vec<NotifyConfig> {
    let environment = Environment::from_pairs([]);
    Config::from_text(&Flags::default(), &environment, text).unwrap().notify
}

#[tokio::test]
async fn targets_are_told_without_their_secrets() {
    let text = "[[notify]]\nname = \"ops\"\ntype = \"webhook\"\nevents = [\"wal.*\", \"*.failed\"]\n\
                url = \"https://user:s3cret@hooks.example.com/s3cret?k=s3cret\"\n\
                secret = \"s3cret\"\nmin_severity = \"warning\"\nstanza = \"main\"\n\
                [[notify]]\nname = \"switch\"\ntype = \"healthchecks\"\n\
                url = \"https://hc.example.com/s3cret\"\nschedules = [\"nightly\"]\n";
    let service = Service::with(Options { notify: targets(text), ..Options::default() }).await;
    let answer = service.get("/api/v1/notifications").await;
    assert!(!answer.text.contains("s3cret"), "{}", answer.text);
    let items = &answer.json()["items"];
    let expect = serde_json::json!({
        "name": "ops",
        "type": "webhook",
        "host": "hooks.example.com",
        "events": ["wal.*", "*.failed"],
        "min_severity": "warning",
        "stanza": "main",
        "schedules": [],
        "state": "idle",
        "waiting": 0,
        "given_up": 0,
        "next_attempt_at": null,
        "last_delivered_at": null,
        "last_failed_at": null,
        "last_error": null,
    });
    assert_eq!(items[0], expect);
    let switch = (&items[1]["events"], &items[1]["schedules"]);
    assert_eq!(switch, (&serde_json::Value::Null, &serde_json::json!(["nightly"])));
}

#[tokio::test]
async fn a_test_tells_how_it_went_and_is_written_down() {
    let command = |name: &str, script: &str| {
        format!(
            "[[notify]]\nname = \"{name}\"\ntype = \"command\"\n\
             command = [\"/bin/sh\", \"-c\", \"{script}\"]\n"
        )
    };
    let text = command("good", "exit 0") + &command("bad", "echo no >&2; exit 7");
    let service = Service::with(Options { notify: targets(&text), ..Options::default() }).await;
    let good = service.post("/api/v1/notifications/good/test", "").await;
    let expect = serde_json::json!({ "delivered": true, "status": null, "error": null });
    assert_eq!((good.status.as_u16(), good.json()), (200, expect));
    let bad = service.post("/api/v1/notifications/bad/test", "").await;
    assert_eq!((bad.status.as_u16(), &bad.json()["delivered"]), (200, &false.into()));
    assert_eq!(bad.json()["error"], "the program exited with code 7: no");
    service
        .post("/api/v1/notifications/nobody/test", "")
        .await
        .is_problem(404, "no-such-notification");
    let deeds = service.get("/api/v1/audit").await.json();
    let deeds: Vec<_> = deeds["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|deed| (deed["action"].as_str().unwrap(), deed["subject"].as_str().unwrap()))
        .collect();
    assert_eq!(deeds, [("notification.test", "bad"), ("notification.test", "good")]);
    let listed = service.get("/api/v1/notifications").await.json();
    assert!(listed["items"][0]["last_delivered_at"].is_string(), "{listed}");
}

#[tokio::test]
async fn a_job_ends_while_its_receiver_hangs() {
    // It takes connections and never says anything.
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", hangs.local_addr().unwrap());
    let text = format!(
        "[[notify]]\nname = \"ops\"\ntype = \"webhook\"\nurl = \"{url}\"\nevents = [\"check.succeeded\"]\n"
    );
    let service = Service::with(Options { notify: targets(&text), ..Options::default() }).await;
    let path = "/api/v1/stanzas/main/check";
    let ended = service.post_with(path, "", &[("prefer", "wait=20")]).await;
    assert_eq!(ended.status.as_u16(), 200, "{}", ended.text);
    assert_eq!(ended.json()["state"], "succeeded");
    // And it is told all the same.
    let (_connection, _) = hangs.accept().await.unwrap();
    let listed = service.get("/api/v1/notifications").await.json();
    assert_eq!(listed["items"][0]["waiting"], 1, "{listed}");
    assert_eq!(listed["items"][0]["state"], "delivering");
}
