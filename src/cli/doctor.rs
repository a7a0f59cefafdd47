//! `headrest doctor`: every check of the health by its name, for a person at a shell and for
//! whatever runs commands to monitor things.

use std::fs;
use std::process::ExitCode;

use secrecy::ExposeSecret as _;
use serde::Deserialize;

use super::{ask, print};
use crate::config::{Auth, Config, Environment};
use crate::domain::health::Level;

/// The exit code when nothing can be told (Monitoring Plugins Development Guidelines: UNKNOWN).
const EXIT_UNKNOWN: u8 = 3;

#[derive(Debug, Deserialize)]
struct Health {
    status: Level,
    checks: Vec<Check>,
}

#[derive(Debug, Deserialize)]
struct Check {
    name: String,
    of: Option<String>,
    stanza: String,
    status: Level,
    detail: String,
    #[serde(default)]
    hint: String,
}

/// Asks the Headrest of this machine, and says what it answers.
pub(super) fn run(config: &Config, environment: &Environment) -> ExitCode {
    match ask_health(config, environment) {
        Ok(health) => {
            print(&shown(&health));
            match health.status {
                Level::Pass => 0,
                Level::Warn => 1,
                Level::Fail => 2,
            }
            .into()
        }
        Err(why) => {
            print(&format!("headrest: UNKNOWN ({why})\n"));
            EXIT_UNKNOWN.into()
        }
    }
}

fn ask_health(config: &Config, environment: &Environment) -> Result<Health, String> {
    let token = token(config, environment)?;
    let answer = ask::get(config.server.listen, "/api/v1/health", token.as_deref())?;
    match answer.status {
        200 | 503 => serde_json::from_str(&answer.body)
            .map_err(|error| format!("the answer is no health: {error}")),
        401 => Err("the token is not the service's: set HEADREST_TOKEN".to_owned()),
        status => Err(format!("the service answers {status}")),
    }
}

/// The token of the caller's environment, of the configuration, or the generated one.
fn token(config: &Config, environment: &Environment) -> Result<Option<String>, String> {
    if config.server.auth == Auth::Off {
        return Ok(None);
    }
    if let Some(token) = environment.get("HEADREST_TOKEN") {
        return Ok(Some(token.to_owned()));
    }
    if let Some(token) = &config.server.admin_token {
        return Ok(Some(token.expose_secret().to_owned()));
    }
    let path = config.state_dir.join("admin-token");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read the token in {}: {error}", path.display()))?;
    Ok(Some(text.trim().to_owned()))
}

fn shown(health: &Health) -> String {
    let mut text = String::new();
    let mut stanza = None;
    let mut checks: Vec<&Check> = health.checks.iter().collect();
    checks.sort_by(|a, b| (&a.stanza, &a.name, &a.of).cmp(&(&b.stanza, &b.name, &b.of)));
    for check in checks {
        if stanza != Some(&check.stanza) {
            text.push_str(&format!("Stanza {}:\n", check.stanza));
            stanza = Some(&check.stanza);
        }
        let of = check.of.as_ref().map_or(String::new(), |of| format!(" {of}"));
        let word = match check.status {
            Level::Pass => "OK",
            Level::Warn => "WARNING",
            Level::Fail => "FAILED",
        };
        text.push_str(&format!("\t{}{of}: {word} ({})\n", check.name, check.detail));
        if !check.hint.is_empty() {
            text.push_str(&format!("\t\t{}\n", check.hint));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_its_line() {
        let health: Health = serde_json::from_str(
            r#"{"status":"fail","at":"2026-11-25T00:00:00Z","checks":[
                {"name":"archiver","stanza":"main","status":"fail","detail":"5 cannot be archived","hint":"Look."},
                {"name":"schedule","of":"nightly","stanza":"main","status":"warn","detail":"missed"},
                {"name":"postgres","stanza":"main","status":"pass","detail":"takes writes"}]}"#,
        )
        .unwrap();
        let expect = "Stanza main:\n\tarchiver: FAILED (5 cannot be archived)\n\t\tLook.\n\tpostgres: OK \
                      (takes writes)\n\tschedule nightly: WARNING (missed)\n";
        assert_eq!(shown(&health), expect);
    }
}
