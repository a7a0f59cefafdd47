//! What `repo-ls --output=json` says of the archive, read tolerantly.
//!
//! An archive's directory has a directory for every 256 segments (the first 16 digits of their
//! names), and history files. A segment's file is `NAME-CHECKSUM[.EXTENSION]`.

use jiff::Timestamp;
use serde_json::Value;

use crate::domain::{SegmentSize, Timeline, WalSegment};

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// When it was last changed, where that is known.
    pub changed_at: Option<Timestamp>,
}

/// Output that is no listing.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// Not JSON.
    #[error("pgbackrest repo-ls printed no valid JSON")]
    Json(#[source] serde_json::Error),
    /// Not an object.
    #[error("pgbackrest repo-ls printed JSON that is no listing")]
    NotAnObject,
}

/// Reads the whole output. The directory itself (`.`) is left out.
pub fn parse(json: &[u8]) -> Result<Vec<Entry>, ListingError> {
    let Value::Object(entries) = serde_json::from_slice(json).map_err(ListingError::Json)? else {
        return Err(ListingError::NotAnObject);
    };
    let entry = |(name, value): (String, Value)| Entry {
        name,
        is_directory: value["type"] == "path",
        changed_at: value["time"].as_i64().and_then(|at| Timestamp::from_second(at).ok()),
    };
    Ok(entries.into_iter().filter(|(name, _)| name != ".").map(entry).collect())
}

/// The segment that a file of the archive holds; `None` for what is not a whole segment
/// (`.partial`, `.backup`, a file that is still being written).
pub fn segment(name: &str, size: SegmentSize) -> Option<WalSegment> {
    let (segment, rest) = name.split_at_checked(24)?;
    let checksum = rest.strip_prefix('-')?.split('.').next()?;
    let whole = checksum.len() == 40 && checksum.bytes().all(|b| b.is_ascii_hexdigit());
    let unfinished = rest.rsplit('.').next() == Some("tmp");
    WalSegment::parse(segment, size).ok().filter(|_| whole && !unfinished)
}

/// The timeline of a history file, `00000002.history`.
pub fn history(name: &str) -> Option<Timeline> {
    let digits = name.strip_suffix(".history").filter(|digits| digits.len() == 8)?;
    Timeline::try_from(u32::from_str_radix(digits, 16).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded() {
        let json = br#"{".":{"type":"path"},"00000002.history":{"type":"file","size":41,"time":1795621913},"0000000100000000":{"type":"path"}}"#;
        let entries = parse(json).unwrap();
        assert_eq!(entries.len(), 2);
        assert!(entries[0].is_directory);
        assert_eq!(history(&entries[1].name).unwrap().get(), 2);
        assert_eq!(entries[1].changed_at.unwrap().as_second(), 1_795_621_913);
        assert!(parse(b"[]").is_err() && parse(b"").is_err());
    }

    #[test]
    fn names() {
        let sum = "aebf48dd223acb915d9a386b69c4ebefbc23c683";
        for (name, expect) in [
            (format!("000000010000000000000001-{sum}.gz"), true),
            (format!("000000010000000000000001-{sum}"), true),
            (format!("000000010000000000000001-{sum}.lz4.pgbackrest.tmp"), false),
            (format!("000000010000000000000001.partial-{sum}.gz"), false),
            ("000000010000000000000002.00000028.backup".to_owned(), false),
            ("000000010000000000000001-abc.gz".to_owned(), false),
            ("é".to_owned(), false),
        ] {
            assert_eq!(segment(&name, SegmentSize::DEFAULT).is_some(), expect, "{name}");
        }
        assert!(history("0000000G.history").is_none() && history("2.history").is_none());
    }
}
