//! What happens when a receiver is not there, or not well.

use std::time::Duration;

use headrest::domain::event::{Event, EventKind, Severity};
use headrest::notify::TargetState;
use tokio::time::timeout;

use crate::receiver::{Answer, PATIENCE, Receiver};
use crate::rig::{Rig, failure, start, target};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_receiver_that_is_down_for_an_hour_misses_nothing() {
    let receiver = Receiver::start(Answer::Status(503, "", "down")).await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/s3cret"), "")).await;
    let mut told = 0;
    let mut failed = 0;
    // Through the hour from one attempt to the next, with some events in between.
    while rig.now() < start() + HOUR {
        for _ in 0..20 {
            rig.notifier.tell(&failure(told)).await;
            told += 1;
        }
        let status = rig.until_failed(failed + 1).await;
        failed = status.failed_total;
        let due = status.next_attempt_at.unwrap();
        let wait = Duration::try_from(due.duration_since(rig.now())).unwrap();
        assert!(wait >= Duration::from_secs(4) && wait <= Duration::from_secs(900), "{wait:?}");
        // A moment before, nobody tries.
        rig.pass(wait.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!(rig.notifier.targets()[0].status().failed_total, failed);
        rig.pass(Duration::from_millis(1));
    }
    rig.until_failed(failed + 1).await;
    let tries = receiver.requests();
    assert!((8..=40).contains(&tries.len()), "{} attempts in an hour", tries.len());
    assert!(told >= 160, "{told}");
    receiver.answer.send_replace(Answer::Status(200, "", ""));
    rig.pass(Duration::from_secs(900));
    let all = receiver.wait_for(tries.len() + told).await;
    rig.until_idle().await;
    let delivered = &all[tries.len()..];
    let subjects: Vec<_> =
        delivered.iter().map(|got| got.json()["subject"].as_str().unwrap().to_owned()).collect();
    let expect: Vec<_> = (0..told).map(|number| format!("job:{number}")).collect();
    assert_eq!(subjects, expect, "all of them, once, in order");
    // At most every second attempt was at another than the first one; all kept their ids.
    let id = |got: &crate::receiver::Request| got.header("headrest-delivery").to_owned();
    let ids: Vec<_> = delivered.iter().map(id).collect();
    let first = tries.iter().filter(|got| id(got) == ids[0]).count();
    assert!(first * 2 >= tries.len() && tries.iter().all(|got| ids.contains(&id(got))));
    let record = rig.record("ops").await;
    assert_eq!((record.waiting, record.given_up), (0, 0));
    let error = record.error.unwrap();
    assert!(error.contains("503") && error.ends_with("down"), "{error}");
}

#[tokio::test]
async fn whoever_tells_never_waits_for_a_receiver() {
    let receiver = Receiver::start(Answer::Hang).await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "")).await;
    let all = async {
        for number in 0..300 {
            rig.notifier.tell(&failure(number)).await;
        }
    };
    timeout(PATIENCE, all).await.unwrap();
    assert_eq!(rig.record("ops").await.waiting, 300);
    let status = rig.until_failed(1).await;
    assert_eq!(status.state, TargetState::Retrying);
    let error = rig.record("ops").await.error.unwrap();
    assert!(error.contains("no answer within 1.5 s"), "{error}");
}

#[tokio::test]
async fn every_kind_of_failure_is_tried_again_and_told_without_the_url() {
    let answers = [
        (Answer::Close, ""),
        (Answer::Stall, "500"),
        (Answer::Status(500, "", "oh\nno"), "answered 500 Internal Server Error: oh no"),
        (Answer::Status(408, "", ""), "answered 408"),
        (Answer::Echo, "answered 404 Not Found: no POST … here"),
    ];
    for (answer, part) in answers {
        let receiver = Receiver::start(answer.clone()).await;
        let rig = Rig::new(&target("ops", "webhook", &receiver.url("/s3cret"), "")).await;
        rig.notifier.tell(&failure(1)).await;
        rig.until_failed(1).await;
        let tested = format!("{:?}", rig.notifier.test("ops", "t").await);
        assert!(!tested.contains("s3cret"), "{tested}");
        let error = rig.record("ops").await.error.unwrap();
        assert!(error.contains(part) && !error.contains("s3cret"), "{answer:?} gives {error}");
        receiver.answer.send_replace(Answer::Status(204, "", ""));
        rig.pass(Duration::from_secs(5));
        rig.until_idle().await;
        let ids: Vec<_> = receiver
            .requests()
            .iter()
            .map(|got| got.header("headrest-delivery").to_owned())
            .collect();
        // The test was between them.
        assert_eq!((ids.len(), &ids[0]), (3, &ids[2]));
    }
}

#[tokio::test]
async fn nobody_listens_then_somebody_does() {
    let receiver = Receiver::good().await;
    let (address, url) = (receiver.address, receiver.url("/s3cret"));
    drop(receiver);
    let rig = Rig::new(&target("ops", "webhook", &url, "")).await;
    rig.notifier.tell(&failure(1)).await;
    rig.until_failed(1).await;
    let error = rig.record("ops").await.error.unwrap();
    assert!(error.contains("refused") && !error.contains("s3cret"), "{error} ({address})");
}

#[tokio::test]
async fn what_a_receiver_refuses_is_given_up_and_stands_in_nobodys_way() {
    let receiver = Receiver::start(Answer::Status(404, "", "no_such_hook")).await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "")).await;
    rig.notifier.tell(&failure(1)).await;
    for attempt in 1..=4 {
        rig.until_failed(attempt).await;
        assert_eq!(rig.record("ops").await.given_up, 0, "not before an hour");
        rig.pass(Duration::from_secs(900));
    }
    rig.until(|status| status.given_up_total == 1).await;
    rig.until_idle().await;
    let record = rig.record("ops").await;
    assert_eq!((record.waiting, record.given_up), (0, 1));
    receiver.answer.send_replace(Answer::Status(200, "", ""));
    rig.notifier.tell(&failure(2)).await;
    let got = receiver.wait_for(6).await;
    assert_eq!(got[5].json()["subject"], "job:2");
}

#[tokio::test]
async fn what_is_too_old_is_given_up() {
    let receiver = Receiver::start(Answer::Status(502, "", "")).await;
    let more = "give_up_after = \"24h\"";
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), more)).await;
    rig.notifier.tell(&failure(1)).await;
    rig.until_failed(1).await;
    // A day but for a minute: it is still tried.
    rig.pass(23 * HOUR + Duration::from_mins(59));
    rig.until_failed(2).await;
    assert_eq!(rig.record("ops").await.waiting, 1);
    rig.pass(Duration::from_secs(60));
    rig.until(|status| status.given_up_total == 1).await;
    assert_eq!(rig.record("ops").await.given_up, 1);
}

#[tokio::test]
async fn a_receiver_says_when_to_come_back() {
    let busy = Answer::Status(429, "retry-after: 120\r\n", "slow down");
    let receiver = Receiver::start(busy).await;
    let rig = Rig::new(&target("ops", "slack", &receiver.url("/"), "")).await;
    rig.notifier.tell(&failure(1)).await;
    let status = rig.until_failed(1).await;
    assert_eq!(status.next_attempt_at.unwrap(), start() + Duration::from_secs(120));
    let forever = Answer::Status(503, "retry-after: 999999\r\n", "");
    receiver.answer.send_replace(forever);
    rig.pass(Duration::from_secs(120));
    let status = rig.until_failed(2).await;
    assert_eq!(status.next_attempt_at.unwrap(), rig.now() + HOUR);
}

#[tokio::test]
async fn after_a_crash_it_goes_on_where_it_was() {
    let receiver = Receiver::start(Answer::Status(500, "", "")).await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "")).await;
    for number in 0..3 {
        rig.notifier.tell(&failure(number)).await;
    }
    rig.until_failed(1).await;
    let rig = rig.crash().await;
    // Still not due.
    let status = rig.until(|status| status.state == TargetState::Retrying).await;
    assert!(status.next_attempt_at.unwrap() > rig.now());
    receiver.answer.send_replace(Answer::Status(200, "", ""));
    rig.pass(Duration::from_secs(5));
    let got = receiver.wait_for(4).await;
    rig.until_idle().await;
    let ids: Vec<_> = got.iter().map(|got| got.header("headrest-delivery")).collect();
    assert_eq!(ids[0], ids[1]);
    assert_eq!(got[3].json()["subject"], "job:2");
}

#[tokio::test]
async fn a_clock_that_was_set_back_delays_nothing_for_long() {
    let receiver = Receiver::start(Answer::Status(500, "", "")).await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "")).await;
    rig.notifier.tell(&failure(1)).await;
    rig.until_failed(1).await;
    rig.time.send_modify(|now| *now -= 24 * HOUR);
    receiver.answer.send_replace(Answer::Status(200, "", ""));
    let rig = rig.crash().await;
    receiver.wait_for(2).await;
    rig.until_idle().await;
}

#[tokio::test]
async fn the_same_again_is_told_once_with_its_number() {
    use EventKind::{WalFailing, WalRecovered};
    let receiver = Receiver::start(Answer::Status(500, "", "")).await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "")).await;
    let wal = |kind| Event::new(kind, start(), "check:archiver".to_owned(), "WAL");
    rig.notifier.tell(&failure(1)).await;
    rig.until_failed(1).await;
    for kind in [WalFailing, WalFailing, WalFailing, WalRecovered, WalFailing] {
        rig.notifier.tell(&wal(kind)).await;
    }
    receiver.answer.send_replace(Answer::Status(200, "", ""));
    rig.pass(Duration::from_secs(5));
    rig.until_idle().await;
    let told: Vec<_> = receiver.requests()[2..]
        .iter()
        .map(|got| (got.json()["event"].clone(), got.json()["repeats"].clone()))
        .collect();
    let expect = [("wal.failing", 2), ("wal.recovered", 0), ("wal.failing", 0)];
    assert_eq!(told, expect.map(|(kind, repeats)| (kind.into(), repeats.into())));
}

#[tokio::test]
async fn the_end_delivers_what_it_can_and_keeps_the_rest() {
    let receiver = Receiver::good().await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "")).await;
    for number in 0..50 {
        rig.notifier.tell(&failure(number)).await;
    }
    rig.tasks.close(PATIENCE).await;
    assert_eq!(receiver.requests().len(), 50);
    let hangs = Receiver::start(Answer::Hang).await;
    let rig = Rig::new(&target("ops", "webhook", &hangs.url("/"), "")).await;
    rig.notifier.tell(&failure(1)).await;
    hangs.wait_for(1).await;
    rig.tasks.close(Duration::from_millis(50)).await;
    assert_eq!(rig.store.target_records().await.unwrap()["ops"].waiting, 1);
}

#[tokio::test]
async fn whoever_hears_only_the_worst_hears_of_its_end_too() {
    let receiver = Receiver::good().await;
    let more = "min_severity = \"critical\"";
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), more)).await;
    let health = |kind, severity, was| Event {
        severity,
        was: Some(was),
        ..Event::new(kind, start(), "health:archiving".to_owned(), "WAL")
    };
    for (severity, was) in [
        (Severity::Warning, Severity::Info),
        (Severity::Info, Severity::Warning),
        (Severity::Critical, Severity::Info),
        (Severity::Info, Severity::Critical),
    ] {
        let kind = match severity {
            Severity::Info => EventKind::WalRecovered,
            Severity::Warning | Severity::Critical => EventKind::WalFailing,
        };
        rig.notifier.tell(&health(kind, severity, was)).await;
    }
    rig.tasks.close(PATIENCE).await;
    let got = receiver.requests();
    let told: Vec<_> = got.iter().map(|got| Receiver::gist(got).0).collect();
    assert_eq!(told, ["critical", "info"]);
}

#[tokio::test]
async fn one_that_does_not_arrive_holds_up_no_others() {
    let receiver = Receiver::start(Answer::StatusFor("job:1", 404)).await;
    let rig = Rig::new(&target("ops", "webhook", &receiver.url("/"), "")).await;
    for number in 1..=3 {
        rig.notifier.tell(&failure(number)).await;
    }
    for failed in 1..=2 {
        rig.until_failed(failed).await;
        rig.pass(Duration::from_secs(900));
    }
    // The third failure makes doubtful whose fault it is.
    rig.until(|status| status.delivered_total == 2).await;
    rig.until(|status| status.state == TargetState::Retrying).await;
    rig.notifier.tell(&failure(4)).await;
    rig.until(|status| status.delivered_total == 3).await;
    assert_eq!(rig.record("ops").await.waiting, 1);
    receiver.answer.send_replace(Answer::Status(200, "", ""));
    rig.until(|status| status.state == TargetState::Retrying).await;
    rig.pass(Duration::from_secs(900));
    rig.until_idle().await;
    let got = receiver.requests();
    assert_eq!(got.last().unwrap().json()["subject"], "job:1");
}
