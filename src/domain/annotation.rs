//! Annotations: the key-value pairs that pgBackRest keeps with a backup (`--annotation`, 2.41+).
//!
//! Bounds and characters only, because the pairs end up on a command line, in the repository and
//! on pages. This module must not build command lines and must do no IO.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::stanza::shown;

/// Most pairs that one backup may have.
pub const MAX_PAIRS: usize = 32;
/// Most characters in a key.
pub const MAX_KEY_CHARS: usize = 64;
/// Most characters in a value.
pub const MAX_VALUE_CHARS: usize = 512;

/// Checked annotations: at most 32 pairs; key `[A-Za-z0-9][A-Za-z0-9_.-]{0,63}`; value 1 to 512
/// printable characters on one line.
///
/// A value is never empty because pgBackRest reads an empty value as "remove this annotation".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Annotations(BTreeMap<String, String>);

/// Why annotations were refused; names the key, never repeats the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAnnotation {
    /// More than [`MAX_PAIRS`].
    #[error("{count} annotations, at most {MAX_PAIRS} are allowed")]
    TooMany {
        /// How many were given.
        count: usize,
    },
    /// The key is outside the grammar.
    #[error(
        "annotation key \"{key}\": 1 to {MAX_KEY_CHARS} of A-Z, a-z, 0-9, _ . and -, starting with a letter or digit"
    )]
    Key {
        /// The key, escaped and cut.
        key: String,
    },
    /// The value is empty or longer than [`MAX_VALUE_CHARS`].
    #[error("value of annotation \"{key}\" has {chars} characters: 1 to {MAX_VALUE_CHARS} allowed")]
    ValueLength {
        /// The key.
        key: String,
        /// Characters, not bytes.
        chars: usize,
    },
    /// The value has a character that does not print on one line.
    #[error("value of annotation \"{key}\" contains {character}, which is not printable")]
    ValueCharacter {
        /// The key.
        key: String,
        /// The character as `U+XXXX`.
        character: String,
    },
}

impl Annotations {
    /// Checks every pair and reports the first that is refused, in key order.
    pub fn parse(pairs: BTreeMap<String, String>) -> Result<Self, InvalidAnnotation> {
        if pairs.len() > MAX_PAIRS {
            return Err(InvalidAnnotation::TooMany { count: pairs.len() });
        }
        for (key, value) in &pairs {
            check_key(key)?;
            check_value(key, value)?;
        }
        Ok(Self(pairs))
    }

    /// The pairs in key order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value of one key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

fn check_key(key: &str) -> Result<(), InvalidAnnotation> {
    let starts = key.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if starts && rest && key.len() <= MAX_KEY_CHARS {
        Ok(())
    } else {
        Err(InvalidAnnotation::Key { key: shown(key) })
    }
}

fn check_value(key: &str, value: &str) -> Result<(), InvalidAnnotation> {
    let chars = value.chars().count();
    if !(1..=MAX_VALUE_CHARS).contains(&chars) {
        return Err(InvalidAnnotation::ValueLength { key: key.to_owned(), chars });
    }
    match value.chars().find(|c| !is_printable(*c)) {
        None => Ok(()),
        Some(c) => Err(InvalidAnnotation::ValueCharacter {
            key: key.to_owned(),
            character: format!("U+{:04X}", u32::from(c)),
        }),
    }
}

/// Printable here: no control character, no line or paragraph separator, none of the bidirectional
/// controls that make text display as something else than it says, no byte order mark.
fn is_printable(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

impl TryFrom<BTreeMap<String, String>> for Annotations {
    type Error = InvalidAnnotation;

    fn try_from(pairs: BTreeMap<String, String>) -> Result<Self, Self::Error> {
        Self::parse(pairs)
    }
}

impl From<Annotations> for BTreeMap<String, String> {
    fn from(annotations: Annotations) -> Self {
        annotations.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> Result<Annotations, InvalidAnnotation> {
        Annotations::parse(BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn keys() {
        let longest = "k".repeat(64);
        let too_long = "k".repeat(65);
        for (key, ok) in [
            ("reason", true),
            ("9.a_B-c", true),
            (longest.as_str(), true),
            (too_long.as_str(), false),
            ("", false),
            (".a", false),
            ("-a", false),
            ("_a", false),
            ("a b", false),
            ("a=b", false),
            ("ä", false),
            ("a\n", false),
        ] {
            assert_eq!(one(key, "v").is_ok(), ok, "{key:?}");
        }
    }

    #[test]
    fn values() {
        let longest = "ä".repeat(512);
        let too_long = "ä".repeat(513);
        for (value, ok) in [
            ("before release 1.2 = \"go\"", true),
            ("日本語 👩‍🚀", true),
            (" ", true),
            (longest.as_str(), true),
            (too_long.as_str(), false),
            ("", false),
            ("a\nb", false),
            ("a\tb", false),
            ("\u{1b}[31m", false),
            ("\u{85}", false),
            ("\u{2028}", false),
            ("a\u{202e}b", false),
            ("a\0", false),
        ] {
            assert_eq!(one("k", value).is_ok(), ok, "{value:?}");
        }
    }

    #[test]
    fn messages_name_the_key_and_not_the_value() {
        let message = one("token", "se\u{7}cret").unwrap_err().to_string();
        assert_eq!(
            message,
            "value of annotation \"token\" contains U+0007, which is not printable"
        );
        assert!(one("a\nb", "v").unwrap_err().to_string().contains("\"a\\nb\""));
    }

    #[test]
    fn count_and_access() {
        let pairs = |n: usize| (0..n).map(|i| (format!("k{i}"), "v".to_owned())).collect();
        assert_eq!(Annotations::parse(pairs(32)).unwrap().len(), 32);
        assert_eq!(Annotations::parse(pairs(33)), Err(InvalidAnnotation::TooMany { count: 33 }));
        assert!(Annotations::default().is_empty());
        let some = one("k", "v").unwrap();
        assert_eq!(some.iter().collect::<Vec<_>>(), [("k", "v")]);
        assert_eq!(some.get("k"), Some("v"));
    }

    #[test]
    fn serde_is_a_checked_object() {
        let some: Annotations = serde_json::from_str(r#"{"k":"v"}"#).unwrap();
        assert_eq!(serde_json::to_string(&some).unwrap(), r#"{"k":"v"}"#);
        assert!(serde_json::from_str::<Annotations>(r#"{"k":""}"#).is_err());
    }
}
