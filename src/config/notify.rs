//! Who is told what: the `[[notify]]` tables.
//!
//! A target's URL is a secret (whoever has it can write there), so it comes from a file as well and
//! is never shown: [`SecretUrl`] tells its host alone.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;
use secrecy::SecretString;

use super::reader::Reader;
use super::sections::{StanzaConfig, duration};
use crate::domain::StanzaName;
use crate::domain::event::{EventPattern, EventPatterns, Severity};
use crate::domain::words::words;

/// Keys that only some types have.
const PARTICULAR: [&str; 8] =
    ["url", "secret", "token", "command", "events", "min_severity", "schedules", "allow_private"];
/// Ends of names that nobody can register, so that they are always of one's own network.
const OWN_ENDINGS: [&str; 8] =
    [".localhost", ".local", ".internal", ".lan", ".home.arpa", ".intranet", ".svc", ".test"];

words! {
    /// How a target is reached.
    TargetKind {
        /// JSON by POST, signed.
        Webhook = "webhook",
        /// A Slack webhook, or what takes the same (Mattermost, Rocket.Chat).
        Slack = "slack",
        /// A Discord webhook.
        Discord = "discord",
        /// A topic of ntfy.
        Ntfy = "ntfy",
        /// Pings of a dead man's switch, as of healthchecks.io.
        Healthchecks = "healthchecks",
        /// A program.
        Command = "command",
    }
}

/// A URL that must not be written anywhere.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// The URL itself, to send something there.
    pub fn expose(&self) -> &Url {
        &self.0
    }

    /// Its host, which may be shown.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// Its host as an address, where it is written as one. In whichever way (decimal, octal,
    /// hexadecimal) it is written: reading a URL makes them all alike.
    pub fn address(&self) -> Option<IpAddr> {
        self.host().trim_matches(['[', ']']).parse().ok()
    }

    /// Whether its host can only mean something in the operator's own network: an address, a name
    /// without a dot (a container's, a service's), or one with an ending that nobody can register.
    pub fn means_own_network(&self) -> bool {
        let host = self.host().trim_end_matches('.');
        self.address().is_some()
            || !host.contains('.')
            || host.ends_with(".cluster.local")
            || OWN_ENDINGS.iter().any(|ending| host.ends_with(ending))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretUrl({})", self.host())
    }
}

impl FromStr for SecretUrl {
    type Err = String;
    /// The message never repeats the text.
    fn from_str(text: &str) -> Result<Self, String> {
        let url = Url::parse(text.trim()).map_err(|error| format!("is not a URL: {error}"))?;
        match url.scheme() {
            "http" | "https" if url.host_str().is_some_and(|host| !host.is_empty()) => {
                Ok(Self(url))
            }
            _ => Err("is not a URL of http or https".to_owned()),
        }
    }
}

/// How a target is reached, with what that needs.
#[derive(Debug, Clone)]
pub enum Channel {
    /// JSON by POST.
    Webhook {
        /// Where.
        url: SecretUrl,
        /// What each message is signed with.
        secret: Option<SecretString>,
    },
    /// A Slack webhook.
    Slack {
        /// Where.
        url: SecretUrl,
    },
    /// A Discord webhook.
    Discord {
        /// Where.
        url: SecretUrl,
    },
    /// A topic of ntfy.
    Ntfy {
        /// The topic.
        url: SecretUrl,
        /// An access token.
        token: Option<SecretString>,
    },
    /// Pings of a dead man's switch.
    Healthchecks {
        /// The check's ping URL.
        url: SecretUrl,
        /// Only these schedules; all when there are none.
        schedules: Vec<String>,
    },
    /// A program and its arguments.
    Command(Vec<String>),
}

impl Channel {
    /// How it is called.
    pub fn kind(&self) -> TargetKind {
        match self {
            Self::Webhook { .. } => TargetKind::Webhook,
            Self::Slack { .. } => TargetKind::Slack,
            Self::Discord { .. } => TargetKind::Discord,
            Self::Ntfy { .. } => TargetKind::Ntfy,
            Self::Healthchecks { .. } => TargetKind::Healthchecks,
            Self::Command(_) => TargetKind::Command,
        }
    }

    /// Where it is reached, when that is by HTTP.
    pub fn url(&self) -> Option<&SecretUrl> {
        match self {
            Self::Webhook { url, .. }
            | Self::Slack { url }
            | Self::Discord { url }
            | Self::Ntfy { url, .. }
            | Self::Healthchecks { url, .. } => Some(url),
            Self::Command(_) => None,
        }
    }
}

/// A target.
#[derive(Debug, Clone)]
pub struct NotifyConfig {
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub channel: Channel,
    /// Which events it gets; when not given, what is bad and the end of that.
    pub events: Option<EventPatterns>,
    /// Only events of this stanza, and those of none.
    pub stanza: Option<StanzaName>,
    /// Only events as bad as this, or worse.
    pub min_severity: Option<Severity>,
    /// How long an event is tried to be delivered.
    pub give_up_after: Duration,
    /// Whether it may be in a private network.
    pub allow_private: bool,
}

/// Reads all targets.
pub(super) fn targets(reader: &mut Reader<'_>, stanzas: &[StanzaConfig]) -> Vec<NotifyConfig> {
    let mut targets: Vec<NotifyConfig> = Vec::new();
    for index in 0..reader.tables_or_variables("notify") {
        let key = |name: &str| format!("notify[{index}].{name}");
        let name = reader.get_if_any::<String>(&key("name")).unwrap_or_default();
        if !is_name(&name) {
            let problem = format!("{name:?} is not a name: 1 to 63 of a-z, 0-9 and -");
            reader.error(&key("name"), &problem);
        } else if targets.iter().any(|known| known.name == name) {
            reader.error(&key("name"), &format!("{name} is named twice"));
        }
        let channel = channel(reader, &key);
        let events = events(reader, &key("events"));
        let stanza: Option<StanzaName> = parsed(reader, &key("stanza"));
        if let Some(stanza) = &stanza
            && !stanzas.iter().any(|known| known.name == *stanza)
        {
            reader.error(&key("stanza"), &format!("there is no stanza {stanza}"));
        }
        let min_severity = parsed(reader, &key("min_severity"));
        let give_up_after = duration(reader, &key("give_up_after"), "72h");
        let own = channel.as_ref().and_then(Channel::url).is_some_and(SecretUrl::means_own_network);
        let allow_private = reader.get_if_any(&key("allow_private")).unwrap_or(own);
        if let Some(channel) = channel {
            refuse_what_it_has_not(reader, channel.kind(), &key);
            targets.push(NotifyConfig {
                name,
                channel,
                events,
                stanza,
                min_severity,
                give_up_after,
                allow_private,
            });
        }
    }
    targets
}

fn channel(reader: &mut Reader<'_>, key: &dyn Fn(&str) -> String) -> Option<Channel> {
    let kind: Option<TargetKind> = parsed(reader, &key("type"));
    if kind.is_none() && !reader.is_given(&key("type")) {
        let known: Vec<_> = TargetKind::ALL.iter().map(|kind| kind.as_str()).collect();
        reader.error(&key("type"), &format!("is missing; one of {}", known.join(", ")));
    }
    let text = reader.secret_or_file(&key("url"));
    let secret = reader.secret_or_file(&key("secret"));
    let token = reader.secret_or_file(&key("token"));
    let command = reader.get_if_any::<Vec<String>>(&key("command")).unwrap_or_default();
    let schedules = reader.get_if_any::<Vec<String>>(&key("schedules")).unwrap_or_default();
    let kind = kind?;
    if kind == TargetKind::Command {
        if command.first().is_none_or(String::is_empty) {
            reader.error(&key("command"), "is missing: a list of a program and its arguments");
        }
        return Some(Channel::Command(command));
    }
    let Some(text) = text else {
        // What was given and cannot be taken is told already.
        if !reader.is_given(&key("url")) && !reader.is_given(&key("url_file")) {
            reader.error(&key("url"), &format!("a {kind} target needs url or url_file"));
        }
        return None;
    };
    let url = match secrecy::ExposeSecret::expose_secret(&text).parse::<SecretUrl>() {
        Ok(url) => url,
        Err(problem) => {
            reader.error(&key("url"), &problem);
            return None;
        }
    };
    Some(match kind {
        TargetKind::Webhook => Channel::Webhook { url, secret },
        TargetKind::Slack => Channel::Slack { url },
        TargetKind::Discord => Channel::Discord { url },
        TargetKind::Ntfy => Channel::Ntfy { url, token },
        TargetKind::Healthchecks => Channel::Healthchecks { url, schedules },
        TargetKind::Command => Channel::Command(command),
    })
}

fn refuse_what_it_has_not(reader: &mut Reader<'_>, kind: TargetKind, key: &dyn Fn(&str) -> String) {
    let has: &[&str] = match kind {
        TargetKind::Webhook => &["url", "secret", "events", "min_severity", "allow_private"],
        TargetKind::Slack | TargetKind::Discord => {
            &["url", "events", "min_severity", "allow_private"]
        }
        TargetKind::Ntfy => &["url", "token", "events", "min_severity", "allow_private"],
        // It gets what belongs to schedules, all of it: a switch that misses a ping is none.
        TargetKind::Healthchecks => &["url", "schedules", "allow_private"],
        TargetKind::Command => &["command", "events", "min_severity"],
    };
    for name in PARTICULAR.iter().filter(|name| !has.contains(name)) {
        let by_file = ["url", "secret", "token"].contains(name)
            && reader.is_given(&key(&format!("{name}_file")));
        if by_file || reader.is_given(&key(name)) {
            reader.error(&key(name), &format!("a target of type {kind} has no {name}"));
        }
    }
}

fn events(reader: &mut Reader<'_>, key: &str) -> Option<EventPatterns> {
    let texts = reader.get_if_any::<Vec<String>>(key)?;
    if texts.is_empty() {
        reader.error(key, "is empty, so nothing would ever be sent; leave it out for the default");
    }
    let mut patterns = Vec::new();
    for text in texts {
        match text.parse::<EventPattern>() {
            Ok(pattern) => patterns.push(pattern),
            Err(error) => reader.error(key, &error.to_string()),
        }
    }
    Some(EventPatterns(patterns))
}

fn parsed<T>(reader: &mut Reader<'_>, key: &str) -> Option<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    let text = reader.get_if_any::<String>(key)?;
    text.parse().map_err(|error: T::Err| reader.error(key, &error.to_string())).ok()
}

fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Environment, Flags};
    use super::*;

    type Pairs<'a> = &'a [(&'a str, &'a str)];

    const SLACK: &str =
        "[[notify]]\nname = \"ops\"\ntype = \"slack\"\nurl = \"http://h.test/s3cret\"\n";

    fn load(text: &str, pairs: &[(&str, &str)]) -> Result<Config, String> {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::from_text(&Flags::default(), &Environment::from_pairs(pairs), text)
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn what_is_wrong_is_told_with_its_key() {
        let hook = "[[notify]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"https://h.test/\"\n";
        let cases = [
            ("[[notify]]\nname = \"a\"".to_owned(), "notify[0].type: is missing; one of webhook"),
            ("[[notify]]\ntype = \"slack\"\nurl = \"http://h/\"".into(), "notify[0].name: \"\""),
            ("[[notify]]\nname = \"a\"\ntype = \"sms\"".into(), "notify[0].type: \"sms\" is not"),
            ("[[notify]]\nname = \"a\"\ntype = \"ntfy\"".into(), "notify[0].url: a ntfy target"),
            (
                "[[notify]]\nname = \"a\"\ntype = \"command\"".into(),
                "notify[0].command: is missing",
            ),
            (hook.replace("https", "ftp"), "notify[0].url: is not a URL of http"),
            (format!("{hook}events = [\"wal.*\", \"backup.fail\"]"), "notify[0].events: \"backup"),
            (format!("{hook}events = []"), "notify[0].events: is empty"),
            (format!("{hook}stanza = \"other\""), "notify[0].stanza: there is no stanza other"),
            (format!("{hook}min_severity = \"bad\""), "notify[0].min_severity: \"bad\" is not"),
            (format!("{hook}give_up_after = \"soon\""), "notify[0].give_up_after"),
            (format!("{hook}schedules = [\"x\"]"), "notify[0].schedules: a target of type webhook"),
            (format!("{SLACK}token = \"x\""), "notify[0].token: a target of type slack has no"),
            (
                format!("{SLACK}secret_file = \"/nowhere\""),
                "notify[0].secret: cannot read /nowhere",
            ),
            (format!("{SLACK}event = \"x\""), "notify[0].event: unknown key; did you mean"),
            (format!("{SLACK}url_file = \"/x\""), "notify[0].url: both notify[0].url and"),
            (format!("{SLACK}{SLACK}"), "notify[1].name: ops is named twice"),
        ];
        for (text, part) in cases {
            let found = load(&text, &[]).unwrap_err();
            assert!(found.contains(part), "{text} gives {found}, not {part}");
        }
    }

    #[test]
    fn urls_come_from_files_and_are_shown_nowhere() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "https://hooks.example.com/s3cret\n").unwrap();
        let path = file.path().to_str().unwrap();
        let by_file = format!("[[notify]]\nname = \"a\"\ntype = \"slack\"\nurl_file = {path:?}");
        let no_url = "[[notify]]\nname = \"a\"\ntype = \"slack\"\n";
        let all_by_variables = [
            ("HEADREST_NOTIFY__0__NAME", "a"),
            ("HEADREST_NOTIFY__0__TYPE", "slack"),
            ("HEADREST_NOTIFY__0__URL_FILE", path),
        ];
        let cases: [(&str, Pairs<'_>, &str); 4] = [
            (&by_file, &[], "hooks.example.com"),
            (no_url, &[("HEADREST_NOTIFY__0__URL_FILE", path)], "hooks.example.com"),
            (&by_file, &[("HEADREST_NOTIFY__0__URL", "http://b.test/s3cret")], "b.test"),
            ("", &all_by_variables, "hooks.example.com"),
        ];
        for (text, pairs, host) in cases {
            let config = load(text, pairs).unwrap();
            let url = config.notify[0].channel.url().unwrap();
            assert_eq!((url.host(), url.expose().path()), (host, "/s3cret"));
            assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
        }
        let wrong = SLACK.replace("http:", "http s3cret");
        assert!(!load(&wrong, &[]).unwrap_err().contains("s3cret"));
    }

    #[test]
    fn private_networks_are_allowed_where_the_url_can_mean_nothing_else() {
        let cases = [
            ("http://127.0.0.1:80/", true),
            ("http://2130706433/", true),
            ("http://[::1]/", true),
            ("http://localhost/", true),
            ("http://ntfy:8080/topic", true),
            ("http://hook.monitoring.svc.cluster.local/", true),
            ("http://nas.home.arpa/", true),
            ("https://hooks.example.com/", false),
            ("https://local.example.com/", false),
        ];
        for (url, expect) in cases {
            assert_eq!(url.parse::<SecretUrl>().unwrap().means_own_network(), expect, "{url}");
            for given in [true, false] {
                let text = SLACK.replace("http://h.test/s3cret", url);
                let config = load(&format!("{text}allow_private = {given}"), &[]).unwrap();
                assert_eq!(config.notify[0].allow_private, given);
            }
        }
    }

    #[test]
    fn the_documented_targets_load() {
        let documented = include_str!("../../docker/headrest.default.toml");
        let text: Vec<_> = documented
            .lines()
            .skip_while(|line| *line != "# [[notify]]")
            .take_while(|line| line.starts_with('#'))
            .filter_map(|line| line.strip_prefix("# "))
            .filter(|line| line.starts_with("[[") || line.contains(" = "))
            .collect();
        let directory = tempfile::tempdir().unwrap();
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "https://hooks.example.com/x").unwrap();
        let text = text.join("\n").replace("/run/secrets/", &format!("{}?", secret.display()));
        let text: Vec<_> = text
            .lines()
            .map(|line| match line.split_once('?') {
                Some((path, _)) if line.contains("_file = ") => format!("{path}\""),
                _ => line.to_owned(),
            })
            .collect();
        let config = load(&text.join("\n"), &[]).unwrap();
        let kinds: Vec<_> = config.notify.iter().map(|target| target.channel.kind()).collect();
        assert_eq!(kinds, TargetKind::ALL);
        let keys = PARTICULAR.iter().chain(&["name", "type", "stanza", "give_up_after"]);
        for key in keys {
            let written = [format!("# {key} = "), format!("# {key}_file = ")];
            assert!(written.iter().any(|line| documented.contains(line)), "{key}: not documented");
        }
    }
}
