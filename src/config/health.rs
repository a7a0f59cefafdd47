//! `[health]`: how often is looked, and from where on a check warns or fails.

use std::time::Duration;

use super::reader::Reader;
use super::sections::{duration, span};
use crate::domain::health::Thresholds;

/// How health is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// How often the repositories are looked at.
    pub interval: Duration,
    /// From where on a check warns or fails.
    pub thresholds: Thresholds,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self { interval: Duration::from_mins(1), thresholds: Thresholds::default() }
    }
}

pub(super) fn health(reader: &mut Reader<'_>) -> HealthConfig {
    let interval = duration(reader, "health.interval", "60s");
    if interval < Duration::from_secs(1) {
        reader.error("health.interval", "is shorter than a second");
    }
    let thresholds = Thresholds {
        last_backup: (
            span(reader, "health.last_backup_warn", "26h"),
            span(reader, "health.last_backup_fail", "50h"),
        ),
        last_full: (
            span(reader, "health.last_full_warn", "8d"),
            span(reader, "health.last_full_fail", "15d"),
        ),
        archiver_fail: span(reader, "health.archiver_fail", "10m"),
        wal_ready: (
            reader.get::<u16>("health.wal_ready_warn", 16).into(),
            reader.get::<u16>("health.wal_ready_fail", 128).into(),
        ),
        wal_age: (
            reader.get::<u16>("health.wal_age_warn", 3).into(),
            reader.get::<u16>("health.wal_age_fail", 10).into(),
        ),
        disk_free: (
            percent(reader, "health.disk_free_warn", 15),
            percent(reader, "health.disk_free_fail", 5),
        ),
    };
    HealthConfig { interval, thresholds }
}

fn percent(reader: &mut Reader<'_>, key: &str, default: u16) -> u8 {
    let given = reader.get::<u16>(key, default);
    u8::try_from(given).ok().filter(|percent| *percent <= 100).unwrap_or_else(|| {
        reader.error(key, &format!("{given} is not from 0 to 100"));
        0
    })
}
