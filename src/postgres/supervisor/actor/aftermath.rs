//! What follows the end of a server: it was asked for, or somebody else's will, or it is started again,
//! or there is no room for that.

use tokio::time::Instant;

use super::{LOOK_DOWN, Supervisor};
use crate::clock;
use crate::domain::restart::Verdict;
use crate::postgres::control::ControlData;
use crate::postgres::pgdata::{self, Occupant, PidFile};
use crate::postgres::state::ServerEvent;
use crate::process::End;

/// What brings back a server that is down, other than an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// Somebody stopped it without us (`pg_ctl stop`), and may start it again (`pg_ctl restart`).
    Return,
    /// This many bytes for its WAL.
    Room(u64),
}

impl Supervisor {
    /// Nothing of the server is left.
    pub(super) async fn on_gone(&mut self, end: End) {
        let asked = self.stopping.take().is_some();
        let ready_for = self.ready_since.take().map(|since| since.elapsed());
        self.status.send_modify(|status| {
            (status.pid, status.address, status.started_at) = (None, None, None);
            (status.archiver, status.adopted, status.no_role) = (None, false, false);
            status.last_exit = Some(end.to_string());
        });
        if asked {
            tracing::info!("PostgreSQL has stopped ({end})");
            self.change(ServerEvent::StoppedAsAsked, Some("stopped as asked".to_owned()));
            if std::mem::take(&mut self.start_after_stop) {
                self.start().await;
            }
            return;
        }
        self.lines.caught_up().await;
        let said = self.lines.cause(self.said_before);
        let said = said.map_or(String::new(), |line| format!("; it said: {line}"));
        let reason = format!("PostgreSQL {end}{said}");
        let was_ready = ready_for.is_some();
        let fenced = self.status.borrow().fenced_by.is_some();
        // All is known before any of it is told.
        let by_somebody = !fenced && self.was_stopped_by_somebody(end, was_ready).await;
        let room = if fenced || by_somebody {
            None
        } else {
            self.room_that_is_missing(&reason, was_ready).await
        };
        if !by_somebody {
            tracing::error!("{reason}");
        }
        self.change(ServerEvent::Lost, Some(reason.clone()));
        if fenced {
            // The restore that holds the fence decides what comes next.
            self.change(ServerEvent::StayDown, Some(reason));
            return;
        }
        if matches!(pgdata::occupant(&self.settings.config.data_dir), Ok(Occupant::Postmaster(_))) {
            self.start().await;
            return;
        }
        if by_somebody {
            let reason = "PostgreSQL was shut down in order, but not by Headrest (pg_ctl?), so it \
                          stays down; start it: POST /api/v1/processes/postgres/start";
            tracing::warn!("{reason}");
            self.change(ServerEvent::StayDown, Some(reason.to_owned()));
            self.await_something(Awaited::Return);
            return;
        }
        if let Some(room) = room {
            self.give_up(format!(
                "{reason}. The disk of pg_wal is full: PostgreSQL is started as soon as {} MiB \
                 are free there. Never remove files from pg_wal by hand",
                room >> 20
            ));
            self.await_something(Awaited::Room(room));
            return;
        }
        match self.policy.exited(clock::now(), ready_for, rand::random()) {
            Verdict::RestartAfter(delay) => {
                let wait = jiff::SignedDuration::try_from(delay).unwrap_or_default();
                self.restart_at = Some(Instant::now() + delay);
                self.status.send_modify(|status| {
                    status.restarts += 1;
                    status.next_start_at = Some(clock::now() + wait);
                });
            }
            Verdict::GiveUp => self.give_up(format!(
                "{reason}. Given up after ten exits within ten minutes; correct the cause and \
                 start it: POST /api/v1/processes/postgres/start"
            )),
        }
    }

    fn await_something(&mut self, what: Awaited) {
        self.awaited = Some(what);
        self.look_at = Instant::now() + LOOK_DOWN;
    }

    pub(super) async fn look_for_awaited(&mut self) {
        self.look_at = Instant::now() + LOOK_DOWN;
        let data_dir = &self.settings.config.data_dir;
        let came = match self.awaited {
            Some(Awaited::Return) => {
                PidFile::read(data_dir).ok().flatten().is_some()
                    && matches!(pgdata::occupant(data_dir), Ok(Occupant::Postmaster(_)))
            }
            Some(Awaited::Room(bytes)) => {
                pgdata::free_bytes(&data_dir.join("pg_wal")).is_ok_and(|free| free >= bytes)
            }
            None => false,
        };
        if came {
            self.awaited = None;
            self.start().await;
        }
    }

    /// Whether the server was shut down as people do it: the control data say so, which only an
    /// orderly shutdown writes. The exit code alone does not: it is 0 after `pg_ctl stop -m
    /// immediate`, too. And a server that could not even start leaves the control data of before.
    async fn was_stopped_by_somebody(&self, end: End, was_ready: bool) -> bool {
        let in_order = end.is_success() || (end == End::Unseen && was_ready);
        in_order && self.control().await.is_some_and(|control| control.is_shut_down())
    }

    /// Bytes that must be free where WAL is written, when a lack of them ended the server.
    async fn room_that_is_missing(&self, reason: &str, was_ready: bool) -> Option<u64> {
        if was_ready && !reason.contains("No space left on device") {
            return None;
        }
        let segment = self.control().await.map_or(16 << 20, |control| control.segment_size.get());
        let room = segment * 2;
        let free = pgdata::free_bytes(&self.settings.config.data_dir.join("pg_wal")).ok()?;
        (free < room).then_some(room)
    }

    async fn control(&self) -> Option<ControlData> {
        let settings = &self.settings;
        ControlData::read(&settings.binaries, &settings.env, &settings.config.data_dir).await.ok()
    }
}
