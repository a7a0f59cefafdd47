//! Looking at a running server: whether it answers, what it says, whether it is as it should be.

use tokio::time::Instant;

use super::super::Archiving;
use super::{LOOK_RECOVERING, LOOK_SERVING, LOOK_STARTING, Supervisor};
use crate::postgres::client::{Address, Connection, QueryError};
use crate::postgres::pgdata::{self, PidFile, PostmasterStatus};
use crate::postgres::state::{ServerEvent, ServerState};

impl Supervisor {
    /// Looks whether the server answers, and what.
    pub(super) async fn look(&mut self) {
        self.look_at = Instant::now() + LOOK_SERVING;
        if self.state() == ServerState::Stopping {
            return;
        }
        if self.connection.is_none() {
            self.connect().await;
        }
        let Some(connection) = &self.connection else {
            self.look_at = Instant::now() + LOOK_STARTING;
            return;
        };
        match connection.facts().await {
            Ok(facts) => {
                if facts.in_recovery {
                    self.look_at = Instant::now() + LOOK_RECOVERING;
                    self.change(ServerEvent::AnswersInRecovery, None);
                } else {
                    self.ready_since.get_or_insert_with(Instant::now);
                    let odd = self.archives_otherwise(facts.archiver.enabled);
                    if self.state() != ServerState::Stopping {
                        self.change(ServerEvent::TakesWrites, odd);
                    }
                }
                self.status.send_if_modified(|status| {
                    let (version, archiver) = (Some(facts.version), Some(facts.archiver));
                    let changed = status.version != version || status.archiver != archiver;
                    (status.version, status.archiver) = (version, archiver);
                    changed
                });
            }
            Err(error) => {
                tracing::warn!("PostgreSQL does not answer: {error}");
                self.connection = None;
                self.went_silent();
            }
        }
    }

    /// What is wrong with a server that somebody else has started (`pg_ctl start`): whether it archives
    /// is on our command line, and it does not have that. A copy that archives is started again.
    fn archives_otherwise(&mut self, archives: bool) -> Option<String> {
        let by_restart = "restart it: POST /api/v1/processes/postgres/restart";
        match self.settings.archiving {
            Archiving::Ours if !archives => {
                let reason = format!(
                    "this server was started by somebody else, without archiving: nothing that is \
                     committed is backed up. To have it archive, {by_restart}"
                );
                if self.status.borrow().reason.as_ref() != Some(&reason) {
                    tracing::error!("{reason}");
                }
                Some(reason)
            }
            Archiving::Off if archives => {
                let reason = "this server is a copy and was started with archiving by somebody else; \
                              restarting it without";
                tracing::error!("{reason}");
                self.stop(self.state());
                self.start_after_stop = true;
                Some(reason.to_owned())
            }
            Archiving::Ours | Archiving::Off | Archiving::NotOurs => None,
        }
    }

    /// Connects as soon as `postmaster.pid` says that it makes sense.
    async fn connect(&mut self) {
        let Ok(Some(file)) = PidFile::read(&self.settings.config.data_dir) else { return };
        let ours = self.postmaster.as_ref().map(|p| p.pid().as_raw_nonzero().get());
        let answers = matches!(file.status, PostmasterStatus::Ready | PostmasterStatus::Standby);
        if ours != Some(file.pid) || !answers {
            return;
        }
        let Some((port, socket_dir)) = file.port.zip(file.socket_dir) else { return };
        let mut no_role = false;
        for user in self.roles() {
            let address = Address {
                socket_dir: socket_dir.clone(),
                port,
                user,
                major: pgdata::major_version(&self.settings.config.data_dir),
                password: self.settings.password.clone(),
            };
            match self.connect_as(&address).await {
                Ok(connection) => {
                    let usual = address.user != self.settings.config.superuser;
                    if usual && !connection.is_superuser().await.unwrap_or(false) {
                        no_role = true;
                        continue;
                    }
                    self.connection = Some(connection);
                    self.status.send_modify(|status| {
                        (status.address, status.no_role) = (Some(address), false);
                    });
                    return;
                }
                // Not yet: "the database system is starting up". Anything else shows as a start that
                // takes long, with the reason.
                Err(error) => {
                    let reason = error.to_string();
                    no_role = error.refuses_the_role();
                    self.status.send_if_modified(|status| {
                        let changed = status.reason.as_ref() != Some(&reason);
                        status.reason = Some(reason);
                        changed
                    });
                    if !no_role {
                        break;
                    }
                }
            }
        }
        self.status
            .send_if_modified(|status| std::mem::replace(&mut status.no_role, no_role) != no_role);
    }

    /// The roles to connect as, in order. In restored data the configured one may not exist yet;
    /// behind the fence, where everybody is trusted, the usual superusers are tried as well.
    fn roles(&self) -> Vec<String> {
        let mut roles = vec![self.settings.config.superuser.clone()];
        if self.fenced.is_some() {
            for usual in ["postgres", self.settings.first_start.os_user.as_str()] {
                if !roles.iter().any(|role| role == usual) {
                    roles.push(usual.to_owned());
                }
            }
        }
        roles
    }

    async fn connect_as(&mut self, address: &Address) -> Result<Connection, QueryError> {
        self.connections_made += 1;
        let (number, lost) = (self.connections_made, self.lost.0.clone());
        let notify = move || {
            // A full channel means that we are told already.
            let _ = lost.try_send(number);
        };
        Connection::open(address, notify).await
    }
}
