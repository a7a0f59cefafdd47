//! Whether the service's own loops still turn: what `/livez` answers from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A loop silent for longer than this is stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);

/// All loops that must turn.
#[derive(Debug, Clone)]
pub struct Pulses {
    began: Instant,
    loops: Vec<(&'static str, Arc<AtomicU64>)>,
}

/// What one loop holds to show that it turns.
#[derive(Debug, Clone)]
pub struct Pulse {
    began: Instant,
    beat_ms: Arc<AtomicU64>,
}

impl Pulses {
    /// No loops yet.
    pub fn new() -> Self {
        Self { began: Instant::now(), loops: Vec::new() }
    }

    /// A new loop that counts as alive from now on.
    pub fn add(&mut self, name: &'static str) -> Pulse {
        let beat_ms = Arc::new(AtomicU64::new(millis(self.began)));
        self.loops.push((name, Arc::clone(&beat_ms)));
        Pulse { began: self.began, beat_ms }
    }

    /// The first loop that is stuck.
    pub fn stuck(&self) -> Option<&'static str> {
        let limit = u64::try_from(STUCK_AFTER.as_millis()).unwrap_or(u64::MAX);
        let now = millis(self.began);
        let stuck = self
            .loops
            .iter()
            .find(|(_, beat)| now.saturating_sub(beat.load(Ordering::Relaxed)) > limit);
        stuck.map(|(name, _)| *name)
    }
}

impl Default for Pulses {
    fn default() -> Self {
        Self::new()
    }
}

impl Pulse {
    /// The loop turned.
    pub fn beat(&self) {
        self.beat_ms.store(millis(self.began), Ordering::Relaxed);
    }
}

fn millis(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_loop_is_named() {
        let mut pulses = Pulses::new();
        let (first, _second) = (pulses.add("first"), pulses.add("second"));
        assert_eq!(pulses.stuck(), None);
        tokio::time::advance(STUCK_AFTER + Duration::from_secs(1)).await;
        first.beat();
        assert_eq!(pulses.stuck(), Some("second"));
    }
}
