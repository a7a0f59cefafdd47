//! Where a recovery should end, parsed to types.
//!
//! Nothing of a request is passed through: a value that became one of these is written again from
//! the type, because a quote or newline in a target lands unescaped in a file of settings
//! (design/restore.md, "code execution").

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::stanza::shown;
use super::words::words;
use super::{Lsn, Timeline};

/// A recovery target (PostgreSQL manual, 20.5.6 "Recovery Target").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RecoveryTarget {
    /// Everything that was ever committed: the end of the archive and of what `pg_wal` still held.
    Latest,
    /// The end of the backup set itself: as early as possible.
    Immediate,
    /// The last commit at or before a moment.
    Time {
        /// The moment.
        value: Timestamp,
        /// Whether a commit at exactly that moment is left out.
        #[serde(default)]
        exclusive: bool,
    },
    /// A position in the WAL.
    Lsn {
        /// The position.
        value: Lsn,
        /// Whether the record at that position is left out.
        #[serde(default)]
        exclusive: bool,
    },
    /// The end of a transaction.
    Xid {
        /// The transaction.
        value: Xid,
        /// Whether that transaction is left out.
        #[serde(default)]
        exclusive: bool,
    },
    /// A named restore point.
    Name {
        /// The name.
        value: RestorePointName,
    },
}

words! {
    /// What happens when the target is reached.
    OnReached {
        /// PostgreSQL is promoted and given back to its clients.
        Promote = "promote",
        /// It stays paused and fenced until somebody has looked and decides.
        Pause = "pause",
    }
}

/// Which branch of the WAL is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TargetTimeline {
    /// The one that the server is on.
    Current,
    /// The newest in the archive.
    Latest,
    /// This one.
    Number(Timeline),
}

/// A transaction id with its epoch, 3 or more (smaller ones are PostgreSQL's own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Xid(u64);

/// The name of a restore point: `[A-Za-z0-9_.:-]{1,63}`, a subset of what PostgreSQL takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RestorePointName(String);

/// Text that is no part of a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// Not a transaction id.
    #[error("\"{0}\" is not a transaction id: a whole number from 3 up, in decimal digits")]
    Xid(String),
    /// Not a name of ours.
    #[error("\"{0}\" is not a restore point's name: 1 to 63 of A-Z, a-z, 0-9, _, ., : and -")]
    Name(String),
    /// Not a target in one word.
    #[error(
        "\"{0}\" is no target: latest, immediate, a time such as 2026-11-20T14:05:00Z, or time=, \
         lsn=, xid= or name= and a value"
    )]
    Target(String),
    /// Not a choice of timeline.
    #[error("\"{0}\" is not a timeline: current, latest or a whole number from 1 up")]
    Timeline(String),
}

impl RecoveryTarget {
    /// The `type` as it is written in requests.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Immediate => "immediate",
            Self::Time { .. } => "time",
            Self::Lsn { .. } => "lsn",
            Self::Xid { .. } => "xid",
            Self::Name { .. } => "name",
        }
    }

    /// The value as it is written in answers; `None` where there is none.
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Latest | Self::Immediate => None,
            Self::Time { value, .. } => Some(value.to_string()),
            Self::Lsn { value, .. } => Some(value.to_string()),
            Self::Xid { value, .. } => Some(value.to_string()),
            Self::Name { value } => Some(value.to_string()),
        }
    }

    /// Whether what is exactly at the target is left out.
    pub fn is_exclusive(&self) -> bool {
        match self {
            Self::Time { exclusive, .. }
            | Self::Lsn { exclusive, .. }
            | Self::Xid { exclusive, .. } => *exclusive,
            Self::Latest | Self::Immediate | Self::Name { .. } => false,
        }
    }

    /// PostgreSQL's settings for it: name and value. None for the end of the archive, where a
    /// standby simply runs out of WAL. `position` is where a named point ends, when that is known.
    pub fn settings(&self, position: Option<Lsn>) -> Vec<(&'static str, String)> {
        let mut exclusive = self.is_exclusive();
        let one = match (self, position) {
            (Self::Latest, _) => return Vec::new(),
            (Self::Immediate, _) => ("recovery_target", "immediate".to_owned()),
            (Self::Time { value, .. }, _) => {
                // Commits are told in microseconds. What is committed before a moment within one
                // of them is what is committed up to that one.
                exclusive &= value.subsec_nanosecond() % 1000 == 0;
                ("recovery_target_time", in_utc(*value))
            }
            (Self::Lsn { value, .. }, _) => ("recovery_target_lsn", value.to_string()),
            (Self::Xid { value, .. }, _) => ("recovery_target_xid", value.to_string()),
            // By its name recovery would stop at the first point of that name. The record of a point
            // ends at its position: recovery stops before the record after it.
            (Self::Name { .. }, Some(position)) => {
                exclusive = true;
                ("recovery_target_lsn", position.to_string())
            }
            (Self::Name { value }, None) => ("recovery_target_name", value.to_string()),
        };
        let inclusive = if exclusive { "off" } else { "on" };
        vec![
            // Never promote: a promotion by the server itself is not crash-safe (restore.md).
            ("recovery_target_action", "pause".to_owned()),
            ("recovery_target_inclusive", inclusive.to_owned()),
            one,
        ]
    }
}

impl FromStr for RecoveryTarget {
    type Err = InvalidTarget;

    /// As it is written in one word of a setting: `latest`, `immediate`, a time in RFC 3339, or
    /// `KIND=VALUE`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidTarget::Target(shown(text));
        let (kind, value) = match text.split_once('=') {
            Some((kind, value)) => (kind, value),
            None if matches!(text, "latest" | "immediate") => (text, ""),
            None => ("time", text),
        };
        let exclusive = false;
        match kind {
            "latest" if value.is_empty() => Ok(Self::Latest),
            "immediate" if value.is_empty() => Ok(Self::Immediate),
            "time" => {
                let value = value.parse().map_err(|_| invalid())?;
                Ok(Self::Time { value, exclusive })
            }
            "lsn" => Ok(Self::Lsn { value: value.parse().map_err(|_| invalid())?, exclusive }),
            "xid" => Ok(Self::Xid { value: value.parse()?, exclusive }),
            "name" => Ok(Self::Name { value: value.parse()? }),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for RecoveryTarget {
    /// For people: `time 2026-11-20T10:00:00Z (exclusive)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())?;
        if let Some(value) = self.value() {
            write!(f, " {value}")?;
        }
        if self.is_exclusive() { f.write_str(" (exclusive)") } else { Ok(()) }
    }
}

/// The form that both PostgreSQL and pgBackRest read without knowing a zone.
fn in_utc(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()
}

impl Xid {
    /// The id as a number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Xid {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // PostgreSQL would read a leading zero as octal.
        let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        text.parse()
            .ok()
            .filter(|number| plain && *number >= 3)
            .map(Self)
            .ok_or_else(|| InvalidTarget::Xid(shown(text)))
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Xid {
    type Error = InvalidTarget;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Xid> for String {
    fn from(xid: Xid) -> Self {
        xid.to_string()
    }
}

impl RestorePointName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RestorePointName {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
        if (1..=63).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidTarget::Name(shown(text)))
        }
    }
}

impl fmt::Display for RestorePointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RestorePointName {
    type Error = InvalidTarget;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RestorePointName> for String {
    fn from(name: RestorePointName) -> Self {
        name.0
    }
}

impl FromStr for TargetTimeline {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "current" => Ok(Self::Current),
            "latest" => Ok(Self::Latest),
            number => {
                number.parse().map(Self::Number).map_err(|_| InvalidTarget::Timeline(shown(text)))
            }
        }
    }
}

impl fmt::Display for TargetTimeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("current"),
            Self::Latest => f.write_str("latest"),
            Self::Number(timeline) => timeline.fmt(f),
        }
    }
}

impl TryFrom<String> for TargetTimeline {
    type Error = InvalidTarget;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TargetTimeline> for String {
    fn from(choice: TargetTimeline) -> Self {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn targets_in_one_word() {
        let time = "2026-11-20T14:05:00Z";
        for (text, expect) in [
            ("latest", "latest"),
            ("immediate", "immediate"),
            (time, "time 2026-11-20T14:05:00Z"),
            ("2026-11-20T15:05:00+01:00", "time 2026-11-20T14:05:00Z"),
            ("time=2026-11-20T14:05:00Z", "time 2026-11-20T14:05:00Z"),
            ("lsn=0/3000060", "lsn 0/3000060"),
            ("xid=775", "xid 775"),
            ("name=before-release", "name before-release"),
        ] {
            assert_eq!(text.parse::<RecoveryTarget>().unwrap().to_string(), expect);
        }
        for text in ["", "newest", "latest=1", "time=", "yesterday", "lsn=x", "xid=1", "name=a b"] {
            assert!(text.parse::<RecoveryTarget>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn settings_are_written_from_types() {
        let at: Timestamp = "2026-11-20T10:00:00.123456+02:00".parse().unwrap();
        let time = RecoveryTarget::Time { value: at, exclusive: true };
        let expect = [
            ("recovery_target_action", "pause".to_owned()),
            ("recovery_target_inclusive", "off".to_owned()),
            ("recovery_target_time", "2026-11-20 08:00:00.123456+00".to_owned()),
        ];
        assert_eq!(time.settings(None), expect);
        assert_eq!(time.to_string(), "time 2026-11-20T08:00:00.123456Z (exclusive)");
        assert!(RecoveryTarget::Latest.settings(None).is_empty());
        let name = RecoveryTarget::Name { value: "before-release".parse().unwrap() };
        assert_eq!(name.settings(None)[2], ("recovery_target_name", "before-release".to_owned()));
        let expect = [
            ("recovery_target_action", "pause".to_owned()),
            ("recovery_target_inclusive", "off".to_owned()),
            ("recovery_target_lsn", "0/3000060".to_owned()),
        ];
        assert_eq!(name.settings(Some(Lsn::new(0x300_0060))), expect);
        let early: Timestamp = "0099-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(in_utc(early), "0099-01-01 00:00:00.000000+00");
    }

    #[test]
    fn a_moment_within_a_microsecond_keeps_what_was_committed_before_it() {
        for (nanoseconds, exclusive, inclusive) in [
            (123_456_000, true, "off"),
            (123_456_000, false, "on"),
            (123_456_500, true, "on"),
            (123_456_500, false, "on"),
            (123_456_001, true, "on"),
            (123_456_999, true, "on"),
        ] {
            let value = Timestamp::new(1_795_000_000, nanoseconds).unwrap();
            let settings = RecoveryTarget::Time { value, exclusive }.settings(None);
            assert_eq!(settings[1].1, inclusive, "{nanoseconds} {exclusive}");
            assert!(settings[2].1.ends_with(".123456+00"), "{settings:?}");
        }
    }

    #[test]
    fn grammar() {
        for (text, ok) in [
            ("3", true),
            ("2", false),
            ("0", false),
            ("010", false),
            ("0x10", false),
            ("-5", false),
        ] {
            assert_eq!(text.parse::<Xid>().is_ok(), ok, "{text}");
        }
        assert!("18446744073709551615".parse::<Xid>().is_ok());
        assert!("18446744073709551616".parse::<Xid>().is_err());
        let long = "x".repeat(64);
        for (text, ok) in [
            ("before-release_1.2:3", true),
            ("", false),
            ("a b", false),
            ("x'\nrecovery_end_command='touch /tmp/x", false),
            ("é", false),
            (long.as_str(), false),
        ] {
            assert_eq!(text.parse::<RestorePointName>().is_ok(), ok, "{text:?}");
        }
        for (text, ok) in [("current", true), ("latest", true), ("7", true), ("0x7", false)] {
            assert_eq!(text.parse::<TargetTimeline>().is_ok(), ok, "{text}");
        }
    }

    #[test]
    fn what_earlier_versions_stored_is_read() {
        let latest: RecoveryTarget = serde_json::from_str(r#"{"type":"latest"}"#).unwrap();
        assert_eq!(latest, RecoveryTarget::Latest);
    }

    proptest! {
        /// No text becomes a setting with a quote, a backslash or a line's end in it.
        #[test]
        fn nothing_escapes(text in "\\PC{0,40}|[a-z'\\n\\\\\"]{0,20}") {
            let targets = [
                text.parse().ok().map(|value| RecoveryTarget::Name { value }),
                text.parse().ok().map(|value| RecoveryTarget::Xid { value, exclusive: false }),
                text.parse().ok().map(|value| RecoveryTarget::Lsn { value, exclusive: false }),
                text.parse().ok().map(|value| RecoveryTarget::Time { value, exclusive: false }),
            ];
            for target in targets.into_iter().flatten() {
                for (_, value) in target.settings(None) {
                    prop_assert!(!value.contains(['\'', '"', '\\', '\n', '\r', '=', '$']));
                }
                let json = serde_json::to_string(&target).unwrap();
                prop_assert_eq!(serde_json::from_str::<RecoveryTarget>(&json).unwrap(), target);
            }
        }
    }
}
