//! `[[schedule]]`, and the schedules that there are when nobody wrote any.

use std::collections::BTreeSet;

use super::StanzaConfig;
use super::reader::Reader;
use super::sections::{Switch, span};
use crate::domain::schedule::{Cron, Schedule, ScheduleKind, ScheduleName};
use crate::domain::{RepoKey, StanzaName};

/// What is configured of schedules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulesConfig {
    /// Those of the file.
    pub written: Vec<Schedule>,
    /// Whether there is a weekly full and a daily diff when none is written.
    pub by_default: Switch,
}

pub(super) fn schedules(reader: &mut Reader<'_>, stanzas: &[StanzaConfig]) -> SchedulesConfig {
    let by_default = reader.parse("default_schedule", "on").unwrap_or(Switch::On);
    let mut written = Vec::new();
    let mut names = BTreeSet::new();
    for index in 0..reader.tables("schedule") {
        let Some(schedule) = schedule(reader, index, stanzas) else { continue };
        if !names.insert(schedule.name.clone()) {
            let key = format!("schedule[{index}].name");
            reader.error(&key, &format!("{} is named twice", schedule.name));
        }
        written.push(schedule);
    }
    SchedulesConfig { written, by_default }
}

fn schedule(reader: &mut Reader<'_>, index: usize, stanzas: &[StanzaConfig]) -> Option<Schedule> {
    let key = |field: &str| format!("schedule[{index}].{field}");
    let name = required::<ScheduleName>(reader, &key("name"));
    let first = stanzas.first().map_or("main", |stanza| stanza.name.as_str());
    let stanza = reader.parse::<StanzaName>(&key("stanza"), first);
    let stanza = stanza.filter(|stanza| {
        let known = stanzas.iter().any(|known| known.name == *stanza);
        if !known {
            reader.error(&key("stanza"), &format!("there is no stanza {stanza}"));
        }
        known
    });
    let kind = required::<ScheduleKind>(reader, &key("type"));
    let cron = required::<Cron>(reader, &key("cron"));
    let timezone = reader.parse(&key("timezone"), "UTC");
    let missed = reader.parse(&key("missed"), "run-once");
    let within = span(reader, &key("within"), "6h");
    let jitter = span(reader, &key("jitter"), "0s");
    let retries = reader.get::<u16>(&key("retries"), 3);
    let repo = match reader.get_if_any::<u16>(&key("repo")).map(|n| RepoKey::try_from(u32::from(n)))
    {
        None => None,
        Some(Ok(repo)) => Some(repo),
        Some(Err(error)) => {
            reader.error(&key("repo"), &error.to_string());
            None
        }
    };
    let schedule = Schedule {
        repo,
        timezone: timezone?,
        missed: missed?,
        within,
        jitter,
        retries: u8::try_from(retries).unwrap_or(u8::MAX),
        ..Schedule::new(name?, stanza?, kind?, cron?)
    };
    if let Err(invalid) = schedule.check() {
        reader.error(&key(invalid.field), &invalid.message);
    }
    Some(schedule)
}

fn required<T>(reader: &mut Reader<'_>, key: &str) -> Option<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let Some(text) = reader.get_if_any::<String>(key) else {
        if !reader.has_error(key) {
            reader.error(key, "is missing");
        }
        return None;
    };
    text.parse().map_err(|error: T::Err| reader.error(key, &error.to_string())).ok()
}
