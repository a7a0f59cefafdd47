//! What is ordered of the supervisor when Headrest starts, and whether the server archives.

use std::path::Path;

use anyhow::Context as _;

use crate::config::{BackupsConfig, Switch};
use crate::jobs::Catalog;
use crate::jobs::catalog::Freshness;
use crate::jobs::context::ServerSide;
use crate::pgbackrest::info::StanzaStatus;
use crate::postgres::control::ControlData;
use crate::postgres::copies;
use crate::postgres::pgdata::{self, Content, Occupant};
use crate::postgres::stray;
use crate::postgres::supervisor::{Archiving, Order};

/// Whether the server archives. A copy of one that archives to the same repository must not,
/// whatever else is configured: it is about to be made, or is marked as one. A Headrest that has
/// been at work here without being told so has the original.
pub(super) fn archiving(
    config: &BackupsConfig,
    state_dir: &Path,
    data_dir: &Path,
    had_jobs: bool,
) -> anyhow::Result<Archiving> {
    let is_cluster = matches!(pgdata::content(data_dir), Ok(Content::Cluster(_)));
    let shown = data_dir.display();
    if config.bootstrap_archive == Switch::On && copies::is_marked(state_dir, data_dir) {
        copies::unmark(state_dir, data_dir)
            .with_context(|| format!("cannot unmark the copy in {shown}"))?;
        tracing::warn!("this server was a copy and is the original from now on: it archives");
    }
    let told = config.bootstrap_from.is_some() && config.bootstrap_archive == Switch::Off;
    let becomes_one = told && (is_empty(data_dir) || !had_jobs);
    if copies::is_marked(state_dir, data_dir) || becomes_one {
        if is_cluster {
            // One of the two may have been lost.
            copies::mark(state_dir, Some(data_dir))
                .with_context(|| format!("cannot mark the copy in {shown}"))?;
        }
        tracing::warn!(
            "this server is a copy of the one whose backups it was made of: it does not archive and \
             is not backed up. HEADREST_BOOTSTRAP_ARCHIVE=on makes it the original"
        );
        return Ok(Archiving::Off);
    }
    if config.backups == Switch::Off {
        tracing::warn!("backups are off: PostgreSQL is supervised and nothing else");
        return Ok(Archiving::NotOurs);
    }
    Ok(Archiving::Ours)
}

/// Whether PGDATA holds nothing.
pub(super) fn is_empty(data_dir: &Path) -> bool {
    matches!(pgdata::content(data_dir), Ok(Content::Empty))
}

/// Starts the server, unless its data is gone while the repository still has its backups: a new
/// cluster in its place would be another database, and would stand in the way of a restore.
pub(super) async fn first_order(server: &ServerSide, catalog: &Catalog, had_jobs: bool) -> Order {
    let shown = server.data_dir.display();
    let stanza = &server.stanza;
    if !is_empty(&server.data_dir) {
        // A restore that nobody remembers left its server in the fence, where no client can reach it
        // and nothing is archived.
        if let Some(pid) = stray::find(&server.data_dir)
            && stray::is_fenced(&server.data_dir)
        {
            tracing::warn!(process.pid = %pid, "ending the fenced server of a forgotten restore");
            stray::end(&server.data_dir, pid).await;
        }
        let runs = matches!(pgdata::occupant(&server.data_dir), Ok(Occupant::Postmaster(_)));
        return match unfinished_recovery(server).await.filter(|_| !runs) {
            Some(why) => Order::Hold(format!(
                "PGDATA {shown} is not whole: {why}, and the journal of that restore is gone. \
                 Restore again: POST /api/v1/stanzas/{stanza}/restores. To start it as it is \
                 instead, if you know that it is sound: POST /api/v1/processes/postgres/start"
            )),
            None => Order::Start,
        };
    }
    let hold = match catalog.observe(stanza, Freshness::New).await {
        Ok(seen) => match seen.stanza.status.meaning() {
            StanzaStatus::MissingPath | StanzaStatus::MissingData | StanzaStatus::NoBackup => None,
            _ if !seen.stanza.backups.is_empty() => Some("holds backups of"),
            _ => Some("cannot be read, and may hold backups of"),
        },
        // Without pgbackrest there is nothing to ask; but where Headrest has worked before there
        // was a cluster.
        Err(_) if had_jobs => Some("cannot be read, and may hold backups of"),
        Err(_) => None,
    };
    match hold {
        Some(what) => Order::Hold(format!(
            "PGDATA {shown} is empty, but the repository {what} stanza {stanza}. To \
             restore them: POST /api/v1/stanzas/{stanza}/restores. To begin with a new, empty \
             cluster instead: POST /api/v1/processes/postgres/start"
        )),
        None => Order::Start,
    }
}

async fn unfinished_recovery(server: &ServerSide) -> Option<&'static str> {
    let control = ControlData::read(&server.binaries, &server.env, &server.data_dir).await.ok();
    let facts = control.map(|control| control.facts()).filter(|facts| facts.out_of_recovery);
    pgdata::unfinished_recovery(&server.data_dir, facts.map(|facts| facts.timeline))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Whether a server archives, by what it is told, what it finds and what was marked.
    #[test]
    fn a_copy_never_archives_until_it_is_told_to() {
        const LATEST: Option<&str> = Some("latest");
        let on = Archiving::Ours;
        let off = Archiving::Off;
        // from, archive, backups, a cluster is there, had jobs, marks in state and PGDATA
        let cases = [
            (None, Switch::Off, Switch::On, true, false, false, false, on),
            (None, Switch::Off, Switch::Off, true, true, false, false, Archiving::NotOurs),
            // About to be made, or made under a Headrest whose state is lost.
            (LATEST, Switch::Off, Switch::On, false, false, false, false, off),
            (LATEST, Switch::Off, Switch::On, true, false, false, false, off),
            (LATEST, Switch::Off, Switch::Off, false, false, false, false, off),
            // The original, of which somebody says so by mistake.
            (LATEST, Switch::Off, Switch::On, true, true, false, false, on),
            (LATEST, Switch::On, Switch::On, false, false, false, false, on),
            // Either mark will do, whatever else is said.
            (None, Switch::Off, Switch::On, true, true, true, false, off),
            (None, Switch::Off, Switch::On, true, false, false, true, off),
            (None, Switch::Off, Switch::Off, true, true, false, true, off),
            (None, Switch::Off, Switch::On, false, true, true, false, off),
            (LATEST, Switch::On, Switch::On, true, true, true, true, on),
            (None, Switch::On, Switch::Off, true, true, true, true, Archiving::NotOurs),
        ];
        for case in cases {
            let (from, bootstrap_archive, backups, cluster, had_jobs, state, pgdata, expect) = case;
            let dir = tempfile::tempdir().unwrap();
            let (state_dir, data_dir) = (dir.path().join("state"), dir.path().join("data"));
            fs::create_dir(&state_dir).unwrap();
            fs::create_dir_all(data_dir.join("global")).unwrap();
            if cluster {
                fs::write(data_dir.join("PG_VERSION"), "15\n").unwrap();
                fs::write(data_dir.join("global/pg_control"), "").unwrap();
            } else {
                fs::remove_dir(data_dir.join("global")).unwrap();
            }
            if state || pgdata {
                copies::mark(&state_dir, pgdata.then_some(data_dir.as_path())).unwrap();
            }
            if !state && pgdata {
                fs::remove_file(state_dir.join("copy")).unwrap();
            }
            let config = BackupsConfig {
                backups,
                bootstrap_from: from.map(|text| text.parse().unwrap()),
                bootstrap_archive,
            };
            let answer = archiving(&config, &state_dir, &data_dir, had_jobs).unwrap();
            assert_eq!(answer, expect, "{case:?}");
            // A cluster that is one has both marks, so that either may be lost from now on.
            let marked = copies::is_marked(&state_dir, &data_dir);
            assert_eq!(marked, expect == off && (cluster || state), "{case:?}");
            if marked && cluster {
                fs::remove_dir_all(&state_dir).unwrap();
                assert!(copies::is_marked(&state_dir, &data_dir), "{case:?}");
            }
        }
    }
}
