//! A target that is a program: it gets the event in its environment, its exit code is the answer.

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::Attempt;
use super::message::{self, Outgoing};
use crate::process::{Program, capture};

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most characters of its standard error that are told.
const ERROR_MAX_CHARS: usize = 300;

/// Runs it once.
pub(super) async fn run(
    words: &[String],
    env: BTreeMap<String, String>,
    outgoing: &Outgoing<'_>,
) -> Attempt {
    let Some((program, args)) = words.split_first() else {
        return Attempt::failed("no program is configured".to_owned());
    };
    let program = Program {
        args: args.to_vec(),
        env: env.into_iter().chain(variables(outgoing)).collect(),
        ..Program::new(program)
    };
    match capture(program, PATIENCE).await {
        Ok(captured) if captured.end.is_success() => Attempt::delivered(),
        Ok(captured) => {
            let said: String = captured.stderr.chars().take(ERROR_MAX_CHARS).collect();
            let said = if said.is_empty() { said } else { format!(": {said}") };
            Attempt::failed(format!("the program {}{said}", captured.end))
        }
        Err(error) => Attempt::failed(crate::telemetry::chain(&error)),
    }
}

/// The event, whole and in parts.
fn variables(outgoing: &Outgoing<'_>) -> impl Iterator<Item = (String, String)> {
    let event = outgoing.event;
    let text = |value: Option<String>| value.unwrap_or_default();
    [
        ("HEADREST_EVENT", message::json(outgoing)),
        ("HEADREST_EVENT_DELIVERY", outgoing.delivery.to_owned()),
        ("HEADREST_EVENT_KIND", event.kind.to_string()),
        ("HEADREST_EVENT_SEVERITY", event.severity.to_string()),
        ("HEADREST_EVENT_AT", event.at.to_string()),
        ("HEADREST_EVENT_STANZA", text(event.stanza.as_ref().map(ToString::to_string))),
        ("HEADREST_EVENT_SUBJECT", event.subject.clone()),
        ("HEADREST_EVENT_SUMMARY", event.summary.clone()),
        ("HEADREST_EVENT_DETAIL", event.detail.clone()),
        ("HEADREST_EVENT_JOB", text(event.job.map(|job| job.to_string()))),
        ("HEADREST_EVENT_SCHEDULE", text(event.schedule.clone())),
    ]
    .into_iter()
    // No variable can hold one, and no program would start.
    .map(|(name, value)| (name.to_owned(), value.replace('\0', " ")))
}
