//! The signals that Headrest heeds.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT, which both mean: stop in order, and a second one: at once. SIGHUP means for
/// Headrest what it means for a postmaster.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Starts listening; from here on the signals no longer end the process by themselves.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one of either kind and answers what it is. Cancel safe.
    pub async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Heard::Stop("SIGINT"),
            _ = self.hangup.recv() => Heard::Reload,
        }
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// To stop; with the signal's name.
    Stop(&'static str),
    /// To have PostgreSQL read its configuration again.
    Reload,
}
