//! The repository key: which of pgBackRest's `repoN-…` repositories is meant.
//!
//! Only the number and its range. It says nothing about where a repository is or whether it
//! exists, and must do no IO.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::stanza::shown;

/// The key N of `repoN-…`, 1 to 256 (pgBackRest's option definitions, `CFG_OPTION_GROUP_REPO`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u16")]
pub struct RepoKey(u16);

/// A repository key outside 1 to 256, or not a plain decimal number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{shown}\" is not a repository key: a whole number from 1 to 256")]
pub struct InvalidRepoKey {
    shown: String,
}

impl RepoKey {
    /// `repo1`, the repository that pgBackRest uses when only one is configured.
    pub const FIRST: Self = Self(1);
    /// The largest key.
    pub const MAX: Self = Self(256);

    /// The key as a number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for RepoKey {
    type Error = InvalidRepoKey;

    fn try_from(value: u32) -> Result<Self, Self::Error> {
        match u16::try_from(value) {
            Ok(key) if (Self::FIRST.0..=Self::MAX.0).contains(&key) => Ok(Self(key)),
            Ok(_) | Err(_) => Err(InvalidRepoKey { shown: value.to_string() }),
        }
    }
}

impl FromStr for RepoKey {
    type Err = InvalidRepoKey;

    /// Decimal digits only: no sign, no blanks, no leading zero (one spelling for one key).
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let refused = || InvalidRepoKey { shown: shown(value) };
        if !value.bytes().all(|b| b.is_ascii_digit()) || value.starts_with('0') {
            return Err(refused());
        }
        let number = value.parse::<u32>().map_err(|_| refused())?;
        Self::try_from(number).map_err(|_| refused())
    }
}

impl From<RepoKey> for u16 {
    fn from(key: RepoKey) -> Self {
        key.0
    }
}

impl fmt::Display for RepoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_and_spelling() {
        for (input, expect) in [
            ("1", Some(1)),
            ("256", Some(256)),
            ("0", None),
            ("257", None),
            ("65537", None),
            ("4294967297", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("01", None),
            (" 1", None),
            ("1.0", None),
            ("x", None),
        ] {
            assert_eq!(input.parse().ok().map(RepoKey::get), expect, "{input:?}");
        }
    }

    #[test]
    fn numbers_and_json() {
        assert!(RepoKey::try_from(0).is_err());
        assert!(RepoKey::try_from(65_537).is_err());
        assert_eq!(RepoKey::try_from(256).unwrap(), RepoKey::MAX);
        assert_eq!(serde_json::from_str::<RepoKey>("2").unwrap().get(), 2);
        assert_eq!(serde_json::to_string(&RepoKey::FIRST).unwrap(), "1");
        for bad in ["0", "257", "-1", "1.5", "\"1\"", "null"] {
            assert!(serde_json::from_str::<RepoKey>(bad).is_err(), "{bad}");
        }
        assert_eq!(
            RepoKey::try_from(300).unwrap_err().to_string(),
            "\"300\" is not a repository key: a whole number from 1 to 256"
        );
    }
}
