//! Checks of the backup set that was chosen: that it can be read, what is known of it, and whether what
//! it holds can be put where it was.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::{Ground, InRepository, PlanRequest};
use crate::domain::BackupLabel;
use crate::domain::plan::Decision;
use crate::domain::plan::check::{Check, CheckId};
use crate::domain::sets::{Judgement, State};
use crate::pgbackrest::info;
use crate::postgres::pgdata::Survey;

/// The names that are always restored.
const TEMPLATES: [&str; 3] = ["postgres", "template0", "template1"];

/// Whether the manifest was read, and everything that it refers to is there.
pub(super) fn readable(ground: &Ground, decision: &Decision, on_disk: &InRepository) -> Check {
    let id = CheckId::SetReadable;
    let (label, repo) = (&decision.set.label, decision.set.repo);
    let cannot = |what: String| {
        let text = format!("cannot read {what} in repository {repo}");
        Check::fail(id, format!("{text}. Choose another set, or wait until the repository answers"))
    };
    if decision.set.judgement.state == State::Unreadable {
        let why = decision.set.judgement.why.as_deref().unwrap_or("its manifest cannot be read");
        return Check::fail(id, format!("backup {label} cannot be restored: {why}"));
    }
    if let Err(error) = &on_disk.manifest {
        return cannot(format!("the manifest of backup {label}: {error}"));
    }
    let stanza = &ground.seen.stanza;
    let listed = stanza.backups.iter().find(|backup| backup.label == *label);
    let needed: BTreeSet<BackupLabel> =
        listed.map(|backup| backup.reference.iter().cloned().collect()).unwrap_or_default();
    let there = match &on_disk.backups {
        Ok(there) => there,
        Err(error) => return cannot(format!("the list of backups: {error}")),
    };
    let gone: Vec<&str> = needed.difference(there).map(BackupLabel::as_str).collect();
    if !gone.is_empty() {
        return Check::fail(
            id,
            format!(
                "backup {label} needs {}, which repository {repo} does not have any more",
                gone.join(", ")
            ),
        );
    }
    let text = match needed.len() {
        0 => format!("the manifest of backup {label} was read"),
        n => format!(
            "the manifest of backup {label} was read, and the {n} backups it needs are there"
        ),
    };
    Check::pass(id, text)
}

/// What is known of the set, and of newer ones that were passed over for it.
pub(super) fn damaged(decision: &Decision) -> Check {
    let id = CheckId::DamagedSet;
    let (set, label) = (&decision.set, &decision.set.label);
    let said = |judgement: &Judgement| judgement.why.clone().unwrap_or_default();
    match set.judgement.state {
        State::PageErrors => Check::fail(
            id,
            format!(
                "no other backup reaches the target than {label}, in which {}: they come back as they \
                 are. Accept that, or choose another target or set",
                said(&set.judgement)
            ),
        ),
        State::Damaged => Check::fail(
            id,
            format!(
                "no other backup reaches the target than {label}, which is damaged: {}. Restoring it may \
                 fail half way. Accept that, or choose another target or set",
                said(&set.judgement)
            ),
        ),
        // Another check says so.
        State::Unreadable => Check::warn(id, format!("backup {label} cannot be read")),
        State::Good | State::Unverified if !decision.passed_over.is_empty() => {
            let newer: Vec<String> = decision
                .passed_over
                .iter()
                .map(|(label, judgement)| format!("{label} ({})", said(judgement)))
                .collect();
            Check::warn(
                id,
                format!(
                    "backup {label} is taken, although there are newer ones: {}",
                    newer.join(", ")
                ),
            )
        }
        State::Good => Check::pass(id, format!("backup {label} was verified")),
        State::Unverified => {
            Check::pass(id, format!("nothing is known against backup {label}; it was not verified"))
        }
    }
}

/// Whether what the set links to is there: pgBackRest restores through links, into directories.
pub(super) fn layout(set: Option<&info::Backup>, survey: &Survey) -> Check {
    let id = CheckId::Layout;
    let Some(set) = set else {
        return Check::warn(id, "the tablespaces and links of the set could not be asked for");
    };
    let mut missing = Vec::new();
    let spaces = set.tablespaces.iter().map(|space| (&space.name, &space.destination));
    let links = set.links.iter().map(|link| (&link.name, &link.destination));
    let mut count = 0;
    for (name, destination) in spaces.chain(links) {
        count += 1;
        if !is_usable(Path::new(destination)) {
            missing.push(format!("{name} -> {destination}"));
        }
    }
    if !missing.is_empty() {
        return Check::fail(
            id,
            format!(
                "these places of the set are not directories that can be written to: {}. Make \
                 them, owned by the user PostgreSQL runs as",
                missing.join(", ")
            ),
        );
    }
    // A link that the set does not have becomes a plain directory in PGDATA.
    let in_set = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let of_links = set.links.iter().any(|link| link.name.ends_with(&name));
        of_links || set.tablespaces.iter().any(|s| s.oid.is_some_and(|o| o.to_string() == name))
    };
    let gone: Vec<String> = survey
        .links
        .iter()
        .filter(|(path, _)| !in_set(path))
        .map(|(path, to)| format!("{} -> {}", path.display(), to.display()))
        .collect();
    if gone.is_empty() {
        let text = match count {
            0 => "the set has no tablespaces and links".to_owned(),
            _ => format!("tablespaces and links come back where they are ({count})"),
        };
        return Check::pass(id, text);
    }
    let text = format!(
        "the set does not have these links: {}. What they hold stays where it is; PGDATA gets a \
         directory of its own in their place, or nothing",
        gone.join(", ")
    );
    Check::warn(id, text)
}

fn is_usable(directory: &Path) -> bool {
    use rustix::fs::{Access, access};
    if directory.exists() {
        return directory.is_dir() && access(directory, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    }
    // pgBackRest makes it.
    directory.parent().is_some_and(|parent| {
        parent.is_dir() && access(parent, Access::WRITE_OK | Access::EXEC_OK).is_ok()
    })
}

pub(super) fn databases(request: &PlanRequest, set: Option<&info::Backup>) -> Check {
    let id = CheckId::Databases;
    let Some(set) = set else {
        return Check::fail(id, "the databases of the set could not be asked for");
    };
    let names: Vec<&str> = set.database_refs.iter().map(|db| db.name.as_str()).collect();
    for wanted in &request.databases {
        if TEMPLATES.contains(&wanted.as_str()) {
            return Check::fail(id, format!("{wanted} is restored in any case; leave it out"));
        }
        if !names.contains(&wanted.as_str()) {
            let text = format!("the set has no database {wanted}, but {}", names.join(", "));
            return Check::fail(id, text);
        }
    }
    let kept = |name: &&&str| {
        TEMPLATES.contains(*name) || request.databases.iter().any(|db| db.as_str() == **name)
    };
    let lost: Vec<&str> = names.iter().filter(|name| !kept(name)).copied().collect();
    if lost.is_empty() {
        return Check::pass(id, "every database of the set is restored");
    }
    let text = format!(
        "only {} come back. The others become unusable and must be dropped: {}",
        request.databases.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        lost.join(", ")
    );
    Check::warn(id, text)
}
