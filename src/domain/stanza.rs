//! The stanza: pgBackRest's name for one PostgreSQL cluster and its backup configuration.
//!
//! Only the name and its grammar. This module must not know which stanzas are configured, and must
//! do no IO. It also holds [`shown`], the one way in which refused input is quoted in an error.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Characters of refused input that an error message repeats.
const SHOWN_MAX_CHARS: usize = 64;

/// A stanza's name: 1 to 63 characters, `[a-z0-9][a-z0-9_-]{0,62}`.
///
/// Narrower than pgBackRest, which takes almost anything: the name becomes a directory in the
/// repository, a section of the configuration and part of our URLs, so it stays plain
/// (design/api.md, grammar). A leading `-` would read as an option.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StanzaName(String);

/// A stanza name outside the grammar; the message quotes it, escaped and cut to 64 characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{shown}\" is not a stanza name: 1 to 63 of a-z, 0-9, _ and -, starting with a letter or digit"
)]
pub struct InvalidStanzaName {
    shown: String,
}

impl StanzaName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn fits(value: &str) -> bool {
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        match value.as_bytes() {
            [first, rest @ ..] => {
                plain(first)
                    && rest.len() <= 62
                    && rest.iter().all(|b| plain(b) || matches!(b, b'_' | b'-'))
            }
            [] => false,
        }
    }
}

impl TryFrom<String> for StanzaName {
    type Error = InvalidStanzaName;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        if Self::fits(&value) {
            Ok(Self(value))
        } else {
            Err(InvalidStanzaName { shown: shown(&value) })
        }
    }
}

impl FromStr for StanzaName {
    type Err = InvalidStanzaName;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Self::try_from(value.to_owned())
    }
}

impl From<StanzaName> for String {
    fn from(name: StanzaName) -> Self {
        name.0
    }
}

impl AsRef<str> for StanzaName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for StanzaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Quotes refused input for a message: the first 64 characters, then `…`, with quotes, control
/// characters and other unprintables escaped as Rust writes them, so a message is always one line.
pub fn shown(value: &str) -> String {
    let mut out = String::new();
    let mut chars = value.chars();
    for c in chars.by_ref().take(SHOWN_MAX_CHARS) {
        if c == '\'' {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
    if chars.next().is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grammar() {
        let long = "a".repeat(63);
        let too_long = "a".repeat(64);
        for (input, ok) in [
            ("main", true),
            ("0", true),
            ("a-b_c9", true),
            (long.as_str(), true),
            (too_long.as_str(), false),
            ("", false),
            ("-main", false),
            ("_main", false),
            ("Main", false),
            ("a.b", false),
            ("a/b", false),
            ("..", false),
            ("a b", false),
            ("main\n", false),
            ("größe", false),
            ("main:backup", false),
        ] {
            assert_eq!(input.parse::<StanzaName>().is_ok(), ok, "{input:?}");
        }
    }

    #[test]
    fn message_is_one_bounded_line() {
        let message = "a\nb\"'\u{1b}[31m".parse::<StanzaName>().unwrap_err().to_string();
        assert!(message.starts_with("\"a\\nb\\\"'\\u{1b}[31m\" is not a stanza name"), "{message}");
        let message = "X".repeat(100_000).parse::<StanzaName>().unwrap_err().to_string();
        assert!(message.len() < 200, "{}", message.len());
        assert!(message.contains('…'));
    }

    #[test]
    fn serde_is_a_checked_string() {
        let name: StanzaName = serde_json::from_str("\"main\"").unwrap();
        assert_eq!(name.as_str(), "main");
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"main\"");
        assert!(serde_json::from_str::<StanzaName>("\"Main\"").is_err());
        assert!(serde_json::from_str::<StanzaName>("1").is_err());
    }

    proptest! {
        #[test]
        fn accepts_exactly_the_grammar(name in "[a-z0-9][a-z0-9_-]{0,62}") {
            prop_assert_eq!(name.parse::<StanzaName>().unwrap().to_string(), name);
        }

        #[test]
        fn never_panics(value in ".{0,100}") {
            if let Err(error) = value.parse::<StanzaName>() {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
