//! What the WAL archive of a repository has: listed directory by directory, and remembered.
//!
//! `info` tells only the first and the last segment; gaps are invisible there. A directory that
//! cannot grow any more is not listed again for a while, so a look costs one or two `repo-ls`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::catalog::Unavailable;
use crate::domain::archive::Segments;
use crate::domain::timeline::{History, Timelines};
use crate::domain::{BackupLabel, RepoKey, SegmentSize, StanzaName, Timeline, WalSegment};
use crate::pgbackrest::command::{Invocation, RepoGet, RepoLs};
use crate::pgbackrest::info::{Database, StanzaInfo};
use crate::pgbackrest::listing;
use crate::pgbackrest::runner::Tool;

/// How old a listing of a directory that cannot grow may be. (`expire` removes from it, and so does
/// whoever should not.)
const OLD_DIRECTORIES: Duration = Duration::from_mins(10);
/// How many directories are listed at the same time.
const AT_ONCE: usize = 4;

/// What an archive has.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    /// Its whole segments.
    pub segments: Segments,
    /// Its history files.
    pub timelines: Timelines,
    /// When each history file was archived: about when that timeline began.
    pub born: BTreeMap<Timeline, Timestamp>,
    /// The newest segment of each timeline was archived before this.
    pub archived_at: BTreeMap<Timeline, Timestamp>,
}

type Key = (StanzaName, RepoKey, String);
/// What was listed of each directory, and when; no time of one that could still grow then.
type Directories = BTreeMap<String, (Option<Instant>, Vec<listing::Entry>)>;

/// Which directories of an archive are listed anew; the others are as they were seen last.
#[derive(Debug, Clone)]
pub enum Anew {
    /// Those that can have grown.
    Grown,
    /// These, by name; what was never listed of the others is missing.
    These(BTreeSet<String>),
    /// Every one.
    All,
}

/// A handle to the memory; clones share it.
#[derive(Debug, Clone)]
pub struct Archives {
    tool: Arc<Tool>,
    directories: Arc<StdMutex<BTreeMap<Key, Directories>>>,
    histories: Arc<StdMutex<BTreeMap<(Key, Timeline), History>>>,
}

impl Archives {
    /// A memory, empty.
    pub fn new(tool: Arc<Tool>) -> Self {
        Self { tool, directories: Arc::default(), histories: Arc::default() }
    }

    /// What every readable repository has of the cluster with this system identifier (the newest
    /// one that the stanza knows when it is not given).
    pub async fn look(
        &self,
        name: &StanzaName,
        stanza: &StanzaInfo,
        system_id: Option<&str>,
        size: SegmentSize,
        anew: &Anew,
    ) -> Result<BTreeMap<RepoKey, Archive>, Unavailable> {
        let mut found = BTreeMap::new();
        for repo in &stanza.repos {
            let Some(id) = archive_id(stanza, repo.key, system_id) else { continue };
            let key = (name.clone(), repo.key, id);
            match self.list(&key, size, anew).await {
                Ok(archive) => {
                    found.insert(repo.key, archive);
                }
                // One that cannot be read now is told of by its status; the others still count.
                Err(error) if stanza.repos.len() > 1 => {
                    tracing::warn!(repo = %repo.key, "cannot list the archive: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// The labels of the backups whose directories a repository has.
    pub(super) async fn backups(
        &self,
        stanza: &StanzaName,
        repo: RepoKey,
    ) -> Result<BTreeSet<BackupLabel>, Unavailable> {
        let entries = self.ls(stanza, repo, &format!("backup/{stanza}")).await?;
        Ok(entries.iter().filter_map(|entry| entry.name.parse().ok()).collect())
    }

    async fn list(
        &self,
        key: &Key,
        size: SegmentSize,
        anew: &Anew,
    ) -> Result<Archive, Unavailable> {
        let (stanza, repo, id) = key;
        let root = format!("archive/{stanza}/{id}");
        let top = self.ls(stanza, *repo, &root).await?;
        let mut archive = Archive::default();
        for (timeline, entry) in
            top.iter().filter_map(|entry| Some((listing::history(&entry.name)?, entry)))
        {
            if let Some(at) = entry.changed_at {
                archive.born.insert(timeline, at);
            }
            if let Some(history) = self.history(key, &root, &entry.name, timeline).await? {
                archive.timelines.insert(timeline, history);
            }
        }
        let directories: Vec<&String> =
            top.iter().filter(|e| e.is_directory && e.name.len() == 16).map(|e| &e.name).collect();
        let listed = self.directories(key, &root, &directories, anew).await?;
        let mut segments: Vec<WalSegment> = Vec::new();
        for entry in listed.values().flat_map(|(_, entries)| entries) {
            let Some(segment) = listing::segment(&entry.name, size) else { continue };
            segments.push(segment);
            // Told in whole seconds, cut off.
            let not_after = |at: Timestamp| at.saturating_add(SignedDuration::from_secs(1)).ok();
            if let Some(at) = entry.changed_at.and_then(not_after) {
                let newest = archive.archived_at.entry(segment.timeline()).or_insert(at);
                *newest = at.max(*newest);
            }
        }
        archive.segments = segments.into_iter().collect();
        Ok(archive)
    }

    /// The listings of the directories.
    async fn directories(
        &self,
        key: &Key,
        root: &str,
        names: &[&String],
        anew: &Anew,
    ) -> Result<Directories, Unavailable> {
        let mut known = {
            let all = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(key).cloned().unwrap_or_default()
        };
        known.retain(|name, _| names.contains(&name));
        let wanted: Vec<String> = names
            .iter()
            .filter(|name| match anew {
                Anew::Grown => is_old(name, names, &known),
                Anew::These(these) => these.contains(name.as_str()),
                Anew::All => true,
            })
            .copied()
            .cloned()
            .collect();
        for some in wanted.chunks(AT_ONCE) {
            let work = some.iter().map(|name| async move {
                let entries = self.ls(&key.0, key.1, &format!("{root}/{name}")).await?;
                Ok::<_, Unavailable>((name.clone(), entries))
            });
            for (name, entries) in futures_util::future::try_join_all(work).await? {
                let grows = is_last_of_timeline(&name, names);
                known.insert(name, ((!grows).then(Instant::now), entries));
            }
        }
        let mut all = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key.clone(), known.clone());
        Ok(known)
    }

    async fn history(
        &self,
        key: &Key,
        root: &str,
        file: &str,
        timeline: Timeline,
    ) -> Result<Option<History>, Unavailable> {
        let slot = (key.clone(), timeline);
        let known = {
            let all = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
            all.get(&slot).cloned()
        };
        if known.is_some() {
            return Ok(known);
        }
        let path = format!("{root}/{file}");
        let text =
            self.run(&RepoGet { stanza: &key.0, repo: key.1, path: &path }.invocation()).await?;
        match History::parse(&String::from_utf8_lossy(&text)) {
            Ok(history) => {
                let mut all = self.histories.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(slot, history.clone());
                Ok(Some(history))
            }
            Err(error) => {
                tracing::warn!("{file} in the archive is passed over: {error}");
                Ok(None)
            }
        }
    }

    async fn ls(
        &self,
        stanza: &StanzaName,
        repo: RepoKey,
        path: &str,
    ) -> Result<Vec<listing::Entry>, Unavailable> {
        let output = self.run(&RepoLs { stanza, repo, path }.invocation()).await?;
        listing::parse(&output).map_err(|error| Unavailable::new(crate::telemetry::chain(&error)))
    }

    async fn run(&self, invocation: &Invocation) -> Result<Vec<u8>, Unavailable> {
        let captured = self
            .tool
            .capture(invocation, &BTreeMap::new())
            .await
            .map_err(|error| Unavailable::new(crate::telemetry::chain(&error)))?;
        if captured.end.is_success() {
            return Ok(captured.stdout);
        }
        let (what, end) = (invocation.subcommand, captured.end);
        Err(Unavailable::new(format!("pgbackrest {what} {end}: {}", captured.stderr)))
    }
}

impl Archive {
    /// Everything that any of several archives has: PostgreSQL asks them all.
    pub fn union<'a>(archives: impl IntoIterator<Item = &'a Self>, size: SegmentSize) -> Self {
        let mut all = Self::default();
        let mut segments: Vec<WalSegment> = Vec::new();
        for archive in archives {
            for (timeline, ranges) in archive.segments.timelines() {
                let numbers = ranges.iter().flat_map(|(first, last)| first..=last);
                segments.extend(numbers.filter_map(|n| WalSegment::numbered(timeline, n, size)));
            }
            for timeline in archive.timelines.known() {
                if let Some(history) = archive.timelines.history(timeline) {
                    all.timelines.insert(timeline, history.clone());
                }
            }
            for (timeline, at) in &archive.born {
                let first = all.born.entry(*timeline).or_insert(*at);
                *first = (*first).min(*at);
            }
            for (timeline, at) in &archive.archived_at {
                let newest = all.archived_at.entry(*timeline).or_insert(*at);
                *newest = (*newest).max(*at);
            }
        }
        all.segments = segments.into_iter().collect();
        all
    }
}

/// The database entries of the cluster with this system identifier, or of the newest cluster.
pub fn databases_of<'a>(
    stanza: &'a StanzaInfo,
    system_id: Option<&'a str>,
) -> impl Iterator<Item = &'a Database> {
    let newest = stanza.databases.iter().max_by_key(|database| database.id);
    let wanted = system_id.or_else(|| newest.map(|database| database.system_id.as_str()));
    stanza.databases.iter().filter(move |database| Some(database.system_id.as_str()) == wanted)
}

/// Whether a directory can still grow: the archiver is in the last of a timeline.
fn is_last_of_timeline(name: &str, names: &[&String]) -> bool {
    !names.iter().any(|other| other.get(..8) == name.get(..8) && other.as_str() > name)
}

/// Whether what is known of a directory may not hold any more. One that could still grow when it was
/// listed is listed once more after the archiver has left it.
fn is_old(name: &str, names: &[&String], known: &Directories) -> bool {
    let listed = known.get(name).and_then(|(listed, _)| *listed);
    is_last_of_timeline(name, names) || listed.is_none_or(|at| at.elapsed() >= OLD_DIRECTORIES)
}

/// The directory of a cluster's archive in a repository, such as `15-1`.
fn archive_id(stanza: &StanzaInfo, repo: RepoKey, system_id: Option<&str>) -> Option<String> {
    let own: Vec<u64> = databases_of(stanza, system_id)
        .filter(|database| database.repo_key == Some(repo))
        .filter_map(|database| database.id)
        .collect();
    let of_repo = stanza.archives.iter().filter(|archive| archive.repo_key == Some(repo));
    let newest = of_repo
        .filter(|archive| archive.database_id.is_some_and(|id| own.contains(&id)))
        .max_by_key(|archive| archive.database_id)?;
    // It becomes part of a path.
    let plain = newest.id.bytes().all(|b| b.is_ascii_digit() || b == b'-' || b == b'.');
    plain.then(|| newest.id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_listed_again_after_the_archiver_has_left_it() {
        let names = ["0000000100000000", "0000000100000001", "0000000200000001"].map(String::from);
        let all: Vec<&String> = names.iter().collect();
        let old = |known: &Directories| {
            let old = names.iter().filter(|name| is_old(name, &all, known));
            old.map(|name| &name[7..]).collect::<Vec<_>>()
        };
        let mut known = Directories::new();
        assert_eq!(old(&known), ["100000000", "100000001", "200000001"]);
        // The first was the last of its timeline when it was listed.
        let first = names[0].clone();
        assert!(is_last_of_timeline(&first, &[&first]));
        known.insert(first.clone(), (None, Vec::new()));
        assert_eq!(old(&known).len(), 3);
        known.insert(first, (Some(Instant::now()), Vec::new()));
        assert_eq!(old(&known), ["100000001", "200000001"]);
    }
}
