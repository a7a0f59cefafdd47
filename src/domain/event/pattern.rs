//! Which kinds of events somebody wants: `backup.failed`, `wal.*`, `*.failed`, `*`.

use std::fmt;
use std::str::FromStr;

use super::super::stanza::shown;
use super::EventKind;

/// A kind of event, or several: either part of the name may be `*`, and `*` alone is everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPattern(String);

/// A pattern that no event will ever match; the message quotes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{shown}\" matches no event; write a name such as backup.failed, or wal.*, *.failed, *. \
     Events are: {known}"
)]
pub struct InvalidPattern {
    shown: String,
    known: String,
}

impl EventPattern {
    /// Whether it means this kind.
    pub fn matches(&self, kind: EventKind) -> bool {
        match (self.0.split_once('.'), kind.as_str().split_once('.')) {
            (Some((family, what)), Some((of, happened))) => {
                (family == "*" || family == of) && (what == "*" || what == happened)
            }
            (None, _) => self.0 == "*" || self.0 == kind.as_str(),
            (Some(_), None) => false,
        }
    }
}

impl fmt::Display for EventPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EventPattern {
    type Err = InvalidPattern;
    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let pattern = Self(text.to_owned());
        if EventKind::ALL.iter().any(|kind| pattern.matches(*kind)) {
            return Ok(pattern);
        }
        let known: Vec<_> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
        Err(InvalidPattern { shown: shown(text), known: known.join(", ") })
    }
}

/// All the kinds that somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventPatterns(pub Vec<EventPattern>);

impl EventPatterns {
    /// Whether one of them means this kind.
    pub fn matches(&self, kind: EventKind) -> bool {
        self.0.iter().any(|pattern| pattern.matches(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_what_they_say() {
        let cases = [
            ("backup.failed", EventKind::BackupFailed, true),
            ("backup.failed", EventKind::RestoreFailed, false),
            ("wal.*", EventKind::WalGap, true),
            ("wal.*", EventKind::BackupFailed, false),
            ("*.failed", EventKind::DrillFailed, true),
            ("*.failed", EventKind::DrillSucceeded, false),
            ("*.*", EventKind::WalGap, true),
            ("*.*", EventKind::Test, false),
            ("*", EventKind::Test, true),
            ("test", EventKind::Test, true),
        ];
        for (pattern, kind, expect) in cases {
            let pattern: EventPattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(kind), expect, "{pattern} and {kind}");
        }
    }

    #[test]
    fn patterns_that_match_nothing_are_refused() {
        for text in ["", "backup", "backup.fail", "wals.*", "*.gone", ".", "backup.*.x", "BACKUP.*"]
        {
            let error = text.parse::<EventPattern>().unwrap_err().to_string();
            assert!(error.contains("matches no event") && error.contains("wal.gap"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_is_taken_exactly_when_something_matches_it(
            family in prop_oneof![Just("*"), Just("backup"), Just("wal"), Just("x")],
            what in prop_oneof![Just("*"), Just("failed"), Just("gap"), Just("y")],
        ) {
            let text = format!("{family}.{what}");
            let exists = EventKind::ALL.iter().any(|kind| {
                kind.as_str().split_once('.').is_some_and(|(of, happened)| {
                    (family == "*" || of == family) && (what == "*" || happened == what)
                })
            });
            prop_assert_eq!(text.parse::<EventPattern>().is_ok(), exists);
        }
    }
}
