//! Ending a server that no supervisor holds: left over from an earlier Headrest.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::time::sleep;

use super::pgdata::{self, Occupant, PidFile};
use crate::process::stop::signal_process;

/// Fast, immediate, and at last kill, each with its patience in seconds.
const LADDER: [(Signal, u32); 3] = [(Signal::INT, 60), (Signal::QUIT, 30), (Signal::KILL, 10)];

/// The postmaster, or one of the processes an ended one left, that works in PGDATA.
pub fn find(data_dir: &Path) -> Option<Pid> {
    match pgdata::occupant(data_dir) {
        Ok(Occupant::Postmaster(pid) | Occupant::Orphans(pid)) => Some(pid),
        Ok(Occupant::Nobody | Occupant::Stale | Occupant::Unknown(_)) | Err(_) => None,
    }
}

/// Whether the server that runs on PGDATA is fenced: its only socket is in our private directory.
pub fn is_fenced(data_dir: &Path) -> bool {
    let file = PidFile::read(data_dir).ok().flatten();
    file.and_then(|file| file.socket_dir).is_some_and(|directory| directory.ends_with("fence"))
}

/// Tells processes whose postmaster is gone to go at once, as it would have told them. One that
/// was stopped is woken, and gets the signal before it does anything else.
pub fn tell_orphans(orphans: &[Pid]) {
    if orphans.is_empty() {
        return;
    }
    tracing::warn!(?orphans, "telling processes of a PostgreSQL that has ended to leave PGDATA");
    for pid in orphans {
        signal_process(*pid, Signal::QUIT);
        signal_process(*pid, Signal::CONT);
    }
}

/// Ends every server process in PGDATA. Answers whether nobody is left.
pub async fn end(data_dir: &Path, postmaster: Pid) -> bool {
    for (signal, seconds) in LADDER {
        if matches!(pgdata::occupant(data_dir), Ok(Occupant::Orphans(_))) {
            tell_orphans(&pgdata::servers_in(data_dir));
        } else {
            signal_process(postmaster, signal);
        }
        for _ in 0..seconds * 20 {
            if pgdata::servers_in(data_dir).is_empty() {
                return true;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    false
}
