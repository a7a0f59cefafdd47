//! What each kind of target is sent, as a value.
//!
//! Every text of an event is somebody's input (names, messages of pgBackRest, of PostgreSQL), so
//! each format escapes what it would act upon and cuts what it would not take.

use std::fmt::Write as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use sha2::Sha256;

use crate::config::{Channel, SecretUrl};
use crate::domain::event::{Event, EventKind, Severity};

/// Slack recommends 4,000 characters at most.
const SLACK_MAX_CHARS: usize = 3500;
/// Discord takes 2,000 characters.
const DISCORD_MAX_CHARS: usize = 1900;
/// ntfy makes an attachment of what is longer than 4,096 bytes.
const NTFY_MAX_BYTES: usize = 4000;

/// A notification on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outgoing<'a> {
    /// The same over all attempts.
    pub(super) delivery: &'a str,
    /// What it tells.
    pub(super) event: &'a Event,
    /// How often the same happened again while it waited.
    pub(super) repeats: u32,
    /// When this attempt is made.
    pub(super) at: Timestamp,
}

/// A POST request.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) url: Url,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

/// The body of a webhook, and what a program gets.
#[derive(Debug, Serialize)]
struct Body<'a> {
    /// Drop a message whose id was seen before.
    delivery: &'a str,
    event: EventKind,
    severity: Severity,
    at: Timestamp,
    stanza: Option<&'a str>,
    subject: &'a str,
    summary: &'a str,
    detail: &'a str,
    job: Option<String>,
    schedule: Option<&'a str>,
    /// How often the same happened again before this was delivered.
    repeats: u32,
}

/// The message as JSON.
pub(super) fn json(outgoing: &Outgoing<'_>) -> String {
    let event = outgoing.event;
    let body = Body {
        delivery: outgoing.delivery,
        event: event.kind,
        severity: event.severity,
        at: event.at,
        stanza: event.stanza.as_ref().map(|stanza| stanza.as_str()),
        subject: &event.subject,
        summary: &event.summary,
        detail: &event.detail,
        job: event.job.map(|job| job.to_string()),
        schedule: event.schedule.as_deref(),
        repeats: outgoing.repeats,
    };
    // Strings and numbers always serialize.
    serde_json::to_string(&body).unwrap_or_default()
}

/// The request for a target; `None` for one that is not reached by HTTP.
pub(super) fn post(channel: &Channel, outgoing: &Outgoing<'_>) -> Option<Post> {
    Some(match channel {
        Channel::Webhook { url, secret } => webhook(url, secret.as_ref(), outgoing),
        Channel::Slack { url } => {
            let text = text(outgoing, "*", &mrkdwn, SLACK_MAX_CHARS);
            json_post(url, &serde_json::json!({ "text": text }))
        }
        Channel::Discord { url } => {
            let text = text(outgoing, "**", &markdown, DISCORD_MAX_CHARS);
            let nobody = serde_json::json!({ "parse": [] });
            json_post(url, &serde_json::json!({ "content": text, "allowed_mentions": nobody }))
        }
        Channel::Ntfy { url, token } => ntfy(url, token.as_ref(), outgoing),
        Channel::Healthchecks { url, .. } => healthchecks(url, outgoing),
        Channel::Command(_) => return None,
    })
}

/// What a dead man's switch is told of an event: a part of its path, empty for success.
pub(super) fn ping(kind: EventKind) -> Option<&'static str> {
    match kind {
        EventKind::BackupStarted
        | EventKind::RestoreStarted
        | EventKind::VerifyStarted
        | EventKind::CheckStarted
        | EventKind::ExpireStarted => Some("start"),
        EventKind::BackupSucceeded
        | EventKind::BackupWarned
        | EventKind::RestoreSucceeded
        | EventKind::RestoreWarned
        | EventKind::DrillSucceeded
        | EventKind::VerifySucceeded
        | EventKind::CheckSucceeded
        | EventKind::ExpireSucceeded => Some(""),
        EventKind::BackupFailed
        | EventKind::BackupMissed
        | EventKind::BackupCancelled
        | EventKind::BackupInterrupted
        | EventKind::RestoreFailed
        | EventKind::RestoreCancelled
        | EventKind::RestoreInterrupted
        | EventKind::DrillFailed
        | EventKind::VerifyFailed
        | EventKind::CheckFailed
        | EventKind::ExpireFailed
        | EventKind::ScheduleMissed
        | EventKind::ScheduleFailed => Some("fail"),
        // Written down there, and neither good nor bad news.
        EventKind::Test => Some("log"),
        EventKind::RestoreWaiting
        | EventKind::WalFailing
        | EventKind::WalRecovered
        | EventKind::WalGap
        | EventKind::RepoUnavailable
        | EventKind::RepoRecovered
        | EventKind::ProcessCrashed
        | EventKind::ProcessRecovered
        | EventKind::HealthChanged => None,
    }
}

fn json_post(url: &SecretUrl, body: &serde_json::Value) -> Post {
    Post {
        url: url.expose().clone(),
        headers: vec![("content-type", "application/json".to_owned())],
        body: body.to_string(),
    }
}

fn webhook(url: &SecretUrl, secret: Option<&SecretString>, outgoing: &Outgoing<'_>) -> Post {
    let body = json(outgoing);
    let timestamp = outgoing.at.as_second().to_string();
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("headrest-event", outgoing.event.kind.to_string()),
        ("headrest-delivery", outgoing.delivery.to_owned()),
        ("headrest-timestamp", timestamp.clone()),
    ];
    let signature = secret.and_then(|secret| signature(secret, &timestamp, &body));
    headers.extend(signature.map(|signature| ("headrest-signature", signature)));
    Post { url: url.expose().clone(), headers, body }
}

/// `v1=` and HMAC-SHA256 over the time of sending, a dot and the body, in hexadecimal. The time is
/// in it so that an old message cannot be sent again by somebody else.
fn signature(secret: &SecretString, timestamp: &str, body: &str) -> Option<String> {
    // HMAC takes keys of every length.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).ok()?;
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    let mut text = "v1=".to_owned();
    for byte in mac.finalize().into_bytes() {
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}

fn ntfy(url: &SecretUrl, token: Option<&SecretString>, outgoing: &Outgoing<'_>) -> Post {
    let event = outgoing.event;
    let (priority, tags) = match event.severity {
        Severity::Critical => ("5", "rotating_light"),
        Severity::Warning => ("4", "warning"),
        Severity::Info => ("3", "information_source"),
    };
    let mut headers = vec![
        // A summary has no line breaks; ntfy reads UTF-8 in headers.
        ("title", event.summary.clone()),
        ("priority", priority.to_owned()),
        ("tags", format!("{tags},{}", event.kind)),
    ];
    let bearer = token.map(|token| format!("Bearer {}", token.expose_secret()));
    headers.extend(bearer.map(|bearer| ("authorization", bearer)));
    let mut body = if event.detail.is_empty() { &event.summary } else { &event.detail }.clone();
    body.push_str(&again(outgoing.repeats));
    while body.len() > NTFY_MAX_BYTES {
        body.pop();
    }
    Post { url: url.expose().clone(), headers, body }
}

fn healthchecks(url: &SecretUrl, outgoing: &Outgoing<'_>) -> Post {
    let mut url = url.expose().clone();
    let part = ping(outgoing.event.kind).unwrap_or("log");
    if !part.is_empty()
        && let Ok(mut path) = url.path_segments_mut()
    {
        path.pop_if_empty().push(part);
    }
    let event = outgoing.event;
    Post {
        url,
        headers: vec![("content-type", "text/plain; charset=utf-8".to_owned())],
        body: format!("{}\n{}", event.summary, event.detail),
    }
}

/// The message for people who chat: a bold line and more below it.
fn text(
    outgoing: &Outgoing<'_>,
    bold: &str,
    escape: &dyn Fn(char, &mut String),
    most: usize,
) -> String {
    let event = outgoing.event;
    let sign = match event.severity {
        Severity::Critical => "🔴",
        Severity::Warning => "🟠",
        Severity::Info => "🔵",
    };
    let mut out = format!("{sign} {bold}");
    event.summary.chars().for_each(|c| escape(c, &mut out));
    out.push_str(bold);
    let end = format!("{}\n{}", again(outgoing.repeats), event.kind);
    let mut left = most.saturating_sub(out.chars().count() + end.chars().count() + 2);
    if !event.detail.is_empty() {
        out.push('\n');
    }
    for c in event.detail.chars() {
        let mut escaped = String::new();
        escape(c, &mut escaped);
        let Some(rest) = left.checked_sub(escaped.chars().count()) else {
            out.push('…');
            break;
        };
        left = rest;
        out.push_str(&escaped);
    }
    out + &end
}

fn again(repeats: u32) -> String {
    match repeats {
        0 => String::new(),
        1 => "\nOnce more since.".to_owned(),
        more => format!("\n{more} times more since."),
    }
}

/// Slack's rule: these three characters and no others.
fn mrkdwn(c: char, out: &mut String) {
    match c {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        other => out.push(other),
    }
}

fn markdown(c: char, out: &mut String) {
    if matches!(c, '\\' | '*' | '_' | '~' | '`' | '|' | '>' | '#' | '[' | ']' | '<' | '@') {
        out.push('\\');
    }
    out.push(c);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(summary: &str, detail: &str) -> Event {
        let at = "2026-11-20T14:05:00Z".parse().unwrap();
        Event::new(EventKind::BackupFailed, at, "job:1".into(), summary).with_detail(detail)
    }

    fn sent(channel: &Channel, event: &Event, repeats: u32) -> Post {
        let at = "2026-11-20T15:00:00Z".parse().unwrap();
        post(channel, &Outgoing { delivery: "d-1", event, repeats, at }).unwrap()
    }

    fn url(text: &str) -> SecretUrl {
        text.parse().unwrap()
    }

    #[test]
    fn a_signature_is_the_one_that_anybody_computes() {
        // printf '%s' '1.{}' | openssl dgst -sha256 -hmac key
        let made = signature(&"key".to_owned().into(), "1", "{}").unwrap();
        assert_eq!(made, "v1=1ba6b8171186efc613e8bcc0cbdab2748f24984d7c5a84faa2637afa0e40d224");
    }

    #[test]
    fn slack_gets_no_markup_of_others() {
        let event = event("a <!channel> & b", "<http://evil|click>");
        let post = sent(&Channel::Slack { url: url("https://h.test/x") }, &event, 2);
        let body: serde_json::Value = serde_json::from_str(&post.body).unwrap();
        let expect = "🔴 *a &lt;!channel&gt; &amp; b*\n&lt;http://evil|click&gt;\n2 times more \
                      since.\nbackup.failed";
        assert_eq!(body["text"], expect);
    }

    #[test]
    fn discord_mentions_nobody_and_takes_the_longest() {
        let event = event("@everyone", &"*".repeat(5000));
        let post = sent(&Channel::Discord { url: url("https://h.test/x") }, &event, 0);
        let body: serde_json::Value = serde_json::from_str(&post.body).unwrap();
        let content = body["content"].as_str().unwrap();
        assert!(content.starts_with("🔴 **\\@everyone**\n\\*\\*"), "{content}");
        assert!(content.ends_with("…\nbackup.failed"), "{content}");
        assert!((1000..=2000).contains(&content.chars().count()));
        assert_eq!(body["allowed_mentions"], serde_json::json!({ "parse": [] }));
    }

    #[test]
    fn ntfy_gets_headers_that_are_headers() {
        let event = event("grün\r\nX-Evil: 1", &"ä".repeat(4000));
        let token = Some("tk".to_owned().into());
        let post = sent(&Channel::Ntfy { url: url("https://h.test/topic"), token }, &event, 0);
        assert_eq!(post.headers[0], ("title", "grün  X-Evil: 1".to_owned()));
        assert_eq!(post.headers[1], ("priority", "5".to_owned()));
        assert_eq!(post.headers[3], ("authorization", "Bearer tk".to_owned()));
        assert!(post.body.len() <= 4096 && post.body.starts_with('ä'));
    }

    #[test]
    fn a_switch_is_pinged_where_it_says() {
        let cases = [
            (EventKind::BackupStarted, "https://hc.test/ping/u", "https://hc.test/ping/u/start"),
            (EventKind::BackupSucceeded, "https://hc.test/ping/u", "https://hc.test/ping/u"),
            (EventKind::BackupWarned, "https://hc.test/ping/u/", "https://hc.test/ping/u/"),
            (EventKind::BackupMissed, "https://hc.test/ping/u/", "https://hc.test/ping/u/fail"),
            (EventKind::DrillFailed, "https://hc.test/u?a=1", "https://hc.test/u/fail?a=1"),
            (EventKind::Test, "https://hc.test/u", "https://hc.test/u/log"),
        ];
        for (kind, base, expect) in cases {
            let event = Event { kind, ..event("s", "why") };
            let channel = Channel::Healthchecks { url: url(base), schedules: Vec::new() };
            let post = sent(&channel, &event, 0);
            assert_eq!((post.url.as_str(), post.body.as_str()), (expect, "s\nwhy"));
        }
    }
}
