//! Backups by name: the type (full, diff, incr) and the label that pgBackRest gives each backup.
//!
//! Grammar only. Whether a label exists is for `info` to say; this module must do no IO and must
//! not read a clock.

use std::{fmt, str::FromStr};

use jiff::civil::{Date, Time};
use serde::{Deserialize, Serialize};

use super::stanza::shown;

/// What a backup copies: everything, the changes since the last full, or since the last backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupType {
    /// Complete in itself.
    Full,
    /// Needs its full.
    Diff,
    /// Needs its full and every backup in its reference list.
    Incr,
}

/// A word that is not `full`, `diff` or `incr`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{shown}\" is not a backup type: full, diff or incr")]
pub struct InvalidBackupType {
    shown: String,
}

/// A backup label, `YYYYMMDD-HHMMSSF` for a full and `…F_YYYYMMDD-HHMMSSD` (or `I`) for a backup
/// that depends on that full.
///
/// The times are the start of the backup in the local zone of the pgbackrest process, to the
/// second. The order is the text's: each full directly followed by its dependents, which is the
/// order in time except where an older full got a dependent after a newer full.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupLabel(String);

/// Text that is not a backup label, or whose digits are no date and time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{shown}\" is not a backup label: YYYYMMDD-HHMMSSF, with _YYYYMMDD-HHMMSSD or I appended for a diff or incr"
)]
pub struct InvalidBackupLabel {
    shown: String,
}

impl BackupType {
    /// Every type, in the order full, diff, incr.
    pub const ALL: [Self; 3] = [Self::Full, Self::Diff, Self::Incr];

    /// pgBackRest's word for it, as in `--type=full`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Diff => "diff",
            Self::Incr => "incr",
        }
    }
}

impl FromStr for BackupType {
    type Err = InvalidBackupType;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == value)
            .ok_or_else(|| InvalidBackupType { shown: shown(value) })
    }
}

impl fmt::Display for BackupType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Length of `YYYYMMDD-HHMMSSF`.
const FULL_LEN: usize = 16;

impl BackupLabel {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The type that the last letter states: the type the backup really has, whatever was asked.
    pub fn backup_type(&self) -> BackupType {
        match self.0.as_bytes().last() {
            Some(b'D') => BackupType::Diff,
            Some(b'I') => BackupType::Incr,
            Some(_) | None => BackupType::Full,
        }
    }

    /// The full backup that this one is or depends on.
    #[must_use]
    pub fn full_label(&self) -> BackupLabel {
        Self(self.0.chars().take(FULL_LEN).collect())
    }

    fn fits(value: &str) -> bool {
        match value.split_once('_') {
            None => is_stamp(value, b"F"),
            Some((full, dependent)) => is_stamp(full, b"F") && is_stamp(dependent, b"DI"),
        }
    }
}

/// Whether `value` is `YYYYMMDD-HHMMSS` of an existing date and time plus one of `letters`.
fn is_stamp(value: &str, letters: &[u8]) -> bool {
    let bytes = value.as_bytes();
    let digits = |from: usize, to: usize| -> Option<i16> {
        bytes
            .get(from..to)?
            .iter()
            .try_fold(0_i16, |sum, b| b.is_ascii_digit().then(|| sum * 10 + i16::from(b - b'0')))
    };
    let two = |from: usize| digits(from, from + 2).and_then(|n| i8::try_from(n).ok());
    let valid = || -> Option<bool> {
        let date = Date::new(digits(0, 4)?, two(4)?, two(6)?);
        let time = Time::new(two(9)?, two(11)?, two(13)?, 0);
        Some(date.is_ok() && time.is_ok())
    };
    bytes.len() == FULL_LEN
        && bytes.get(8) == Some(&b'-')
        && bytes.last().is_some_and(|b| letters.contains(b))
        && valid().unwrap_or(false)
}

impl TryFrom<String> for BackupLabel {
    type Error = InvalidBackupLabel;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        if Self::fits(&value) {
            Ok(Self(value))
        } else {
            Err(InvalidBackupLabel { shown: shown(&value) })
        }
    }
}

impl FromStr for BackupLabel {
    type Err = InvalidBackupLabel;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Self::try_from(value.to_owned())
    }
}

impl From<BackupLabel> for String {
    fn from(label: BackupLabel) -> Self {
        label.0
    }
}

impl AsRef<str> for BackupLabel {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for BackupLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn types_round_trip() {
        for kind in BackupType::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<BackupType>(&json).unwrap(), kind);
        }
        for bad in ["", "Full", "incremental", "full "] {
            assert!(bad.parse::<BackupType>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn label_grammar() {
        use BackupType::{Diff, Full, Incr};
        for (input, expect) in [
            ("20261120-100000F", Some(Full)),
            ("20261120-100000F_20261121-100000D", Some(Diff)),
            ("20261120-100000F_20261121-235959I", Some(Incr)),
            ("20240229-000000F", Some(Full)),
            ("20230229-000000F", None),
            ("20261320-100000F", None),
            ("20260020-100000F", None),
            ("20261131-100000F", None),
            ("20261120-240000F", None),
            ("20261120-106000F", None),
            ("20261120-100060F", None),
            ("20261120-100000D", None),
            ("20261120-100000f", None),
            ("20261120-100000", None),
            ("20261120-100000F_", None),
            ("20261120-100000F_20261121-100000F", None),
            ("20261120-100000F_20261121-100000D_20261122-100000I", None),
            ("20261120_100000F", None),
            ("20261120-100000F\n", None),
            (" 20261120-100000F", None),
            ("２0261120-100000F", None),
            ("latest", None),
            ("", None),
        ] {
            let kind = input.parse().ok().map(|label: BackupLabel| label.backup_type());
            assert_eq!(kind, expect, "{input:?}");
        }
    }

    #[test]
    fn full_label_and_order() {
        let label = |text: &str| text.parse::<BackupLabel>().unwrap();
        let full = label("20261120-100000F");
        let incr = label("20261120-100000F_20261121-100000I");
        assert_eq!(incr.full_label(), full);
        assert_eq!(full.full_label(), full);
        assert!(full < incr && incr < label("20261120-100001F"));
    }

    #[test]
    fn label_serde_is_a_checked_string() {
        let json = "\"20261120-100000F\"";
        let label: BackupLabel = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&label).unwrap(), json);
        assert!(serde_json::from_str::<BackupLabel>("\"../../etc\"").is_err());
    }

    proptest! {
        #[test]
        fn labels_round_trip(
            text in "20[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|1[0-9]|2[0-8])-([01][0-9]|2[0-3])[0-5][0-9][0-5][0-9]F(_20[0-9]{2}0[1-9]0[1-9]-1[0-9][0-5][0-9][0-5][0-9][DI])?"
        ) {
            let label: BackupLabel = text.parse().unwrap();
            prop_assert_eq!(label.to_string(), text);
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<BackupLabel>();
        }
    }
}
