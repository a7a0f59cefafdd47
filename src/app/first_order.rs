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
