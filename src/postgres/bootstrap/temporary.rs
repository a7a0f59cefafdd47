//! The server of a first start: on the socket alone, so that nobody connects before the scripts
//! have done their work.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{BootstrapError, FirstStart, file};
use crate::config::Contract;
use crate::postgres::install::Binaries;
use crate::postgres::pgdata::{PidFile, PostmasterStatus};
use crate::postgres::tail::OutputFile;
use crate::process::{Child, End, Output, Program, stop};

/// How long it may take to start, on a cluster that is new.
const START_PATIENCE: Duration = Duration::from_mins(1);
/// How long it may take to stop: it writes what the scripts loaded.
const STOP_PATIENCE: Duration = Duration::from_mins(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A running one.
pub(super) struct TemporaryServer(Child);

impl TemporaryServer {
    /// Starts it and waits until it answers.
    pub(super) async fn start(
        first: &FirstStart,
        contract: &Contract,
        binaries: &Binaries,
        env: &BTreeMap<String, String>,
    ) -> Result<Self, BootstrapError> {
        let mut program = Program::new(binaries.program("postgres"));
        program.args = vec!["-D".to_owned(), first.data_dir.display().to_string()];
        program.args.extend(first.server_args.iter().cloned());
        // The port that psql takes when nobody names one.
        let port = contract.variables.get("PGPORT").filter(|port| !port.is_empty());
        let port = port.map_or("5432", String::as_str);
        program.args.extend(["-c", "listen_addresses=", "-p", port].map(str::to_owned));
        program.env.clone_from(env);
        let output = OutputFile::at(first.state_dir.join("log/postgres.log"));
        let log = first.state_dir.join("log/postgres.log");
        program.output = Output::File(output.for_child().map_err(file("open", &log))?);
        let mut child = program.spawn().map_err(|error| BootstrapError::Run(error.into()))?;
        let pid = child.pid.as_raw_nonzero().get();
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            tokio::select! {
                end = child.wait() => {
                    return Err(BootstrapError::Server(format!("{end}; its log says why")));
                }
                () = sleep(LOOK_EVERY) => {}
            }
            let state = PidFile::read(&first.data_dir).ok().flatten();
            let ready = |file: PidFile| file.pid == pid && file.status == PostmasterStatus::Ready;
            if state.is_some_and(ready) {
                return Ok(Self(child));
            }
            if Instant::now() >= deadline {
                let patience = START_PATIENCE.as_secs();
                stop::signal_process(child.pid, Signal::QUIT);
                child.wait().await;
                return Err(BootstrapError::Server(format!("was not ready within {patience} s")));
            }
        }
    }

    /// Stops it fast and waits until it is gone.
    pub(super) async fn stop(mut self) -> Result<(), BootstrapError> {
        stop::signal_process(self.0.pid, Signal::INT);
        let end = tokio::time::timeout(STOP_PATIENCE, self.0.wait()).await;
        match end {
            Ok(end) if end.is_success() => Ok(()),
            Ok(end) => Err(BootstrapError::Server(end.to_string())),
            Err(_) => {
                stop::signal_process(self.0.pid, Signal::QUIT);
                let end: End = self.0.wait().await;
                Err(BootstrapError::Server(format!("did not stop and was ended: {end}")))
            }
        }
    }
}
