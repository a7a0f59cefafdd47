//! The time between the end of a postmaster and that of its last process.
//!
//! A server is gone when nobody works in PGDATA any more, and not when its postmaster is: what
//! is left may still write. Processes of a postmaster that is gone end by themselves as soon as
//! they notice. One that was stopped (SIGSTOP) never does, so after a while they are woken and told
//! what the postmaster would have told them, an immediate shutdown. Never SIGKILL.

use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;
use tokio::time::Instant;

use crate::postgres::pgdata::{self, Occupant};
use crate::postgres::stray;
use crate::process::{End, inspect};

/// How long the processes of an ended postmaster may take to leave PGDATA by themselves.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_SOON: Duration = Duration::from_millis(20);
const LOOK_LATER: Duration = Duration::from_millis(500);

/// A server whose postmaster has ended.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) end: End,
    since: Instant,
    told_at: Option<Instant>,
    pub(super) look_at: Instant,
}

impl Leaving {
    pub(super) fn after(end: End) -> Self {
        let now = Instant::now();
        Self { end, since: now, told_at: None, look_at: now }
    }

    /// Looks whether everybody has left. Who stays for long is told to go.
    pub(super) fn is_over(&mut self, data_dir: &Path) -> bool {
        let now = Instant::now();
        let waited = now.duration_since(self.since);
        let occupant = pgdata::occupant(data_dir);
        if matches!(occupant, Ok(Occupant::Orphans(_))) {
            if self.told_at.map_or(waited, |at| now.duration_since(at)) >= PATIENCE {
                self.tell(data_dir);
            }
        } else if matches!(occupant, Ok(Occupant::Postmaster(_))) {
            // Somebody was quicker (`pg_ctl restart`), and will be taken over.
            return true;
        } else {
            let others = others_in(data_dir);
            if !others.is_empty() && waited >= PATIENCE {
                // A shell of somebody, perhaps. What archives may only read.
                tracing::warn!(?others, "other programs work in PGDATA, after PostgreSQL's end");
            }
            if others.is_empty() || waited >= PATIENCE {
                return true;
            }
        }
        self.look_at = now + if waited < PATIENCE { LOOK_SOON } else { LOOK_LATER };
        false
    }

    /// Somebody has no patience.
    pub(super) fn hurry(&mut self, data_dir: &Path) {
        if matches!(pgdata::occupant(data_dir), Ok(Occupant::Orphans(_))) {
            self.tell(data_dir);
        }
    }

    fn tell(&mut self, data_dir: &Path) {
        stray::tell_orphans(&pgdata::servers_in(data_dir));
        self.told_at = Some(Instant::now());
    }
}

/// Programs that are no server and work in PGDATA: archive-push runs there.
fn others_in(data_dir: &Path) -> Vec<Pid> {
    data_dir.canonicalize().map_or_else(|_| Vec::new(), |real| inspect::processes_in(&real))
}
