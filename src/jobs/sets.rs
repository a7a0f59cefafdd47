//! What is known of backup sets, gathered for `domain::sets`, and manifests read back.

use std::sync::Arc;

use super::catalog::Unavailable;
use super::context::Context;
use crate::clock;
use crate::domain::sets::{self, Evidence, Judgements, ReadBack};
use crate::domain::{BackupLabel, RepoKey, StanzaName};
use crate::pgbackrest::info::{self, StanzaInfo};
use crate::store::{Store, StoreError};

/// The judgement of every backup that `info` lists.
pub async fn judge(
    store: &Store,
    stanza: &StanzaName,
    info: &StanzaInfo,
) -> Result<Judgements, StoreError> {
    let verified = store.verified(stanza.clone()).await?;
    let read_backs = store.read_backs(stanza.clone()).await?;
    let evidence = |backup: &info::Backup| {
        let repo = backup.repo_key.unwrap_or(RepoKey::FIRST);
        let key = (repo, backup.label.clone());
        Evidence {
            needs: backup.prior.iter().chain(&backup.reference).cloned().collect(),
            stopped_at: backup.stopped_at,
            page_errors: backup.error == Some(true),
            verified: verified.get(&key).copied(),
            read_back: read_backs.get(&key).cloned(),
            label: key.1,
            repo,
        }
    };
    let all: Vec<Evidence> = info.backups.iter().map(evidence).collect();
    Ok(sets::judge(&all))
}

/// Reads the manifest of a backup, and remembers what came of it: the backup with its databases,
/// tablespaces and links, or why its manifest cannot be read.
pub(super) async fn read_back(
    context: &Context,
    stanza: &StanzaName,
    repo: RepoKey,
    label: &BackupLabel,
) -> Result<Result<Arc<info::Backup>, String>, Unavailable> {
    let at = clock::now();
    let read = context.catalog.manifest(stanza, repo, label).await?;
    let found = ReadBack { at, problem: read.as_ref().err().cloned() };
    if let Some(problem) = &found.problem {
        tracing::warn!(
            stanza.name = %stanza,
            "cannot read the manifest of backup {label} in repository {repo}: {problem}"
        );
    }
    let store = &context.store;
    if let Err(error) = store.set_read_back(stanza.clone(), repo, label.clone(), found).await {
        // The caller gets the answer in any case.
        tracing::error!(
            "cannot store what reading the manifest of backup {label} found: {}",
            crate::telemetry::chain(&error)
        );
    }
    Ok(read)
}
