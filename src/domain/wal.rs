//! Positions in the write-ahead log: LSN, timeline, segment size, and the segment file that holds a
//! position (PostgreSQL manual, "WAL Internals"; `xlog_internal.h` for the arithmetic).
//!
//! Pure arithmetic and names. This module must not know which segments exist, and must do no IO.

use std::{fmt, num::NonZeroU32, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};

use super::stanza::shown;

/// A log sequence number: a byte position in the WAL stream, written `16/B374D848`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(u64);

/// A timeline: 1 for a new cluster, one higher after each promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Timeline(NonZeroU32);

/// The size of a WAL segment in bytes: a power of two from 1 MiB to 1 GiB, fixed by `initdb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

/// One WAL segment: which timeline, which stretch of the stream.
///
/// The file name depends on the segment size, so the size is kept. Ordered by timeline, then by
/// position; comparing segments of clusters with different sizes has no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalSegment {
    timeline: Timeline,
    /// Start position divided by the segment size.
    number: u64,
    size: SegmentSize,
}

/// Text or a number that is no position, timeline, segment size or segment name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWal {
    /// Not an LSN.
    #[error(
        "\"{0}\" is not an LSN: two hexadecimal numbers of at most 8 digits, as in 16/B374D848"
    )]
    Lsn(String),
    /// Not a timeline.
    #[error("\"{0}\" is not a timeline: a whole number from 1 to 4294967295")]
    Timeline(String),
    /// Not a segment size.
    #[error("{0} is not a WAL segment size: a power of two from 1 MiB to 1 GiB, in bytes")]
    SegmentSize(u64),
    /// Not a segment file name at this size.
    #[error("\"{shown}\" is not the name of a WAL segment of {size_bytes} bytes")]
    Segment {
        /// The name, escaped and cut.
        shown: String,
        /// The segment size it was read with.
        size_bytes: u64,
    },
}

impl Lsn {
    /// A position by its number of bytes from the start of the stream.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the start of the stream.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes from `earlier` to here; 0 if `earlier` is not earlier.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl FromStr for Lsn {
    type Err = InvalidWal;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let half = |text: &str| {
            let fits = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
            if fits { u64::from_str_radix(text, 16).ok() } else { None }
        };
        value
            .split_once('/')
            .and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| InvalidWal::Lsn(shown(value)))
    }
}

impl fmt::Display for Lsn {
    /// As PostgreSQL's `%X/%X`: upper case, no leading zeros.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl TryFrom<String> for Lsn {
    type Error = InvalidWal;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        value.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

impl Timeline {
    /// The timeline of a new cluster.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// The timeline as a number, 1 or more.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<u32> for Timeline {
    type Error = InvalidWal;

    fn try_from(value: u32) -> Result<Self, Self::Error> {
        NonZeroU32::new(value).map(Self).ok_or_else(|| InvalidWal::Timeline(value.to_string()))
    }
}

impl FromStr for Timeline {
    type Err = InvalidWal;

    /// Decimal digits without sign or leading zero: PostgreSQL would read `010` as octal and `0x1`
    /// as hexadecimal, so neither is accepted here.
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let fits = value.bytes().all(|b| b.is_ascii_digit()) && !value.starts_with('0');
        value
            .parse()
            .ok()
            .filter(|_| fits)
            .map(Self)
            .ok_or_else(|| InvalidWal::Timeline(shown(value)))
    }
}

impl From<Timeline> for u32 {
    fn from(timeline: Timeline) -> Self {
        timeline.get()
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `SizeOfXLogLongPHD` (PostgreSQL source, `xlog_internal.h`).
const LONG_PAGE_HEADER: u64 = 40;

impl SegmentSize {
    /// 16 MiB, PostgreSQL's default.
    pub const DEFAULT: Self = Self(16 << 20);
    /// 1 MiB.
    pub const MIN: Self = Self(1 << 20);
    /// 1 GiB.
    pub const MAX: Self = Self(1 << 30);

    /// The size in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The size with which a position is in the segment of this name; `None` when none fits. That is
    /// how the size of a lost cluster is known.
    pub fn infer(name: &str, lsn: Lsn) -> Option<Self> {
        let mut sizes = (20..=30).map(|power| Self(1 << power));
        sizes.find(|size| {
            let segment = WalSegment::parse(name, *size);
            segment.is_ok_and(|s| WalSegment::containing(s.timeline, lsn, *size) == s)
        })
    }

    /// The number of the segment that must be there for everything before a position: the one of
    /// the last byte before it. A position right behind a segment's first page header (40 bytes) has
    /// nothing in that segment yet.
    pub const fn number_before(self, lsn: Lsn) -> u64 {
        if lsn.get() % self.0 <= LONG_PAGE_HEADER {
            (lsn.get() / self.0).saturating_sub(1)
        } else {
            lsn.get() / self.0
        }
    }

    /// Segments per 4 GiB, the unit that the middle eight digits of a name count.
    const fn per_id(self) -> u64 {
        (1 << 32) / self.0
    }

    /// The last segment number of the 64-bit stream.
    const fn last_number(self) -> u64 {
        u64::MAX / self.0
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = InvalidWal;

    fn try_from(value: u64) -> Result<Self, Self::Error> {
        if value.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(InvalidWal::SegmentSize(value))
        }
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.0
    }
}

impl WalSegment {
    /// The segment named `name`: 24 upper-case hexadecimal digits and nothing more, as PostgreSQL
    /// writes them (`IsXLogFileName`): no `.partial`, `.backup` or pgBackRest checksum suffix.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, InvalidWal> {
        let refused = || InvalidWal::Segment { shown: shown(name), size_bytes: size.get() };
        let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        if name.len() != 24 || !name.bytes().all(upper_hex) {
            return Err(refused());
        }
        let part = |from: usize| u32::from_str_radix(&name[from..from + 8], 16);
        let (Ok(timeline), Ok(id), Ok(low)) = (part(0), part(8), part(16)) else {
            return Err(refused());
        };
        let timeline = Timeline::try_from(timeline).map_err(|_| refused())?;
        if u64::from(low) >= size.per_id() {
            return Err(refused());
        }
        Ok(Self { timeline, number: u64::from(id) * size.per_id() + u64::from(low), size })
    }

    /// The segment that holds the byte at `lsn`.
    ///
    /// A position exactly on a boundary belongs to the segment that begins there, unlike in
    /// `pg_walfile_name()` before PostgreSQL 17, which names the one that ends there.
    pub const fn containing(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> Self {
        Self { timeline, number: lsn.get() / size.get(), size }
    }

    /// The segment with this number; `None` beyond the end of the stream.
    pub fn numbered(timeline: Timeline, number: u64, size: SegmentSize) -> Option<Self> {
        (number <= size.last_number()).then_some(Self { timeline, number, size })
    }

    /// The segment before it on the same timeline; `None` for the very first.
    #[must_use]
    pub fn previous(&self) -> Option<Self> {
        Some(Self { number: self.number.checked_sub(1)?, ..*self })
    }

    /// The first position in the segment.
    pub const fn start(&self) -> Lsn {
        Lsn::new(self.number * self.size.get())
    }

    /// The first position after the segment; for the very last segment of the stream, the largest
    /// position there is.
    pub const fn end(&self) -> Lsn {
        Lsn::new(self.start().get().saturating_add(self.size.get()))
    }

    /// The segment that follows on the same timeline; `None` after the last of the 64-bit stream,
    /// so a loop over segments always ends.
    #[must_use]
    pub fn next(&self) -> Option<Self> {
        (self.number < self.size.last_number()).then(|| Self { number: self.number + 1, ..*self })
    }

    /// The timeline in the name.
    pub const fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The position of the segment in the stream: start divided by size, the same on every timeline.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The segment size that the name was read with.
    pub const fn size(&self) -> SegmentSize {
        self.size
    }
}

impl fmt::Display for WalSegment {
    /// The file name: 24 upper-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_id = self.size.per_id();
        let (id, low) = (self.number / per_id, self.number % per_id);
        write!(f, "{:08X}{id:08X}{low:08X}", self.timeline.get())
    }
}

impl Serialize for WalSegment {
    /// As the file name. There is no `Deserialize`: the name alone does not tell the size.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lsn_grammar() {
        for (input, expect) in [
            ("0/0", Some(0)),
            ("0/16B6C50", Some(0x016B_6C50)),
            ("16/b374d848", Some(0x16_B374_D848)),
            ("00000016/B374D848", Some(0x16_B374_D848)),
            ("FFFFFFFF/FFFFFFFF", Some(u64::MAX)),
            ("", None),
            ("/", None),
            ("1/", None),
            ("/1", None),
            ("1", None),
            ("1/2/3", None),
            ("100000000/0", None),
            ("0/100000000", None),
            ("+1/2", None),
            ("0x1/2", None),
            ("G/0", None),
            (" 0/1", None),
        ] {
            assert_eq!(input.parse().ok().map(Lsn::get), expect, "{input:?}");
        }
        assert_eq!("16/b374d848".parse::<Lsn>().unwrap().to_string(), "16/B374D848");
        assert_eq!("0/01".parse::<Lsn>().unwrap().to_string(), "0/1");
        assert!("9/0".parse::<Lsn>().unwrap() < "10/0".parse().unwrap());
        assert_eq!(Lsn::new(5).bytes_since(Lsn::new(7)), 0);
    }

    #[test]
    fn timeline_grammar() {
        for (input, expect) in [
            ("1", Some(1)),
            ("4294967295", Some(u32::MAX)),
            ("4294967296", None),
            ("0", None),
            ("010", None),
            ("0x1", None),
            ("+1", None),
            ("-1", None),
            ("", None),
            ("latest", None),
        ] {
            assert_eq!(input.parse().ok().map(Timeline::get), expect, "{input:?}");
        }
        assert_eq!(serde_json::to_string(&Timeline::FIRST).unwrap(), "1");
        assert!(serde_json::from_str::<Timeline>("0").is_err());
    }

    #[test]
    fn segment_sizes() {
        for (input, ok) in [
            (1 << 20, true),
            (16 << 20, true),
            (1 << 30, true),
            (0, false),
            (1 << 19, false),
            (1 << 31, false),
            (3 << 20, false),
            (u64::MAX, false),
        ] {
            assert_eq!(SegmentSize::try_from(input).is_ok(), ok, "{input}");
        }
    }

    #[test]
    fn segment_names() {
        let size = SegmentSize::DEFAULT;
        for (name, expect) in [
            ("000000010000000000000001", Some("0/1000000")),
            ("000000010000000A000000FF", Some("A/FF000000")),
            ("FFFFFFFFFFFFFFFF000000FF", Some("FFFFFFFF/FF000000")),
            ("000000010000000000000100", None),
            ("000000000000000000000001", None),
            ("00000001000000000000000a", None),
            ("00000001000000000000001", None),
            ("000000010000000000000001.partial", None),
            ("00000002.history", None),
            ("0000000100000000000000é", None),
            ("+00000010000000000000001", None),
            ("", None),
        ] {
            let start = WalSegment::parse(name, size).ok().map(|s| s.start().to_string());
            assert_eq!(start.as_deref(), expect, "{name:?}");
        }
    }

    #[test]
    fn segment_arithmetic() {
        let size = SegmentSize::DEFAULT;
        let parse = |name: &str| WalSegment::parse(name, size).unwrap();
        let last_of_id = parse("0000000100000000000000FF");
        assert_eq!(last_of_id.end().to_string(), "1/0");
        assert_eq!(last_of_id.next(), Some(parse("000000010000000100000000")));
        assert_eq!(parse("00000001FFFFFFFF000000FF").next(), None);
        assert_eq!(parse("00000001FFFFFFFF000000FF").end(), Lsn::new(u64::MAX));
        assert!(parse("000000010000000100000000") < parse("000000020000000000000001"));
        let boundary = "0/2000000".parse().unwrap();
        let held = WalSegment::containing(Timeline::FIRST, boundary, size);
        assert_eq!(held.to_string(), "000000010000000000000002");
        let big = WalSegment::parse("000000010000000500000003", SegmentSize::MAX).unwrap();
        assert_eq!(big.next().unwrap().to_string(), "000000010000000600000000");
        assert_eq!(serde_json::to_string(&held).unwrap(), "\"000000010000000000000002\"");
    }

    #[test]
    fn the_size_is_told_by_a_position() {
        let lsn = |text: &str| text.parse::<Lsn>().unwrap();
        let infer = |name, at| SegmentSize::infer(name, lsn(at)).map(SegmentSize::get);
        assert_eq!(infer("000000010000000000000002", "0/2000028"), Some(16 << 20));
        assert_eq!(infer("000000010000000000000020", "0/2000028"), Some(1 << 20));
        assert_eq!(infer("000000010000000000000009", "0/2000028"), None);
    }

    #[test]
    fn the_segment_before_a_position() {
        let before = |at: &str| SegmentSize::DEFAULT.number_before(at.parse().unwrap());
        for (at, expect) in
            [("0/2000000", 1), ("0/2000028", 1), ("0/2000029", 2), ("0/2FFFFFF", 2), ("0/0", 0)]
        {
            assert_eq!(before(at), expect, "{at}");
        }
    }

    fn sizes() -> impl Strategy<Value = SegmentSize> {
        (20_u32..=30).prop_map(|power| SegmentSize::try_from(1 << power).unwrap())
    }

    fn timelines() -> impl Strategy<Value = Timeline> {
        (1..=u32::MAX).prop_map(|number| Timeline::try_from(number).unwrap())
    }

    proptest! {
        #[test]
        fn lsn_round_trips(bytes: u64) {
            let lsn = Lsn::new(bytes);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>().unwrap(), lsn);
            let json = serde_json::to_string(&lsn).unwrap();
            prop_assert_eq!(serde_json::from_str::<Lsn>(&json).unwrap(), lsn);
        }

        #[test]
        fn timeline_round_trips(timeline in timelines()) {
            prop_assert_eq!(timeline.to_string().parse::<Timeline>().unwrap(), timeline);
        }

        #[test]
        fn segment_round_trips(timeline in timelines(), bytes: u64, size in sizes()) {
            let lsn = Lsn::new(bytes);
            let segment = WalSegment::containing(timeline, lsn, size);
            prop_assert_eq!(WalSegment::parse(&segment.to_string(), size).unwrap(), segment);
            prop_assert!(segment.start() <= lsn && lsn <= segment.end());
            prop_assert_eq!(WalSegment::containing(timeline, segment.start(), size), segment);
            if let Some(next) = segment.next() {
                prop_assert_eq!(next.start(), segment.end());
                prop_assert!(segment < next && segment.to_string() < next.to_string());
            }
        }

        #[test]
        fn any_text_is_safe(text in "\\PC{0,30}", size in sizes()) {
            let _ = (text.parse::<Lsn>(), text.parse::<Timeline>(), WalSegment::parse(&text, size));
        }
    }
}
