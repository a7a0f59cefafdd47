//! What is secret of a target, taken out of texts that are kept or shown.
//!
//! Many servers repeat the path that was asked for, and a hook's path is its password.

use secrecy::{ExposeSecret as _, SecretString};

use crate::config::{Channel, SecretUrl};

/// Shorter parts of a URL are words, not secrets: `api`, `hooks`.
const SECRET_FROM_CHARS: usize = 6;
/// What is shorter than this cannot be found among words.
const TOLD_BY_CHARS: usize = 3;
/// What stands for a secret.
const HIDDEN: &str = "…";

/// `text` without anything that is secret of the target.
pub(super) fn redacted(channel: &Channel, text: &str) -> String {
    let mut secrets = secrets(channel);
    // The longest first: a part must not break the whole.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.dedup();
    secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, HIDDEN))
}

/// Every text by which a secret may be told.
fn secrets(channel: &Channel) -> Vec<String> {
    let mut found = match channel {
        Channel::Webhook { url, secret } => of_url(url).chain(exposed(secret.as_ref())).collect(),
        Channel::Ntfy { url, token } => of_url(url).chain(exposed(token.as_ref())).collect(),
        Channel::Slack { url } | Channel::Discord { url } | Channel::Healthchecks { url, .. } => {
            of_url(url).collect::<Vec<_>>()
        }
        Channel::Command(_) => Vec::new(),
    };
    let decoded: Vec<_> = found.iter().map(|secret| percent_decoded(secret)).collect();
    found.extend(decoded);
    // As it stands in JSON, and in a page.
    let written: Vec<_> = found
        .iter()
        .flat_map(|secret| [secret.replace('/', "\\/"), secret.replace('&', "&amp;")])
        .collect();
    found.extend(written);
    found.retain(|secret| secret.chars().count() >= TOLD_BY_CHARS);
    found
}

fn exposed(secret: Option<&SecretString>) -> impl Iterator<Item = String> {
    secret.map(|secret| secret.expose_secret().to_owned()).into_iter()
}

fn of_url(url: &SecretUrl) -> impl Iterator<Item = String> {
    let url = url.expose();
    let long = |text: &&str| text.chars().count() >= SECRET_FROM_CHARS;
    let path = url.path().trim_end_matches('/');
    let whole = [Some(path), url.query(), url.password()];
    let segments = path.split('/').filter(long);
    let values = url.query().into_iter().flat_map(|query| query.split(['&', '='])).filter(long);
    let name = Some(url.username()).filter(long);
    whole
        .into_iter()
        .flatten()
        .chain(segments)
        .chain(values)
        .chain(name)
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

/// `%41` is an A; what is no such thing stays as it is.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 3).filter(|_| *byte == b'%');
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        let decoded = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        out.push(decoded.unwrap_or(*byte));
        at += if decoded.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_of_a_url_is_left_however_it_is_told() {
        let url = "https://user:pa55@h.test/services/T00/B%2D0000/s3%63ret-t0ken/?key=q1w2e3&a=b";
        let channel = Channel::Webhook {
            url: url.parse().unwrap(),
            secret: Some("signing-key".to_owned().into()),
        };
        let cases = [
            ("no /services/T00/B%2D0000/s3%63ret-t0ken here", "no … here"),
            ("no /services/T00/B-0000/s3cret-t0ken/fail here", "no …/fail here"),
            (r#"{"path":"\/services\/T00\/B-0000\/s3cret-t0ken"}"#, r#"{"path":"…"}"#),
            ("hook s3cret-t0ken or s3%63ret-t0ken", "hook … or …"),
            ("?key=q1w2e3&a=b and key=q1w2e3&amp;a=b", "?… and …"),
            ("the value q1w2e3, pa55 and signing-key", "the value …, … and …"),
            ("user T00 b may be told", "user T00 b may be told"),
        ];
        for (text, expect) in cases {
            assert_eq!(redacted(&channel, text), expect, "{text}");
        }
    }

    #[test]
    fn a_token_is_hidden_and_a_short_path_hides_nothing_else() {
        let token = Some("tk_123".to_owned().into());
        let channel = Channel::Ntfy { url: "https://h.test/".parse().unwrap(), token };
        assert_eq!(redacted(&channel, "401 / tk_123 a/b"), "401 / … a/b");
        let command = Channel::Command(vec!["x".to_owned()]);
        assert_eq!(redacted(&command, "as it is"), "as it is");
    }

    #[test]
    fn what_is_no_percent_code_stays() {
        for (text, expect) in [("a%41%", "aA%"), ("%4", "%4"), ("%zz%ä", "%zz%ä"), ("", "")] {
            assert_eq!(percent_decoded(text), expect);
        }
    }
}
