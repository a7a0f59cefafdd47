//! What one `expire --set` removes, and when it must not.

use std::collections::{BTreeMap, BTreeSet};

use super::hold::longest;
use super::{Held, Reason, Rules, is_full};
use crate::domain::{BackupLabel, RepoKey};

/// One call of `expire --set`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// The set that is named.
    pub set: BackupLabel,
    /// Everything that goes with it, itself first.
    pub removes: Vec<BackupLabel>,
}

/// Why a backup must not be removed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is none of that label.
    #[error("there is no backup {0}")]
    Unknown(BackupLabel),
    /// It, or one that builds upon it, is pinned.
    #[error("backup {0} is pinned")]
    Pinned(BackupLabel),
    /// It, or one that builds upon it, is being worked with.
    #[error("backup {0} is in use by {1}")]
    InUse(BackupLabel, String),
    /// It, or one that builds upon it, stays for the undo of a restore.
    #[error("backup {0} stays {1}")]
    AfterRestore(BackupLabel, Reason),
    /// Without it nothing of this repository could be restored.
    #[error(
        "backup {0} is the last full of repository {1} that is not damaged: without it nothing could \
         be restored"
    )]
    LastFull(BackupLabel, RepoKey),
}

/// What removing `label` takes with it, for each repository (or the one named) that has it.
pub fn removal(
    backups: &[Held],
    rules: &Rules,
    label: &BackupLabel,
    repo: Option<RepoKey>,
) -> Result<Vec<(RepoKey, Removal)>, Refused> {
    let there = backups.iter().filter(|backup| backup.label == *label);
    let repos: BTreeSet<RepoKey> =
        there.map(|backup| backup.repo).filter(|at| repo.is_none_or(|repo| repo == *at)).collect();
    if repos.is_empty() {
        return Err(Refused::Unknown(label.clone()));
    }
    let mut found = Vec::new();
    for repo in repos {
        let own: Vec<&Held> = backups.iter().filter(|backup| backup.repo == repo).collect();
        let going = with_dependants(&dependants(&own), label);
        for held in own.iter().filter(|held| going.contains(&held.label)) {
            if rules.pins.contains(&held.label) {
                return Err(Refused::Pinned(held.label.clone()));
            }
        }
        // What is in use keeps what it needs: then it is among what would go.
        for (used, by) in &rules.in_use {
            if going.contains(used) {
                return Err(Refused::InUse(used.clone(), by.clone()));
            }
        }
        for held in own.iter().filter(|held| going.contains(&held.label)) {
            if let Some(hold) = longest(&rules.holds, held) {
                let reason = Reason::AfterRestore(hold.restore, hold.until);
                return Err(Refused::AfterRestore(held.label.clone(), reason));
            }
        }
        // A damaged full does not make up for one that is not.
        let goes = |held: &Held| going.contains(&held.label);
        let good_goes = own.iter().any(|held| is_full(held) && !held.bad && goes(held));
        let enough = |held: &Held| is_full(held) && !(good_goes && held.bad);
        if !own.iter().any(|held| enough(held) && !goes(held)) {
            return Err(Refused::LastFull(label.clone(), repo));
        }
        found.push((repo, order(&own, label, &going)));
    }
    Ok(found)
}

/// The calls that remove exactly these, of which all dependants are among them. Oldest first: who is
/// interrupted has removed the oldest.
pub(super) fn removals(own: &[&Held], doomed: &BTreeSet<&BackupLabel>) -> Vec<Removal> {
    let is_root = |backup: &&&Held| {
        doomed.contains(&backup.label)
            && !backup.needs.iter().any(|n| *n != backup.label && doomed.contains(n))
    };
    let dependants = dependants(own);
    let mut taken: BTreeSet<BackupLabel> = BTreeSet::new();
    let mut found = Vec::new();
    for root in own.iter().filter(is_root) {
        let mut going = with_dependants(&dependants, &root.label);
        // What goes with an earlier call does not go twice.
        going.retain(|label| !taken.contains(label));
        taken.extend(going.iter().cloned());
        found.push(order(own, &root.label, &going));
    }
    found
}

pub(super) type Dependants<'a> = BTreeMap<&'a BackupLabel, Vec<&'a BackupLabel>>;

/// Who needs each backup directly.
pub(super) fn dependants<'a>(own: &[&'a Held]) -> Dependants<'a> {
    let mut found = Dependants::new();
    for backup in own {
        for needed in &backup.needs {
            found.entry(needed).or_default().push(&backup.label);
        }
    }
    found
}

/// The backup, and all that need it, directly or through another.
pub(super) fn with_dependants(
    dependants: &Dependants<'_>,
    label: &BackupLabel,
) -> BTreeSet<BackupLabel> {
    let mut found = BTreeSet::from([label.clone()]);
    let mut open = vec![label];
    while let Some(label) = open.pop() {
        for dependant in dependants.get(label).into_iter().flatten() {
            if found.insert((*dependant).clone()) {
                open.push(dependant);
            }
        }
    }
    found
}

fn order(own: &[&Held], set: &BackupLabel, going: &BTreeSet<BackupLabel>) -> Removal {
    let others = own.iter().map(|backup| &backup.label);
    let others = others.filter(|label| *label != set && going.contains(*label)).cloned();
    Removal { set: set.clone(), removes: std::iter::once(set.clone()).chain(others).collect() }
}
