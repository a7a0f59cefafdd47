//! What a start finds in PGDATA: whether to start, to take over, to make a cluster, or why not.

use rustix::process::Pid;

use super::Settings;
use super::launch::Postmaster;
use crate::postgres::bootstrap;
use crate::postgres::pgdata::{self, Content, Occupant};

/// What a start is to do.
pub(super) enum Prepared {
    Start,
    Adopt(Postmaster),
    Initdb,
}

/// What is in the way of a start.
pub(super) enum Obstacle {
    /// It goes away by itself.
    Passing(String),
    /// Processes of a postmaster that is gone: they end by themselves, unless they cannot.
    Orphans(Pid),
    /// Somebody must act.
    Lasting(String),
}

/// Looks at PGDATA. `fenced` is whether the start is a restore's, `may_initdb` whether an empty
/// PGDATA is a first start.
pub(super) fn prepare(
    settings: &Settings,
    fenced: bool,
    may_initdb: bool,
) -> Result<Prepared, Obstacle> {
    let pgdata = &settings.config.data_dir;
    let shown = pgdata.display();
    let lasting = |text: String| Err(Obstacle::Lasting(text));
    let unreadable = |error| Obstacle::Lasting(format!("cannot look at PGDATA {shown}: {error}"));
    let content = pgdata::content(pgdata).map_err(unreadable)?;
    // A restore replaces what an unfinished first start left.
    if fenced || content == Content::Empty {
        bootstrap::forget_unfinished(&settings.state_dir);
    }
    let unfinished = bootstrap::unfinished(pgdata, &settings.state_dir).is_some();
    match content {
        Content::Empty | Content::Foreign if may_initdb => return Ok(Prepared::Initdb),
        Content::Empty | Content::Foreign => {
            return lasting(format!(
                "PGDATA {shown} holds no cluster any more. To restore it: POST \
                 /api/v1/stanzas/STANZA/restores. To begin with a new, empty cluster instead: \
                 POST /api/v1/processes/postgres/start"
            ));
        }
        // What is wrong with it is said there.
        Content::Cluster(_) | Content::HalfRestored(_) if unfinished => {
            return Ok(Prepared::Initdb);
        }
        Content::HalfRestored(mark) => {
            return lasting(format!(
                "PGDATA {shown} is half restored ({mark}); PostgreSQL must not run on it. \
                 Restore again: POST /api/v1/stanzas/STANZA/restores"
            ));
        }
        Content::Cluster(_) => {}
    }
    match pgdata::occupant(pgdata).map_err(unreadable)? {
        Occupant::Nobody => Ok(Prepared::Start),
        Occupant::Postmaster(pid) if fenced => {
            lasting(format!("a server that is not fenced (pid {pid}) runs on {shown}"))
        }
        Occupant::Postmaster(pid) => Postmaster::adopt(pid).map(Prepared::Adopt).map_err(|error| {
            Obstacle::Passing(format!("cannot take over the running server {pid}: {error}"))
        }),
        Occupant::Stale => {
            tracing::warn!("removing a stale postmaster.pid: no server runs on PGDATA {shown}");
            pgdata::remove_stale_pid_file(pgdata).map_err(unreadable)?;
            Ok(Prepared::Start)
        }
        Occupant::Orphans(pid) => Err(Obstacle::Orphans(pid)),
        Occupant::Unknown(pid) => lasting(format!(
            "postmaster.pid in {shown} names process {pid}, which Headrest may not look at; \
             make sure that no server runs there, remove the file, and start again"
        )),
    }
}
