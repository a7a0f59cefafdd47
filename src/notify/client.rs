//! One attempt at delivering, over HTTP or by a program, and what came of it.
//!
//! Clients are made when the first request needs one: without targets nothing of them is in memory.
//! They follow no redirects and use no proxy of the environment, and connect only where
//! [`super::guard`] allows. No URL is in any error, and of an answer's text [`super::redact`] takes
//! out what tells one: it is a secret.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, redirect};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;

use super::command;
use super::guard::{self, GuardedResolver};
use super::message::{self, Outgoing, Post};
use super::redact::redacted;
use crate::config::{Channel, NotifyConfig, SecretUrl};
use crate::telemetry;

/// How much of an answer is read, to say why a receiver refuses.
const ANSWER_LIMIT: usize = 4096;
/// The most characters of it that are told.
const ANSWER_MAX_CHARS: usize = 300;

/// How long a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To connect.
    pub connect: Duration,
    /// In all.
    pub whole: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(5), whole: Duration::from_secs(15) }
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempt {
    /// Whether it arrived.
    pub delivered: bool,
    /// The status of the answer, when there was one.
    pub status: Option<u16>,
    /// Why it did not arrive.
    pub error: Option<String>,
    /// The receiver got it and will not have it: it will say the same again.
    pub refused: bool,
    /// When the receiver wants to be tried again.
    pub retry_after: Option<Duration>,
}

impl Attempt {
    /// One that failed.
    pub(super) fn failed(error: String) -> Self {
        Self { error: Some(error), ..Self::default() }
    }

    /// One that arrived.
    pub(super) fn delivered() -> Self {
        Self { delivered: true, ..Self::default() }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
enum NoClient {
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    #[error("the HTTP client cannot be made")]
    Http(#[source] reqwest::Error),
}

/// Which client: whether it speaks TLS, and whether it may connect to private addresses.
type Which = (bool, bool);

/// Makes attempts.
#[derive(Debug)]
pub(super) struct Sender {
    timeouts: Timeouts,
    command_env: BTreeMap<String, String>,
    clients: Mutex<BTreeMap<Which, Client>>,
}

impl Sender {
    pub(super) fn new(timeouts: Timeouts, command_env: BTreeMap<String, String>) -> Self {
        Self { timeouts, command_env, clients: Mutex::default() }
    }

    /// One attempt. Nothing in what comes of it tells a secret of the target.
    pub(super) async fn send(&self, target: &NotifyConfig, outgoing: &Outgoing<'_>) -> Attempt {
        let attempt = self.attempt(target, outgoing).await;
        let error = attempt.error.map(|error| redacted(&target.channel, &error));
        Attempt { error, ..attempt }
    }

    async fn attempt(&self, target: &NotifyConfig, outgoing: &Outgoing<'_>) -> Attempt {
        match (&target.channel, message::post(&target.channel, outgoing)) {
            (Channel::Command(words), _) => {
                command::run(words, self.command_env.clone(), outgoing).await
            }
            (
                Channel::Webhook { url, .. }
                | Channel::Slack { url }
                | Channel::Discord { url }
                | Channel::Ntfy { url, .. }
                | Channel::Healthchecks { url, .. },
                Some(post),
            ) => self.post(target, url, post, outgoing.at).await,
            (
                Channel::Webhook { .. }
                | Channel::Slack { .. }
                | Channel::Discord { .. }
                | Channel::Ntfy { .. }
                | Channel::Healthchecks { .. },
                None,
            ) => Attempt::failed("a bug: there is nothing to send".to_owned()),
        }
    }

    async fn post(
        &self,
        target: &NotifyConfig,
        url: &SecretUrl,
        post: Post,
        now: Timestamp,
    ) -> Attempt {
        let allow_private = target.allow_private;
        // What is written as an address is not resolved, so nobody else asks.
        if let Some(Err(forbidden)) = url.address().map(|ip| guard::check(ip, allow_private)) {
            return Attempt::failed(forbidden.to_string());
        }
        let client = match self.client((url.expose().scheme() == "https", allow_private)) {
            Ok(client) => client,
            Err(error) => return Attempt::failed(telemetry::chain(&error)),
        };
        let mut request = client.post(post.url).body(post.body);
        for (name, value) in post.headers {
            match HeaderValue::from_bytes(value.as_bytes()) {
                Ok(value) => request = request.header(name, value),
                Err(_) => return Attempt::failed(format!("the header {name} cannot be sent")),
            }
        }
        match request.send().await {
            Ok(response) => judge(response, &target.channel, now).await,
            Err(error) => {
                let timed_out = error.is_timeout();
                let error = telemetry::chain(&error.without_url());
                let whole = self.timeouts.whole.as_secs_f32();
                let late = format!("no answer within {whole} s ({error})");
                Attempt::failed(if timed_out { late } else { error })
            }
        }
    }

    fn client(&self, which: Which) -> Result<Client, NoClient> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&which) {
            return Ok(client.clone());
        }
        let (tls, allow_private) = which;
        let client = Client::builder()
            .tls_backend_preconfigured(tls_config(tls)?)
            .dns_resolver(GuardedResolver { allow_private })
            .redirect(redirect::Policy::none())
            .no_proxy()
            .connect_timeout(self.timeouts.connect)
            .timeout(self.timeouts.whole)
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(30))
            .user_agent(concat!("headrest/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(NoClient::Http)?;
        clients.insert(which, client.clone());
        Ok(client)
    }
}

/// With the system's certificates, or for a client that needs none with none: they take memory.
fn tls_config(needed: bool) -> Result<ClientConfig, NoClient> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(NoClient::Tls)?;
    if !needed {
        let nobody = RootCertStore::empty();
        return Ok(builder.with_root_certificates(nobody).with_no_client_auth());
    }
    Ok(builder.with_platform_verifier().map_err(NoClient::Tls)?.with_no_client_auth())
}

/// What an answer means.
async fn judge(response: Response, channel: &Channel, now: Timestamp) -> Attempt {
    let status = response.status();
    let code = Some(status.as_u16());
    if status.is_success() {
        return Attempt { status: code, ..Attempt::delivered() };
    }
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| asked_for(value, now));
    let error = if status.is_redirection() {
        format!("answered {status}: redirects are not followed, give the URL that it leads to")
    } else {
        match beginning(response, channel).await {
            text if text.is_empty() => format!("answered {status}"),
            text => format!("answered {status}: {text}"),
        }
    };
    // Request timeout, too early, too many requests: these ask for another try.
    let refused = status.is_client_error() && !matches!(status.as_u16(), 408 | 425 | 429);
    Attempt { delivered: false, status: code, error: Some(error), refused, retry_after }
}

/// `Retry-After`: seconds, or a date.
fn asked_for(value: &HeaderValue, now: Timestamp) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Duration::try_from(at.duration_since(now)).ok()
}

/// The beginning of an answer's body, in one line. It is cut after secrets were taken out: half of
/// one would not be known for what it is.
async fn beginning(mut response: Response, channel: &Channel) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk[..chunk.len().min(ANSWER_LIMIT - bytes.len())]);
        if bytes.len() >= ANSWER_LIMIT {
            break;
        }
    }
    let text = redacted(channel, &String::from_utf8_lossy(&bytes));
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(ANSWER_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "2026-11-20T14:00:00Z".parse().unwrap();
        let cases = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Fri, 20 Nov 2026 14:05:00 GMT", Some(300)),
            ("Fri, 20 Nov 2026 13:00:00 GMT", None),
            ("soon", None),
            ("-1", None),
        ];
        for (text, seconds) in cases {
            let found = asked_for(&HeaderValue::from_static(text), now);
            assert_eq!(found, seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn tls_needs_no_provider_of_the_whole_process() {
        assert!(tls_config(false).is_ok());
        assert!(tls_config(true).is_ok());
        assert!(rustls::crypto::CryptoProvider::get_default().is_none());
    }
}
