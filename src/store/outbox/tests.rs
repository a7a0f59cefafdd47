//! Order, counting, and what stands in nobody's way.

use super::*;
use crate::domain::event::{EventKind, Severity};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn notice(number: i64, kind: EventKind, subject: &str) -> NewNotice {
    let event = Event::new(kind, at(number), subject.to_owned(), "something");
    NewNotice { delivery: number.to_string(), target: "ops".into(), at: at(number), event }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("t.db")).unwrap();
    (directory, store)
}

async fn find(store: &Store, which: Which) -> Option<Notice> {
    let found = store.waiting("ops".into(), which).await.unwrap();
    found.map(|found| found.notice.unwrap())
}

async fn head(store: &Store) -> Option<Notice> {
    find(store, Which::Next).await
}

async fn deliver(store: &Store, notice: &Notice) {
    let again = format!("{} again", notice.delivery);
    store.notice_delivered(notice, "ops".into(), again, at(99)).await.unwrap();
}

async fn drain(store: &Store) -> Vec<(String, u32)> {
    let mut told = Vec::new();
    while let Some(next) = head(store).await {
        told.push((next.event.kind.to_string(), next.repeats));
        deliver(store, &next).await;
    }
    told
}

#[tokio::test]
async fn the_same_again_is_counted_unless_something_else_was_between() {
    use EventKind::{WalFailing, WalRecovered};
    let (_directory, store) = store();
    let mut other_stanza = notice(6, WalFailing, "wal");
    other_stanza.event.stanza = Some("b".parse().unwrap());
    let mut worse = notice(7, WalFailing, "wal");
    worse.event.severity = Severity::Info;
    let notices = vec![
        notice(1, WalFailing, "wal"),
        notice(2, WalFailing, "wal"),
        notice(3, WalFailing, "another"),
        notice(4, WalRecovered, "wal"),
        notice(5, WalFailing, "wal"),
        other_stanza,
        worse,
    ];
    store.add_notices(notices).await.unwrap();
    let told = drain(&store).await;
    let told: Vec<_> = told.iter().map(|(kind, repeats)| (kind.as_str(), *repeats)).collect();
    let expect = [
        ("wal.failing", 1),
        ("wal.failing", 0),
        ("wal.recovered", 0),
        ("wal.failing", 0),
        ("wal.failing", 0),
        ("wal.failing", 0),
    ];
    assert_eq!(told, expect);
    store.add_notices(vec![notice(8, WalFailing, "wal")]).await.unwrap();
    assert_eq!(drain(&store).await.len(), 1, "delivered ones do not count");
}

#[tokio::test]
async fn the_oldest_goes_when_there_are_too_many() {
    let (_directory, store) = store();
    let more = i64::from(MOST_WAITING) + 2;
    let notices: Vec<_> = (0..more)
        .map(|number| notice(number, EventKind::BackupFailed, &number.to_string()))
        .collect();
    store.add_notices(notices).await.unwrap();
    let first = head(&store).await.unwrap();
    assert_eq!(first.delivery, "2");
    let records = store.target_records().await.unwrap();
    assert_eq!(records["ops"].waiting, MOST_WAITING);
}

#[tokio::test]
async fn attempts_are_counted_and_a_given_up_one_stands_in_nobodys_way() {
    let (_directory, store) = store();
    let both = [1, 2].map(|n| notice(n, EventKind::BackupFailed, &n.to_string()));
    store.add_notices(both.to_vec()).await.unwrap();
    let mut failed = FailedAttempt {
        id: head(&store).await.unwrap().id,
        target: "ops".into(),
        at: at(3),
        error: "answered 500".into(),
        refused: false,
        due_at: Some(at(8)),
    };
    store.notice_failed(failed.clone()).await.unwrap();
    let next = head(&store).await.unwrap();
    assert_eq!((next.delivery.as_str(), next.attempts, next.refusals), ("1", 1, 0));
    assert_eq!((next.due_at, next.created_at), (at(8), at(1)));
    (failed.refused, failed.due_at) = (true, None);
    store.notice_failed(failed).await.unwrap();
    let next = head(&store).await.unwrap();
    assert_eq!(next.delivery, "2");
    let record = store.target_records().await.unwrap().remove("ops").unwrap();
    assert_eq!((record.waiting, record.given_up), (1, 1));
    assert_eq!((record.oldest_at, record.given_up_at), (Some(at(2)), Some(at(3))));
    assert_eq!(record.error.as_deref(), Some("answered 500"));
}

#[tokio::test]
async fn targets_that_are_not_configured_any_more_are_forgotten() {
    let (_directory, store) = store();
    store.add_notices(vec![notice(1, EventKind::WalGap, "wal")]).await.unwrap();
    assert_eq!(store.keep_targets(vec!["ops".into()]).await.unwrap(), 0);
    assert_eq!(store.keep_targets(vec!["other".into()]).await.unwrap(), 1);
    assert!(head(&store).await.is_none());
}

#[tokio::test]
async fn what_was_put_aside_holds_up_its_own_subject_only() {
    let (_directory, store) = store();
    let mut notices: Vec<_> = [(1, "a"), (2, "b"), (4, "c")]
        .map(|(number, subject)| notice(number, EventKind::WalFailing, subject))
        .into();
    notices.insert(2, notice(3, EventKind::WalRecovered, "a"));
    store.add_notices(notices).await.unwrap();
    let head_of_all = head(&store).await.unwrap();
    let behind = find(&store, Which::Behind(head_of_all.id)).await.unwrap();
    assert_eq!((head_of_all.delivery.as_str(), behind.delivery.as_str()), ("1", "2"));
    // Tried once: another one is asked next, but never a second of one subject.
    let attempt = FailedAttempt {
        id: behind.id,
        target: "ops".into(),
        at: at(5),
        error: "no".into(),
        refused: true,
        due_at: Some(at(9)),
    };
    store.notice_failed(attempt).await.unwrap();
    let other = find(&store, Which::Behind(head_of_all.id)).await.unwrap();
    assert_eq!(other.delivery, "4");
    assert_eq!(find(&store, Which::Aside).await, None);
    store.put_aside(head_of_all.id).await.unwrap();
    let mut told = Vec::new();
    while let Some(notice) = head(&store).await {
        deliver(&store, &notice).await;
        told.push(notice.delivery);
    }
    assert_eq!(told, ["2", "4"]);
    let aside = find(&store, Which::Aside).await.unwrap();
    assert_eq!(aside.delivery, "1");
    deliver(&store, &aside).await;
    assert_eq!(head(&store).await.unwrap().delivery, "3");
}

#[tokio::test]
async fn what_happens_again_during_a_delivery_is_told_as_another() {
    let (_directory, store) = store();
    let again = |number| vec![notice(number, EventKind::WalFailing, "wal")];
    store.add_notices(again(1)).await.unwrap();
    let sent = head(&store).await.unwrap();
    store.add_notices(again(2)).await.unwrap();
    store.add_notices(again(3)).await.unwrap();
    deliver(&store, &sent).await;
    let rest = head(&store).await.unwrap();
    assert_eq!((rest.delivery.as_str(), rest.repeats), ("1 again", 1));
    deliver(&store, &rest).await;
    assert_eq!(head(&store).await, None);
}

#[tokio::test]
async fn refusals_count_in_a_row_from_the_first() {
    let (_directory, store) = store();
    store.add_notices(vec![notice(1, EventKind::WalGap, "wal")]).await.unwrap();
    let id = head(&store).await.unwrap().id;
    let table = [(3, true, 1, Some(3)), (4, true, 2, Some(3)), (5, false, 0, None)];
    for (second, refused, count, since) in table {
        let attempt = FailedAttempt {
            id,
            target: "ops".into(),
            at: at(second),
            error: "no".into(),
            refused,
            due_at: Some(at(9)),
        };
        store.notice_failed(attempt).await.unwrap();
        let next = head(&store).await.unwrap();
        assert_eq!((next.refusals, next.refused_since), (count, since.map(at)));
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_found_with_its_place() {
    let (_directory, store) = store();
    store.add_notices(vec![notice(1, EventKind::WalGap, "wal")]).await.unwrap();
    store
        .write(|connection| {
            connection
                .execute("UPDATE outbox SET event = '{}'", [])
                .map(drop)
                .map_err(during("spoil a row"))
        })
        .await
        .unwrap();
    let found = store.waiting("ops".into(), Which::Next).await.unwrap().unwrap();
    assert!(found.id == 1 && matches!(found.notice, Err(StoreError::Unreadable { .. })));
}
