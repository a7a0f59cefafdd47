//! The moments of a schedule: a cron expression in a time zone.
//!
//! Five fields as in cron(5), or one of `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`,
//! `@yearly`, `@annually`. Where day-of-month and day-of-week are both restricted, either counts.
//!
//! When clocks are changed, two kinds are told apart, as cron(8) of Debian does. A schedule of
//! *every* hour (`*/15 * * * *`) follows the time that really passes: an hour that comes twice has
//! its moments twice, one that is left out has none. Every other schedule (`30 2 * * *`) has each
//! of its moments once a day: one that is left out in spring comes at the first instant after the
//! gap, one that comes twice in autumn counts the first time.

use std::fmt;
use std::str::FromStr;

use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::super::stanza::shown;

/// The names of the fields, for messages.
const FIELDS: [&str; 5] = ["minute", "hour", "day of month", "month", "day of week"];
/// From here on an expression must fire at some time. Leap days come every eight years at least.
const EPOCH: DateTime = jiff::civil::datetime(2000, 1, 1, 0, 0, 0, 0);
const LONGEST_EXPRESSION: usize = 200;

/// A cron expression, with the text that it was given as.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    text: String,
    pattern: croner::Cron,
    every_hour: bool,
}

/// Text that is no cron expression, or one that never fires.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{shown}\" is not a cron expression: {why}")]
pub struct InvalidCron {
    shown: String,
    why: String,
}

impl Cron {
    /// The expression as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// In words, e.g. "At 02:00, on Sunday".
    pub fn in_words(&self) -> String {
        self.pattern.describe().trim_end_matches('.').to_owned()
    }

    /// The first moment after `after`; `None` beyond what a calendar holds.
    pub fn next(&self, after: Timestamp, zone: &Zone) -> Option<Timestamp> {
        let here = after.to_zoned(zone.0.clone());
        if self.every_hour {
            let next = self.pattern.find_next_occurrence(&here, false).ok()?;
            return Some(next.timestamp());
        }
        // On the clock of the wall, and from there back to the line of time.
        let mut wall = here.datetime();
        loop {
            wall = self.pattern.find_next_occurrence(&wall, false).ok()?;
            let moment = instant_of(wall, &zone.0)?;
            if moment > after {
                return Some(moment);
            }
        }
    }
}

/// The instant of a time on the wall: the first of two, or the first after a gap.
fn instant_of(wall: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(wall).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wall).ok(),
        AmbiguousOffset::Gap { before, .. } => {
            // With the offset from before it is after the change, by less than the gap is long.
            let inside = before.to_timestamp(wall).ok()?;
            let just_after = inside.checked_add(SignedDuration::from_nanos(1)).ok()?;
            zone.preceding(just_after).next().map(|change| change.timestamp())
        }
    }
}

impl FromStr for Cron {
    type Err = InvalidCron;

    fn from_str(text: &str) -> Result<Self, InvalidCron> {
        let text = text.trim();
        let refuse = |why: String| InvalidCron { shown: shown(text), why };
        if text.len() > LONGEST_EXPRESSION {
            return Err(refuse(format!("it has more than {LONGEST_EXPRESSION} characters")));
        }
        let parser =
            CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let expression = if text.starts_with('@') {
            let known = alias(text).ok_or_else(|| {
                refuse(
                    "known are @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"
                        .to_owned(),
                )
            })?;
            known.to_owned()
        } else {
            let fields: Vec<&str> = text.split_whitespace().collect();
            if fields.len() != FIELDS.len() {
                let names = FIELDS.join(", ");
                return Err(refuse(format!("it has {} fields, not 5: {names}", fields.len())));
            }
            for (at, name) in FIELDS.iter().enumerate() {
                let mut alone = ["*"; 5];
                alone[at] = fields[at];
                if let Err(error) = parser.parse(&alone.join(" ")) {
                    let field = shown(fields[at]);
                    return Err(refuse(format!("{name} \"{field}\": {}", plain(&error))));
                }
            }
            fields.join(" ")
        };
        let pattern = parser.parse(&expression).map_err(|error| refuse(plain(&error)))?;
        if pattern.find_next_occurrence(&EPOCH, true).is_err() {
            return Err(refuse("there is no such day, so it never fires".to_owned()));
        }
        let hours = expression.split(' ').nth(1).unwrap_or("*");
        let hours =
            parser.parse(&format!("0 {hours} * * *")).map_err(|error| refuse(plain(&error)))?;
        let every_hour = (0..24).all(|hour| {
            let at = EPOCH.with().hour(hour).build();
            at.is_ok_and(|at| hours.is_time_matching(&at).unwrap_or(false))
        });
        Ok(Self { text: text.to_owned(), pattern, every_hour })
    }
}

fn alias(text: &str) -> Option<&'static str> {
    match text {
        "@hourly" => Some("0 * * * *"),
        "@daily" | "@midnight" => Some("0 0 * * *"),
        "@weekly" => Some("0 0 * * 0"),
        "@monthly" => Some("0 0 1 * *"),
        "@yearly" | "@annually" => Some("0 0 1 1 *"),
        _ => None,
    }
}

/// What the parser says, without its own name for what it is about.
fn plain(error: &croner::errors::CronError) -> String {
    let text = error.to_string();
    text.split_once(": ").map_or(text.as_str(), |(_, said)| said).trim_end_matches('.').to_owned()
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Cron {}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cron({:?})", self.text)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Cron {
    type Error = InvalidCron;
    fn try_from(text: String) -> Result<Self, InvalidCron> {
        text.parse()
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> Self {
        cron.text
    }
}

/// A time zone of the IANA database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(TimeZone);

/// Text that is no zone's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a time zone of this machine's database, such as Europe/Berlin or UTC")]
pub struct InvalidZone(String);

impl Zone {
    /// UTC.
    pub fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// The zone itself.
    pub fn tz(&self) -> &TimeZone {
        &self.0
    }
}

impl FromStr for Zone {
    type Err = InvalidZone;
    fn from_str(text: &str) -> Result<Self, InvalidZone> {
        if text == "UTC" {
            return Ok(Self::utc());
        }
        let refused = || InvalidZone(shown(text));
        let zone = TimeZone::get(text).map_err(|_| refused())?;
        // Without a name it could not be written down again.
        if zone.iana_name().is_some() { Ok(Self(zone)) } else { Err(refused()) }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TryFrom<String> for Zone {
    type Error = InvalidZone;
    fn try_from(text: String) -> Result<Self, InvalidZone> {
        text.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.name().to_owned()
    }
}

#[cfg(test)]
mod tests;
