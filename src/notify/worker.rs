//! Delivers what waits for one target, in order, until it is delivered or given up. What alone does
//! not arrive is put aside, so that it holds up nothing but its own subject.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::message::Outgoing;
use super::{Notifier, Target, TargetState, TargetStatus, delivery_id};
use crate::domain::delivery::{self, Failure, Next};
use crate::store::{FailedAttempt, Found, Notice, StoreError, Which};
use crate::telemetry;

/// How soon the store is asked again when it could not answer.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What one look at the outbox led to.
enum Looked {
    /// Something was delivered, or given up: there may be more.
    Done,
    /// Something was tried in vain: there may be more.
    InVain,
    /// Nothing waits.
    Empty,
    /// The next one is not due yet.
    NotYet(Timestamp),
}

/// What came of an attempt.
enum Tried {
    /// It arrived.
    Delivered,
    /// It did not and will be tried again. `asked`: the receiver said when.
    Failed { asked: bool },
    /// It did not and never will.
    GivenUp,
}

/// Works for the target at `index` until `last_round`, after which it goes on only as long as
/// everything arrives.
pub(super) async fn run(notifier: Notifier, index: usize, last_round: CancellationToken) {
    let Some(target) = notifier.0.targets.get(index) else { return };
    let mut stored = notifier.0.stored.subscribe();
    loop {
        let last = last_round.is_cancelled();
        // Before the outbox is read: what is stored later wakes again.
        stored.borrow_and_update();
        let looked = look(&notifier, target).await;
        if matches!(looked, Ok(Looked::Done)) {
            continue;
        }
        if last {
            return;
        }
        if matches!(looked, Ok(Looked::InVain)) {
            continue;
        }
        let wait = async {
            match looked {
                Ok(Looked::Done | Looked::InVain) => {}
                Ok(Looked::Empty) => {
                    set(target, TargetState::Idle, None);
                    // The sender lives in the notifier that we hold.
                    let _ = stored.changed().await;
                }
                Ok(Looked::NotYet(due)) => {
                    set(target, TargetState::Retrying, Some(due));
                    // What is new does not wait for what was put aside.
                    tokio::select! {
                        () = notifier.0.pace.wait_until(due, delivery::LONGEST_WAIT) => {}
                        _ = stored.changed() => {}
                    }
                }
                Err(error) => {
                    let name = &target.config.name;
                    let error = telemetry::chain(&error);
                    tracing::error!(notify.target = %name, "nothing is delivered to {name}: {error}");
                    sleep(TRY_AGAIN).await;
                }
            }
        };
        let _ = last_round.run_until_cancelled(wait).await;
    }
}

async fn look(notifier: &Notifier, target: &Target) -> Result<Looked, StoreError> {
    let next = find(notifier, target, Which::Next).await?;
    let aside = find(notifier, target, Which::Aside).await?;
    // What was put aside has a back-off of its own, and goes first when it is due first.
    let earlier = |one: &Notice, other: &Notice| one.due_at <= other.due_at;
    let (notice, in_order) = match (next, aside) {
        (None, None) => return Ok(Looked::Empty),
        (Some(next), None) => (next, true),
        (None, Some(aside)) => (aside, false),
        (Some(next), Some(aside)) if earlier(&next, &aside) => (next, true),
        (Some(_), Some(aside)) => (aside, false),
    };
    let at = notifier.0.pace.now();
    // One that is due later than anything we would wait for was stored by a clock that was wrong.
    let wait = Duration::try_from(notice.due_at.duration_since(at)).unwrap_or_default();
    if !wait.is_zero() && wait <= delivery::LONGEST_WAIT {
        return Ok(Looked::NotYet(notice.due_at));
    }
    set(target, TargetState::Delivering, None);
    match attempt(notifier, target, &notice).await? {
        Tried::Delivered | Tried::GivenUp => return Ok(Looked::Done),
        Tried::Failed { asked } => {
            if asked || !in_order || notice.attempts + 1 < delivery::DOUBTFUL_AFTER {
                return Ok(Looked::InVain);
            }
        }
    }
    // Is it the receiver, or this one?
    let Some(behind) = find(notifier, target, Which::Behind(notice.id)).await? else {
        return Ok(Looked::InVain);
    };
    match attempt(notifier, target, &behind).await? {
        Tried::Delivered => {
            let name = &target.config.name;
            tracing::warn!(
                notify.target = %name,
                notify.delivery = %notice.delivery,
                "{} of {} does not reach {name}, but others do: they wait for it no longer",
                notice.event.kind, notice.event.at
            );
            notifier.0.store.put_aside(notice.id).await?;
            Ok(Looked::Done)
        }
        Tried::GivenUp => Ok(Looked::Done),
        Tried::Failed { .. } => Ok(Looked::InVain),
    }
}

/// A notification that waits. What cannot be read is given up.
async fn find(
    notifier: &Notifier,
    target: &Target,
    which: Which,
) -> Result<Option<Notice>, StoreError> {
    let (store, name) = (&notifier.0.store, &target.config.name);
    while let Some(Found { id, notice }) = store.waiting(name.clone(), which).await? {
        let error = match notice {
            Ok(notice) => return Ok(Some(notice)),
            Err(error @ StoreError::Unreadable { .. }) => telemetry::chain(&error),
            Err(error) => return Err(error),
        };
        tracing::error!(notify.target = %name, "notification {id} is never delivered to {name}: {error}");
        let (target_name, at) = (name.clone(), notifier.0.pace.now());
        let attempt =
            FailedAttempt { id, target: target_name, at, error, refused: false, due_at: None };
        store.notice_failed(attempt).await?;
        target.status.send_modify(|status| status.given_up_total += 1);
    }
    Ok(None)
}

/// Tries to deliver a notification, and writes down what came of it.
async fn attempt(
    notifier: &Notifier,
    target: &Target,
    notice: &Notice,
) -> Result<Tried, StoreError> {
    let (store, name) = (&notifier.0.store, &target.config.name);
    let Notice { delivery, event, repeats, .. } = notice;
    let at = notifier.0.pace.now();
    let outgoing = Outgoing { delivery, event, repeats: *repeats, at };
    let attempt = notifier.0.sender.send(&target.config, &outgoing).await;
    let at = notifier.0.pace.now();
    if attempt.delivered {
        store.notice_delivered(notice, name.clone(), delivery_id(at), at).await?;
        target.status.send_modify(|status| status.delivered_total += 1);
        if notice.attempts > 0 {
            tracing::info!(notify.target = %name, "notifications reach {name} again");
        }
        return Ok(Tried::Delivered);
    }
    let error = attempt.error.unwrap_or_default();
    let since = |then: Timestamp| Duration::try_from(at.duration_since(then)).unwrap_or_default();
    let failure = Failure {
        attempts: notice.attempts + 1,
        refusals: if attempt.refused { notice.refusals + 1 } else { 0 },
        refused_for: notice.refused_since.map(since).unwrap_or_default(),
        age: since(notice.created_at),
        retry_after: attempt.retry_after,
    };
    let next = delivery::after(failure, target.config.give_up_after, rand::random());
    let due_at = match next {
        Next::TryAgainAfter(delay) => Some(later(at, delay)),
        Next::TooOld | Next::Refused => None,
    };
    let asked = attempt.retry_after.is_some();
    let attempt = FailedAttempt {
        id: notice.id,
        target: name.clone(),
        at,
        error: error.clone(),
        refused: attempt.refused,
        due_at,
    };
    store.notice_failed(attempt).await?;
    target.status.send_modify(|status| status.failed_total += 1);
    if due_at.is_some() {
        if notice.attempts == 0 {
            tracing::warn!(
                notify.target = %name,
                "{} is not delivered to {name} and will be tried again: {error}", event.kind
            );
        }
        return Ok(Tried::Failed { asked });
    }
    target.status.send_modify(|status| status.given_up_total += 1);
    tracing::error!(
        notify.target = %name,
        notify.delivery = %delivery,
        "{} of {} is never delivered to {name}, after {} attempts: {error}",
        event.kind, event.at, failure.attempts
    );
    Ok(Tried::GivenUp)
}

/// To the microsecond, as it is stored.
fn later(at: Timestamp, delay: Duration) -> Timestamp {
    let due = at.saturating_add(delay).unwrap_or(at);
    Timestamp::from_microsecond(due.as_microsecond()).unwrap_or(due)
}

fn set(target: &Target, state: TargetState, next_attempt_at: Option<Timestamp>) {
    target.status.send_if_modified(|status| {
        let next = TargetStatus { state, next_attempt_at, ..status.clone() };
        let modified = *status != next;
        *status = next;
        modified
    });
}
