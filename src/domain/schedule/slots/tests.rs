//! A year of moments, against a walk over every minute of it.

use std::collections::BTreeSet;

use jiff::civil::Weekday;
use jiff::{SignedDuration, Timestamp, ToSpan as _};
use proptest::prelude::*;

use super::*;

const ZONES: [&str; 5] =
    ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "America/Santiago"];

fn zone(name: &str) -> Zone {
    name.parse().unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn all(cron: &Cron, zone: &Zone, from: Timestamp, to: Timestamp) -> Vec<Timestamp> {
    let mut moments = Vec::new();
    let mut last = from;
    while let Some(next) = cron.next(last, zone).filter(|next| *next < to) {
        assert!(next > last, "{cron} in {zone} goes back from {last} to {next}");
        moments.push(next);
        last = next;
    }
    moments
}

/// A pattern by its own means: which minutes, hours and weekdays count.
#[derive(Debug, Clone)]
struct Plain {
    minutes: BTreeSet<i8>,
    hours: BTreeSet<i8>,
    weekdays: BTreeSet<i8>,
}

impl Plain {
    fn cron(&self) -> Cron {
        let list = |numbers: &BTreeSet<i8>| {
            numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        };
        let days = if self.weekdays.len() == 7 { "*".to_owned() } else { list(&self.weekdays) };
        format!("{} {} * * {days}", list(&self.minutes), list(&self.hours)).parse().unwrap()
    }

    fn holds(&self, wall: DateTime) -> bool {
        self.minutes.contains(&wall.minute())
            && self.hours.contains(&wall.hour())
            && self.weekdays.contains(&weekday(wall.weekday()))
    }
}

/// Every minute is looked at: what the wall shows, whether it showed that before, and which minutes
/// it left out.
fn walk(schedules: &[Plain], zone: &Zone, from: Timestamp, to: Timestamp) -> Vec<Vec<Timestamp>> {
    let mut moments = vec![Vec::new(); schedules.len()];
    let mut latest: Option<DateTime> = None;
    let mut before: Option<DateTime> = None;
    let mut now = from;
    while now < to {
        let wall = zone.tz().to_datetime(now);
        let again = latest.is_some_and(|latest| wall <= latest);
        let mut left_out = Vec::new();
        let mut next = before.map(|before| before.checked_add(1.minute()).unwrap());
        while let Some(skipped) = next.filter(|skipped| *skipped < wall) {
            left_out.push(skipped);
            next = Some(skipped.checked_add(1.minute()).unwrap());
        }
        for (schedule, moments) in schedules.iter().zip(&mut moments) {
            let every_hour = schedule.hours.len() == 24;
            let fires = schedule.holds(wall) && (every_hour || !again);
            let made_up = !every_hour && left_out.iter().any(|wall| schedule.holds(*wall));
            if (fires || made_up) && now > from {
                moments.push(now);
            }
        }
        latest = latest.max(Some(wall));
        before = Some(wall);
        now = now.checked_add(SignedDuration::from_mins(1)).unwrap();
    }
    moments
}

fn weekday(day: Weekday) -> i8 {
    day.to_sunday_zero_offset()
}

fn plain(minutes: &[i8], hours: &[i8], weekdays: &[i8]) -> Plain {
    let set = |numbers: &[i8]| numbers.iter().copied().collect();
    Plain { minutes: set(minutes), hours: set(hours), weekdays: set(weekdays) }
}

#[test]
fn a_year_in_every_zone_is_what_a_walk_over_its_minutes_finds() {
    let (every_hour, every_day): (Vec<i8>, Vec<i8>) = ((0..24).collect(), (0..7).collect());
    let schedules = [
        plain(&[30], &[2], &every_day),
        plain(&[45], &[1], &every_day),
        plain(&[0, 30], &[2, 14], &every_day),
        plain(&[15], &[2], &[0]),
        plain(&[0], &every_hour, &every_day),
    ];
    let (from, to) = (at("2025-12-31T23:59:00Z"), at("2027-01-01T00:00:00Z"));
    for name in ZONES {
        let zone = zone(name);
        let found = walk(&schedules, &zone, from, to);
        for (schedule, expect) in schedules.iter().zip(found) {
            let cron = schedule.cron();
            assert!(expect.len() >= 52, "{cron} in {name} has only {}", expect.len());
            assert_eq!(all(&cron, &zone, from, to), expect, "{cron} in {name}");
        }
    }
}

#[test]
fn the_days_on_which_clocks_are_changed() {
    // Zone, expression, a moment before, and the next three.
    let table = [
        // Left out in spring: the first instant after the gap.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-03-28T02:00:00Z",
            ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z", "2026-03-31T00:30:00Z"],
        ),
        (
            "America/New_York",
            "30 2 * * *",
            "2026-03-07T08:00:00Z",
            ["2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z", "2026-03-10T06:30:00Z"],
        ),
        (
            "Australia/Lord_Howe",
            "15 2 * * *",
            "2026-10-02T16:00:00Z",
            ["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z", "2026-10-05T15:15:00Z"],
        ),
        // Two of them in the gap are one.
        (
            "Europe/Berlin",
            "0,30 2 * * *",
            "2026-03-28T02:00:00Z",
            ["2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z", "2026-03-30T00:30:00Z"],
        ),
        // Twice in autumn: the first.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-10-24T01:00:00Z",
            ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z", "2026-10-27T01:30:00Z"],
        ),
        (
            "America/New_York",
            "30 1 * * *",
            "2026-10-31T06:00:00Z",
            ["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z", "2026-11-03T06:30:00Z"],
        ),
        (
            "Australia/Lord_Howe",
            "45 1 * * *",
            "2026-04-03T15:00:00Z",
            ["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z", "2026-04-06T15:15:00Z"],
        ),
        // Every two hours is not every hour.
        (
            "Europe/Berlin",
            "0 */2 * * *",
            "2026-03-28T23:00:00Z",
            ["2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z", "2026-03-29T04:00:00Z"],
        ),
        // Every hour follows the time that passes.
        (
            "Europe/Berlin",
            "30 * * * *",
            "2026-03-29T00:00:00Z",
            ["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z", "2026-03-29T02:30:00Z"],
        ),
        (
            "Europe/Berlin",
            "30 * * * *",
            "2026-10-25T00:00:00Z",
            ["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"],
        ),
        (
            "UTC",
            "@daily",
            "2026-03-29T00:00:00Z",
            ["2026-03-30T00:00:00Z", "2026-03-31T00:00:00Z", "2026-04-01T00:00:00Z"],
        ),
        // Either the day of the month or the weekday.
        (
            "UTC",
            "0 2 1 * SUN",
            "2026-03-29T02:00:00Z",
            ["2026-04-01T02:00:00Z", "2026-04-05T02:00:00Z", "2026-04-12T02:00:00Z"],
        ),
        (
            "UTC",
            "0 0 29 2 *",
            "2026-01-01T00:00:00Z",
            ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z", "2036-02-29T00:00:00Z"],
        ),
    ];
    for (name, cron, after, expect) in table {
        let (cron, zone): (Cron, Zone) = (cron.parse().unwrap(), zone(name));
        let mut last = at(after);
        for expect in expect {
            last = cron.next(last, &zone).unwrap();
            assert_eq!(last, at(expect), "{cron} in {name}");
        }
    }
}

#[test]
fn what_is_no_expression_is_refused_and_says_which_field() {
    let table = [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("0 0 2 * * SUN", "6 fields"),
        ("60 * * * *", "minute \"60\""),
        ("0 24 * * *", "hour \"24\""),
        ("0 0 32 * *", "day of month \"32\""),
        ("0 0 * 13 *", "month \"13\""),
        ("0 0 * * FUNDAY", "day of week \"FUNDAY\""),
        ("*/0 * * * *", "minute \"*/0\""),
        ("5-1 * * * *", "minute \"5-1\""),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 2,4,6,9,11 *", "never fires"),
        ("@reboot", "known are @hourly"),
        ("@every 5m", "known are @hourly"),
    ];
    for (text, part) in table {
        let error = text.parse::<Cron>().unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
    let long = format!("{} * * * *", "1,".repeat(200));
    assert!(long.parse::<Cron>().unwrap_err().to_string().contains("characters"));
    for text in ["Mars/Phobos", "", "CEST", "../etc/passwd", "+02:00"] {
        assert!(text.parse::<Zone>().is_err(), "{text:?}");
    }
}

#[test]
fn written_and_read_again() {
    let cron: Cron = " @weekly ".parse().unwrap();
    let json = serde_json::to_string(&(&cron, zone("Europe/Berlin"))).unwrap();
    assert_eq!(json, "[\"@weekly\",\"Europe/Berlin\"]");
    let (again, zone): (Cron, Zone) = serde_json::from_str(&json).unwrap();
    assert_eq!((again, zone.name()), (cron, "Europe/Berlin"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn around_a_change_of_clocks_any_schedule_is_what_a_walk_finds(
        minutes in proptest::collection::btree_set(0i8..60, 1..4),
        hours in prop_oneof![
            proptest::collection::btree_set(0i8..5, 1..4),
            Just((0i8..24).collect::<BTreeSet<i8>>()),
        ],
        weekdays in prop_oneof![
            proptest::collection::btree_set(0i8..7, 1..3),
            Just((0i8..7).collect::<BTreeSet<i8>>()),
        ],
        name in proptest::sample::select(ZONES.to_vec()),
        day in 0i64..365,
    ) {
        let schedule = Plain { minutes, hours, weekdays };
        let from = at("2025-12-31T12:00:00Z") + SignedDuration::from_hours(24 * day);
        // Towards the next change, if there is one.
        let zone = zone(name);
        let change = zone.tz().following(from).next().map_or(from, |change| change.timestamp());
        let change = if change.duration_since(from) < SignedDuration::from_hours(24 * 370) { change } else { from };
        let from = change - SignedDuration::from_hours(30);
        let to = change + SignedDuration::from_hours(30);
        let expect = walk(std::slice::from_ref(&schedule), &zone, from, to).remove(0);
        prop_assert_eq!(all(&schedule.cron(), &zone, from, to), expect);
    }
}
