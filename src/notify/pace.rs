//! Where the time of deliveries comes from: the clock, or whoever gives it (tests of long waits).

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::clock;

/// Where the time comes from.
#[derive(Debug, Clone)]
pub enum Pace {
    /// From the clock.
    Real,
    /// From somebody who moves it. Only waits between attempts follow it; a request's own limits
    /// are always real.
    Given(watch::Receiver<Timestamp>),
}

impl Pace {
    /// The time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::Real => clock::now(),
            Self::Given(time) => *time.borrow(),
        }
    }

    /// Waits until then, but never longer than `most`: a clock that was set back must not make
    /// anybody wait for days.
    pub async fn wait_until(&self, due: Timestamp, most: Duration) {
        match self {
            Self::Real => {
                let wait = Duration::try_from(due.duration_since(self.now())).unwrap_or_default();
                sleep(wait.min(most)).await;
            }
            Self::Given(time) => {
                // When nobody moves it any more, it stands still.
                if time.clone().wait_for(|now| *now >= due).await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}
