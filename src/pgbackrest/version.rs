//! The version of the installed pgBackRest (or a fork of it) and what that version can do.
//!
//! Reads the line that `pgbackrest version` prints; the facts come from design/pgbackrest.md,
//! section 1. This module must not run anything, and nothing else may compare version numbers.

use std::{cmp::Ordering, fmt, str::FromStr};

use crate::domain::stanza::shown;

/// A version as printed: `pgBackRest 2.55.1`, `pgBackRest 2.60.0dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    /// 0 where none is printed, as in `2.45`.
    pub patch: u32,
    /// A development build of that version: it sorts before the release.
    pub dev: bool,
    /// The program's own name, `pgBackRest` unless it is a fork.
    pub product: String,
}

/// Output that holds no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{shown}\" is not a pgBackRest version such as \"pgBackRest 2.55.1\"")]
pub struct InvalidVersion {
    shown: String,
}

impl Version {
    /// `status.lock.backup` in info JSON carries `size` and `size-cplt` (2.48).
    pub fn reports_lock_size(&self) -> bool {
        self.at_least(2, 48)
    }

    /// `info --detail-level=progress` exists (2.56).
    pub fn reports_progress_detail(&self) -> bool {
        self.at_least(2, 56)
    }

    /// A restore takes a lock and shows in info as `status.lock.restore` (2.56).
    pub fn locks_restore(&self) -> bool {
        self.at_least(2, 56)
    }

    /// Lock files are named `<stanza>-<type>-<repo>.lock`, and backups to different repositories
    /// may overlap (2.53).
    pub fn lock_file_has_repo(&self) -> bool {
        self.at_least(2, 53)
    }

    /// Whether `verify` heeds `--set`: 2.45 takes it and verifies everything (tested), 2.55 made it
    /// public.
    pub fn verifies_one_set(&self) -> bool {
        self.at_least(2, 55)
    }

    /// Every command but restore refuses to run as root (2.59).
    pub fn refuses_root(&self) -> bool {
        self.at_least(2, 59)
    }

    /// Whether a PostgreSQL works with this version, by its `server_version`, such as
    /// `15.18 (Debian 15.18-0+deb12u1)`; `None` where that is not known.
    pub fn supports_server(&self, server_version: &str) -> Option<bool> {
        let major = server_version.split(|c: char| !c.is_ascii_digit()).next()?;
        self.supports_postgres(major.parse().ok()?)
    }

    /// Whether PostgreSQL `major` (10, 17; 9 for all of 9.x) works with this version.
    ///
    /// `None` where design/pgbackrest.md does not say: versions before 2.45, PostgreSQL 9 (it
    /// depends on the minor), 19 with its beta support from 2.59 on, anything after 18 with a
    /// version after 2.60.
    pub fn supports_postgres(&self, major: u16) -> Option<bool> {
        if !self.at_least(2, 45) || self.major > 2 {
            return None;
        }
        let newest = match self.minor {
            45 => 15,
            46..52 => 16,
            52..55 => 17,
            _ => 18,
        };
        match major {
            9 => None,
            10.. if major <= newest => Some(true),
            19 if self.at_least(2, 59) => None,
            10.. if self.at_least(2, 61) => None,
            0..9 | 10.. => Some(false),
        }
    }

    /// By the numbers alone: a development build counts as its version.
    fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

impl FromStr for Version {
    type Err = InvalidVersion;

    /// Reads the first line that is `NAME NUMBER.NUMBER[.NUMBER][rest]`; a rest that begins with
    /// `dev` marks a development build, any other (a packager's suffix) is ignored.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.lines()
            .find_map(parse_line)
            .ok_or_else(|| InvalidVersion { shown: shown(text.trim()) })
    }
}

fn parse_line(line: &str) -> Option<Version> {
    let (product, numbers) = line.trim().rsplit_once(char::is_whitespace)?;
    let product = product.trim();
    let (major, rest) = number(numbers)?;
    let (minor, rest) = number(rest.strip_prefix('.')?)?;
    let (patch, rest) = rest.strip_prefix('.').and_then(number).unwrap_or((0, rest));
    let dev = rest.trim_start_matches(['-', '.', '~']).starts_with("dev");
    let named = product.starts_with(|c: char| c.is_alphabetic());
    named.then(|| Version { major, minor, patch, dev, product: product.to_owned() })
}

/// The decimal number at the start of `text` and what follows it.
fn number(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

impl Ord for Version {
    /// By the numbers, a development build before its release; the name only breaks ties.
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |v: &Self| (v.major, v.minor, v.patch, !v.dev);
        key(self).cmp(&key(other)).then_with(|| self.product.cmp(&other.product))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Version {
    /// As pgBackRest prints it: no patch number before 2.54 unless it is more than 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{}", self.product, self.major, self.minor)?;
        if self.patch > 0 || self.at_least(2, PATCH_ALWAYS_SINCE) {
            write!(f, ".{}", self.patch)?;
        }
        f.write_str(if self.dev { "dev" } else { "" })
    }
}

/// The first minor version of 2.x whose releases are always printed with a patch number.
const PATCH_ALWAYS_SINCE: u32 = 54;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn recorded_versions() {
        for (text, shown) in [
            (include_str!("../../tests/fixtures/pgbackrest/2.45/version.txt"), "pgBackRest 2.45"),
            (
                include_str!("../../tests/fixtures/pgbackrest/2.55.1/version.txt"),
                "pgBackRest 2.55.1",
            ),
            (
                include_str!("../../tests/fixtures/pgbackrest/2.60.0/version.txt"),
                "pgBackRest 2.60.0",
            ),
        ] {
            assert_eq!(v(text).to_string(), shown);
        }
    }

    #[test]
    fn spellings() {
        for (text, expect) in [
            ("pgBackRest 2.60.0dev\n", Some((2, 60, 0, true, "pgBackRest"))),
            ("pgBackRest 2.53.1", Some((2, 53, 1, false, "pgBackRest"))),
            ("pgxbackup 2.61.3", Some((2, 61, 3, false, "pgxbackup"))),
            ("WARN: something\npgBackRest 2.45\n", Some((2, 45, 0, false, "pgBackRest"))),
            ("pgBackRest 2.55.1-1.pgdg120+1", Some((2, 55, 1, false, "pgBackRest"))),
            ("My Backup 3.0", Some((3, 0, 0, false, "My Backup"))),
            ("", None),
            ("2.45", None),
            ("pgBackRest", None),
            ("pgBackRest two", None),
            ("pgBackRest 2", None),
            ("pgBackRest 99999999999.1", None),
        ] {
            let version = text.parse::<Version>().ok();
            let got =
                version.as_ref().map(|v| (v.major, v.minor, v.patch, v.dev, v.product.as_str()));
            assert_eq!(got, expect, "{text:?}");
        }
    }

    #[test]
    fn order() {
        let ascending =
            ["p 1.99", "p 2.5", "p 2.45", "p 2.55.0", "p 2.55.1", "p 2.60.0dev", "p 2.60.0"];
        assert!(ascending.map(v).is_sorted_by(|a, b| a < b));
        assert_eq!(v("p 2.45").cmp(&v("p 2.45")), Ordering::Equal);
    }

    #[test]
    fn features() {
        type Feature = fn(&Version) -> bool;
        for (since, before, feature) in [
            ("p 2.48", "p 2.47.9", Version::reports_lock_size as Feature),
            ("p 2.56.0", "p 2.55.1", Version::reports_progress_detail),
            ("p 2.56.0", "p 2.55.1", Version::locks_restore),
            ("p 2.53", "p 2.52.1", Version::lock_file_has_repo),
            ("p 2.59.0", "p 2.58.0", Version::refuses_root),
        ] {
            assert!(feature(&v(since)) && feature(&v("p 3.0")), "{since}");
            assert!(!feature(&v(before)), "{before}");
        }
    }

    #[test]
    fn postgres_versions() {
        for (version, major, expect) in [
            ("p 2.45", 15, Some(true)),
            ("p 2.45", 16, Some(false)),
            ("p 2.46", 16, Some(true)),
            ("p 2.51", 17, Some(false)),
            ("p 2.52", 17, Some(true)),
            ("p 2.54.2", 18, Some(false)),
            ("p 2.55.1", 18, Some(true)),
            ("p 2.58.0", 19, Some(false)),
            ("p 2.59.0", 19, None),
            ("p 2.60.0", 20, Some(false)),
            ("p 2.61.0", 20, None),
            ("p 2.60.0", 10, Some(true)),
            ("p 2.60.0", 9, None),
            ("p 2.60.0", 8, Some(false)),
            ("p 2.44", 14, None),
            ("p 3.0", 18, None),
        ] {
            assert_eq!(v(version).supports_postgres(major), expect, "{version} {major}");
        }
    }

    proptest! {
        #[test]
        fn displays_as_it_parses(major in 0..9_u32, minor: u32, patch: u32, dev: bool) {
            let version = Version { major, minor, patch, dev, product: "pgBackRest".to_owned() };
            prop_assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
        }

        #[test]
        fn any_text_is_safe(text in "\\PC{0,60}") {
            let _ = text.parse::<Version>();
        }
    }
}
