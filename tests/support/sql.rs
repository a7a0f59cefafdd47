//! SQL as a person would type it: psql over the Unix socket.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{PATIENCE, files, until};

/// What the sessions of the tests set for themselves.
const SESSION: &str = "-c statement_timeout=0 -c lock_timeout=0 -c role=none \
    -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed \
    -c search_path=public -c datestyle=ISO";

/// Where the server of an instance is.
#[derive(Debug, Clone)]
pub(crate) struct Sql {
    pub(crate) socket_dir: PathBuf,
    pub(crate) port: u16,
    pub(crate) role: &'static str,
}

impl Sql {
    /// The answer as `psql -At` prints it, or what went wrong.
    pub(crate) fn attempt(&self, statement: &str) -> Result<String, String> {
        self.attempt_in("postgres", statement)
    }

    /// The same as another role.
    pub(crate) fn as_role(&self, role: &'static str) -> Self {
        Self { role, ..self.clone() }
    }

    /// The same in another database.
    pub(crate) fn attempt_in(&self, database: &str, statement: &str) -> Result<String, String> {
        let output = Command::new(files::postgres_program("psql"))
            .env_clear()
            .env("PGCONNECT_TIMEOUT", "10")
            // Whatever defaults a test gives to sessions.
            .env("PGOPTIONS", SESSION)
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", self.role])
            .args(["-d", database, "-p", &self.port.to_string(), "-h"])
            .arg(&self.socket_dir)
            .args(["-c", statement])
            .stdin(Stdio::null())
            .output()
            .expect("cannot run psql");
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }

    /// The answer; the statement must succeed.
    #[track_caller]
    pub(crate) fn run(&self, statement: &str) -> String {
        match self.attempt(statement) {
            Ok(answer) => answer,
            Err(error) => panic!("{statement}: {error}"),
        }
    }

    /// Waits until a query answers this.
    #[track_caller]
    pub(crate) fn until_answers(&self, query: &str, wanted: &str) {
        until(&format!("{query} answers {wanted}"), PATIENCE, || {
            (self.attempt(query).as_deref() == Ok(wanted)).then_some(())
        });
    }
}
