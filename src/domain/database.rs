//! The name of a database.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::stanza::shown;

/// A database's name: 1 to 63 bytes without control characters. (PostgreSQL takes any byte but
/// zero; what cannot be printed cannot be confirmed either.)
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DatabaseName(String);

/// Text that is no such name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a database's name: 1 to 63 bytes, no control characters")]
pub struct InvalidDatabaseName(String);

impl DatabaseName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DatabaseName {
    type Err = InvalidDatabaseName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if (1..=63).contains(&text.len()) && !text.chars().any(char::is_control) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidDatabaseName(shown(text)))
        }
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for DatabaseName {
    type Error = InvalidDatabaseName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DatabaseName> for String {
    fn from(name: DatabaseName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        let long = "x".repeat(64);
        for (text, ok) in
            [("shop", true), ("a b'c", true), ("", false), ("a\nb", false), (&long, false)]
        {
            assert_eq!(text.parse::<DatabaseName>().is_ok(), ok, "{text:?}");
        }
    }
}
