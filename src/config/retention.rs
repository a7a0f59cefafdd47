//! `[retention]`: which backups stay, on top of pgBackRest's own counts.

use jiff::SignedDuration;
use jiff::tz::TimeZone;

use super::reader::Reader;
use super::sections::span;
use crate::domain::retention::{MOST, Policy};

/// What is configured of retention.
#[derive(Debug, Clone, PartialEq)]
pub struct RetentionConfig {
    /// Whether backups may be pinned.
    pub pins: bool,
    /// How many days, weeks, months and years keep a backup.
    pub policy: Policy,
    /// Where days begin.
    pub timezone: TimeZone,
    /// How long everything stays that existed when a restore began; zero: not at all.
    pub after_restore: SignedDuration,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            pins: true,
            policy: Policy::default(),
            timezone: TimeZone::UTC,
            after_restore: SignedDuration::from_hours(14 * 24),
        }
    }
}

pub(super) fn retention(reader: &mut Reader<'_>) -> RetentionConfig {
    let pins = reader.get("retention.pins", true);
    let mut count = |name: &str| {
        let key = format!("retention.{name}");
        let given = reader.get_if_any::<u16>(&key).map(u32::from);
        if given.is_some_and(|count| count > MOST) {
            reader.error(&key, &format!("is not from 0 to {MOST}"));
        }
        given
    };
    let policy = Policy {
        daily: count("daily"),
        weekly: count("weekly"),
        monthly: count("monthly"),
        yearly: count("yearly"),
    };
    let name = reader.get("retention.timezone", "UTC".to_owned());
    let timezone = TimeZone::get(&name).unwrap_or_else(|_| {
        let what = format!("{name:?} is not a time zone such as \"Europe/Berlin\" or \"UTC\"");
        reader.error("retention.timezone", &what);
        TimeZone::UTC
    });
    let after_restore = span(reader, "retention.after_restore", "14d");
    RetentionConfig { pins, policy, timezone, after_restore }
}
