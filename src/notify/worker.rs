//! Delivers what waits for one target, in order, until it is delivered or given up.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::message::Outgoing;
use super::{Notifier, Target, TargetState, TargetStatus};
use crate::domain::delivery::{self, Failure, Next};
use crate::store::{FailedAttempt, Notice, StoreError};
use crate::telemetry;

/// How soon the store is asked again when it could not answer.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// What one look at the outbox led to.
enum Looked {
    /// Something was delivered, or given up: there may be more.
    Done,
    /// Nothing waits.
    Empty,
    /// The next one is not due yet, or was tried in vain.
    NotYet(Timestamp),
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
        let wait = async {
            match looked {
                Ok(Looked::Done) => {}
                Ok(Looked::Empty) => {
                    set(target, TargetState::Idle, None);
                    // The sender lives in the notifier that we hold.
                    let _ = stored.changed().await;
                }
                Ok(Looked::NotYet(due)) => {
                    set(target, TargetState::Retrying, Some(due));
                    notifier.0.pace.wait_until(due, delivery::LONGEST_WAIT).await;
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
    let (store, name) = (&notifier.0.store, &target.config.name);
    let Some(notice) = store.next_notice(name.clone()).await? else { return Ok(Looked::Empty) };
    let at = notifier.0.pace.now();
    // One that is due later than anything we would wait for was stored by a clock that was wrong.
    let wait = Duration::try_from(notice.due_at.duration_since(at)).unwrap_or_default();
    if !wait.is_zero() && wait <= delivery::LONGEST_WAIT {
        return Ok(Looked::NotYet(notice.due_at));
    }
    set(target, TargetState::Delivering, None);
    let Notice { delivery, event, repeats, .. } = &notice;
    let outgoing = Outgoing { delivery, event, repeats: *repeats, at };
    let attempt = notifier.0.sender.send(&target.config, &outgoing).await;
    let at = notifier.0.pace.now();
    if attempt.delivered {
        store.notice_delivered(notice.id, name.clone(), at).await?;
        target.status.send_modify(|status| status.delivered_total += 1);
        if notice.attempts > 0 {
            tracing::info!(notify.target = %name, "notifications reach {name} again");
        }
        return Ok(Looked::Done);
    }
    let error = attempt.error.unwrap_or_default();
    let failure = Failure {
        attempts: notice.attempts + 1,
        refusals: notice.refusals + u32::from(attempt.refused),
        age: Duration::try_from(at.duration_since(notice.created_at)).unwrap_or_default(),
        retry_after: attempt.retry_after,
    };
    let next = delivery::after(failure, target.config.give_up_after, rand::random());
    let due_at = match next {
        Next::TryAgainAfter(delay) => Some(later(at, delay)),
        Next::TooOld | Next::Refused => None,
    };
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
    if let Some(due) = due_at {
        if notice.attempts == 0 {
            tracing::warn!(
                notify.target = %name,
                "{} is not delivered to {name} and will be tried again: {error}", event.kind
            );
        }
        return Ok(Looked::NotYet(due));
    }
    target.status.send_modify(|status| status.given_up_total += 1);
    tracing::error!(
        notify.target = %name,
        notify.delivery = %delivery,
        "{} of {} is never delivered to {name}, after {} attempts: {error}",
        event.kind, event.at, failure.attempts
    );
    Ok(Looked::Done)
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
