//! Who is asking: bearer tokens for programs, sessions for browsers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use crate::config;

/// How long a session lasts without being used.
const SESSION_IDLE: Duration = Duration::from_hours(12);
/// Sessions kept at most.
const SESSIONS: usize = 1000;
/// Failed logins of one address before it must wait.
const FAILURES: u32 = 10;
/// How long failed logins are remembered.
const FAILURES_FOR: Duration = Duration::from_mins(1);

/// The name of the session cookie.
pub(crate) const COOKIE: &str = "headrest_session";

type Hash = [u8; 32];

/// Who may do what.
#[derive(Debug)]
pub struct Auth {
    /// SHA-256 of the admin token; `None` when nobody is asked.
    admin: Option<Hash>,
    sessions: Mutex<HashMap<Hash, Session>>,
    failures: Mutex<HashMap<IpAddr, (u32, Instant)>>,
}

#[derive(Debug, Clone)]
struct Session {
    csrf: String,
    last_used: Instant,
}

/// Somebody who was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Who, for the history.
    pub(crate) by: &'static str,
    /// How they were recognised.
    pub(crate) via: Via,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Via {
    /// Nobody is asked.
    Open,
    /// A token in the request.
    Token,
    /// A session; requests that change something must carry this.
    Session {
        /// The token of the session's forms.
        csrf: String,
    },
}

/// A session that was just begun.
#[derive(Debug)]
pub(crate) struct NewSession {
    /// The cookie's value.
    pub(crate) cookie: String,
}

impl Auth {
    /// Authentication as configured. `token` is the admin token.
    pub fn new(mode: config::Auth, token: Option<&SecretString>) -> Self {
        let admin = match mode {
            config::Auth::Token => token.map(|token| hash(token.expose_secret())),
            config::Auth::Off => None,
        };
        // Without a token nobody may in: a hash that no token has.
        let admin = match mode {
            config::Auth::Token => Some(admin.unwrap_or_else(|| hash(&random_token()))),
            config::Auth::Off => None,
        };
        Self { admin, sessions: Mutex::default(), failures: Mutex::default() }
    }

    /// Whether anybody is asked at all.
    pub(crate) fn is_open(&self) -> bool {
        self.admin.is_none()
    }

    /// Recognises a caller by the credentials of a request.
    pub(crate) fn caller(&self, bearer: Option<&str>, cookie: Option<&str>) -> Option<Caller> {
        if self.is_open() {
            return Some(Caller { by: "anonymous", via: Via::Open });
        }
        if let Some(token) = bearer {
            // A wrong token is not made good by a cookie.
            return self.is_admin(token).then_some(Caller { by: "admin-token", via: Via::Token });
        }
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get_mut(&hash(cookie?))?;
        if session.last_used.elapsed() > SESSION_IDLE {
            return None;
        }
        session.last_used = Instant::now();
        Some(Caller { by: "admin-token", via: Via::Session { csrf: session.csrf.clone() } })
    }

    /// Begins a session with a token.
    pub(crate) fn log_in(&self, token: &str, from: IpAddr) -> Result<NewSession, LoginError> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (_, since)| since.elapsed() < FAILURES_FOR);
        if failures.get(&from).is_some_and(|(count, _)| *count >= FAILURES) {
            return Err(LoginError::TooManyFailures);
        }
        if !self.is_admin(token.trim()) {
            failures.entry(from).or_insert((0, Instant::now())).0 += 1;
            return Err(LoginError::WrongToken);
        }
        failures.remove(&from);
        drop(failures);
        let cookie = random_token();
        let session = Session { csrf: random_token(), last_used: Instant::now() };
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.last_used.elapsed() <= SESSION_IDLE);
        if sessions.len() >= SESSIONS
            && let Some(oldest) = sessions.iter().min_by_key(|(_, s)| s.last_used).map(|(k, _)| *k)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(hash(&cookie), session);
        Ok(NewSession { cookie })
    }

    /// Ends a session.
    pub(crate) fn log_out(&self, cookie: &str) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(cookie));
    }

    fn is_admin(&self, token: &str) -> bool {
        self.admin.is_none_or(|admin| bool::from(admin.ct_eq(&hash(token))))
    }
}

/// Why a login failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginError {
    WrongToken,
    TooManyFailures,
}

/// Whether two secrets are equal, in constant time.
pub(crate) fn same(a: &str, b: &str) -> bool {
    bool::from(a.as_bytes().ct_eq(b.as_bytes()))
}

/// 256 random bits in hexadecimal.
pub fn random_token() -> String {
    let bytes: [u8; 32] = rand::rng().random();
    hex(&bytes)
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn hash(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth() -> Auth {
        Auth::new(config::Auth::Token, Some(&"correct-horse-battery".to_owned().into()))
    }

    #[test]
    fn tokens_sessions_and_nothing() {
        let auth = auth();
        assert!(auth.caller(None, None).is_none());
        assert!(auth.caller(Some("wrong"), None).is_none());
        assert_eq!(auth.caller(Some("correct-horse-battery"), None).unwrap().via, Via::Token);
        let here = IpAddr::from([127, 0, 0, 1]);
        let session = auth.log_in("correct-horse-battery\n", here).unwrap();
        assert!(auth.caller(None, Some(&session.cookie)).is_some());
        assert!(auth.caller(Some("wrong"), Some(&session.cookie)).is_none());
        auth.log_out(&session.cookie);
        assert!(auth.caller(None, Some(&session.cookie)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn failed_logins_are_limited_by_address() {
        let auth = auth();
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        for _ in 0..FAILURES {
            assert_eq!(auth.log_in("wrong", here).unwrap_err(), LoginError::WrongToken);
        }
        let limited = auth.log_in("correct-horse-battery", here).unwrap_err();
        assert_eq!(limited, LoginError::TooManyFailures);
        assert!(auth.log_in("correct-horse-battery", there).is_ok());
        tokio::time::advance(FAILURES_FOR).await;
        assert!(auth.log_in("correct-horse-battery", here).is_ok());
    }

    #[test]
    fn without_a_token_nobody_gets_in_unless_it_is_off() {
        let auth = Auth::new(config::Auth::Token, None);
        assert!(auth.caller(Some(""), None).is_none());
        let auth = Auth::new(config::Auth::Off, None);
        assert_eq!(auth.caller(None, None).unwrap().via, Via::Open);
    }
}
