//! The states of the supervised server. Pure.
//!
//! ```text
//!            start            reads            writes
//!   down -----------> starting ----> recovering ----> ready
//!    ^  ^                |  \____________|______________^
//!    |  | gave up        |               |              |
//!    |  |                v exited        v exited       v exited (nobody asked)
//!    |  `---- failed <-- backing-off <-------------------'
//!    |                       | start (the delay is over)
//!    |                       `-----------> starting
//!    `---- stopping <------- stop asked, from any state with a process
//! ```

use crate::domain::words::words;

words! {
    /// Where the server stands.
    ServerState {
        /// Not running, and nobody wants it to.
        Down = "down",
        /// A process is there; it does not answer queries yet.
        Starting = "starting",
        /// It answers, but replays WAL: no writes.
        Recovering = "recovering",
        /// It takes writes.
        Ready = "ready",
        /// It was asked to stop.
        Stopping = "stopping",
        /// It left unexpectedly and will be started again after a delay.
        BackingOff = "backing-off",
        /// It left too often, or cannot be started; somebody must look.
        Failed = "failed",
    }
}

/// What happens to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEvent {
    /// A process was started or adopted.
    Spawned,
    /// It answers queries and is in recovery.
    AnswersInRecovery,
    /// It answers queries and takes writes.
    TakesWrites,
    /// It does not answer any more, but lives.
    WentSilent,
    /// A stop was asked for.
    StopAsked,
    /// The process is gone, as asked.
    StoppedAsAsked,
    /// The process is gone and nobody asked for it; it will be started again.
    Lost,
    /// It cannot be started, or was lost too often.
    GaveUp,
    /// Something is in the way of a start that will go away; it is tried again.
    Delayed,
    /// Somebody asked that it stay down while it was not running.
    StayDown,
}

/// An event that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a server that is {state} cannot take {event:?}")]
pub struct RefusedEvent {
    /// The state.
    pub state: ServerState,
    /// The event.
    pub event: ServerEvent,
}

impl ServerState {
    /// The state after `event`, or a refusal.
    pub fn transition(self, event: ServerEvent) -> Result<Self, RefusedEvent> {
        use ServerEvent as E;
        let next = match (self, event) {
            (Self::Down | Self::BackingOff | Self::Failed, E::Spawned) => Some(Self::Starting),
            (Self::Starting | Self::Ready | Self::Recovering, E::AnswersInRecovery) => {
                Some(Self::Recovering)
            }
            (Self::Starting | Self::Recovering | Self::Ready, E::TakesWrites) => Some(Self::Ready),
            (Self::Starting | Self::Recovering | Self::Ready, E::WentSilent) => {
                Some(Self::Starting)
            }
            (Self::Starting | Self::Recovering | Self::Ready | Self::Stopping, E::StopAsked) => {
                Some(Self::Stopping)
            }
            (Self::Stopping, E::StoppedAsAsked) => Some(Self::Down),
            (Self::Starting | Self::Recovering | Self::Ready, E::Lost) => Some(Self::BackingOff),
            (
                Self::Down
                | Self::Starting
                | Self::Recovering
                | Self::Ready
                | Self::BackingOff
                | Self::Failed,
                E::GaveUp,
            ) => Some(Self::Failed),
            (Self::Down | Self::BackingOff | Self::Failed, E::Delayed) => Some(Self::BackingOff),
            (Self::Down | Self::BackingOff | Self::Failed, E::StayDown) => Some(Self::Down),
            _ => None,
        };
        next.ok_or(RefusedEvent { state: self, event })
    }

    /// Whether there is a process.
    pub fn has_process(self) -> bool {
        matches!(self, Self::Starting | Self::Recovering | Self::Ready | Self::Stopping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EVENTS: [ServerEvent; 10] = [
        ServerEvent::Spawned,
        ServerEvent::AnswersInRecovery,
        ServerEvent::TakesWrites,
        ServerEvent::WentSilent,
        ServerEvent::StopAsked,
        ServerEvent::StoppedAsAsked,
        ServerEvent::Lost,
        ServerEvent::GaveUp,
        ServerEvent::StayDown,
        ServerEvent::Delayed,
    ];

    proptest! {
        /// A process is there exactly between its start and its end, and a server that was asked
        /// to stop never serves again without a new start.
        #[test]
        fn processes_are_accounted_for(
            events in proptest::collection::vec(proptest::sample::select(EVENTS.to_vec()), 0..50)
        ) {
            let mut state = ServerState::Down;
            for event in events {
                let Ok(next) = state.transition(event) else { continue };
                match event {
                    ServerEvent::Spawned => prop_assert!(!state.has_process() && next.has_process()),
                    ServerEvent::StoppedAsAsked | ServerEvent::Lost => {
                        prop_assert!(state.has_process() && !next.has_process());
                    }
                    _ => {}
                }
                if state == ServerState::Stopping {
                    prop_assert!(matches!(next, ServerState::Stopping | ServerState::Down));
                }
                state = next;
            }
        }
    }
}
