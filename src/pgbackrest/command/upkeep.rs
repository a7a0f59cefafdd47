//! What keeps a repository in order: `expire`, `verify`, `annotate`.

use super::{Console, Invocation, build};
use crate::domain::retention::ArchiveType;
use crate::domain::{Annotations, BackupLabel, RepoKey, StanzaName};
use crate::pgbackrest::conf::ALL_FULLS;

/// What `expire` may remove beside the set that it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    /// Whatever pgBackRest's configuration says.
    Configured,
    /// Nothing.
    Nothing,
    /// No backup, but WAL: it is kept from the Nth newest backup on that counts (and what makes each
    /// backup consistent). Both are always said: what the configuration says for `backup` alone
    /// `expire` does not see.
    Wal {
        /// `repoN-retention-archive`.
        count: u32,
        /// `repoN-retention-archive-type`.
        by: ArchiveType,
    },
}

/// `expire` (command reference, "Expire Command").
///
/// What it did is told by `info` afterwards: an unknown set is a warning and exit code 0.
#[derive(Debug, Clone)]
pub struct Expire<'a> {
    /// The stanza.
    pub stanza: &'a StanzaName,
    /// Only this repository; every one when not given.
    pub repo: Option<RepoKey>,
    /// This set, with all that builds upon it.
    pub set: Option<&'a BackupLabel>,
    /// Only say what would go.
    pub dry_run: bool,
    /// What else may go. Other than configured needs a repository.
    pub limits: Limits,
}

impl Expire<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        let mut options: Vec<String> = Vec::new();
        options.extend(self.repo.map(|repo| format!("--repo={repo}")));
        options.extend(self.set.map(|label| format!("--set={label}")));
        if self.dry_run {
            options.push("--dry-run".to_owned());
        }
        let repo = self.repo.unwrap_or(RepoKey::FIRST);
        let mut limit = |name: &str, value: String| {
            options.push(format!("--repo{repo}-retention-{name}={value}"));
        };
        let mut no_backup = || {
            limit("full", ALL_FULLS.to_string());
            limit("full-type", "count".to_owned());
            limit("diff", ALL_FULLS.to_string());
        };
        match self.limits {
            Limits::Configured => {}
            Limits::Nothing => {
                no_backup();
                // WAL goes only when there are so many fulls (removeExpiredArchive in its source).
                limit("archive", ALL_FULLS.to_string());
                limit("archive-type", "full".to_owned());
            }
            Limits::Wal { count, by } => {
                no_backup();
                limit("archive", count.max(1).to_string());
                limit("archive-type", by.to_string());
            }
        }
        build("expire", self.stanza, Console::Detail, options)
    }
}

/// `verify`, with its report as text: there is no other form of it (seen with 2.45 to 2.60). It
/// exits 0 whatever it finds.
#[derive(Debug, Clone)]
pub struct Verify<'a> {
    /// The stanza.
    pub stanza: &'a StanzaName,
    /// The repository. Always given: without it only the first is looked at.
    pub repo: RepoKey,
    /// Only this set, where [`crate::pgbackrest::version::Version::verifies_one_set`].
    pub set: Option<&'a BackupLabel>,
}

impl Verify<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        let mut options = vec![format!("--repo={}", self.repo)];
        options.extend(self.set.map(|label| format!("--set={label}")));
        // Without --verbose what is well is left out.
        options.extend(["--output=text".to_owned(), "--verbose".to_owned()]);
        build("verify", self.stanza, Console::Detail, options)
    }
}

/// `annotate` of one set (2.41 and later).
#[derive(Debug, Clone)]
pub struct Annotate<'a> {
    /// The stanza.
    pub stanza: &'a StanzaName,
    /// Only this repository; every one that has the set when not given.
    pub repo: Option<RepoKey>,
    /// The set.
    pub set: &'a BackupLabel,
    /// What is added or replaced.
    pub annotations: &'a Annotations,
    /// The keys of what is removed.
    pub remove: &'a [String],
}

impl Annotate<'_> {
    /// The command line.
    pub fn invocation(&self) -> Invocation {
        let mut options: Vec<String> = Vec::new();
        options.extend(self.repo.map(|repo| format!("--repo={repo}")));
        options.push(format!("--set={}", self.set));
        let pairs = self.annotations.iter();
        options.extend(pairs.map(|(key, value)| format!("--annotation={key}={value}")));
        // An empty value removes.
        options.extend(self.remove.iter().map(|key| format!("--annotation={key}=")));
        build("annotate", self.stanza, Console::Detail, options)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn command_lines() {
        let stanza: StanzaName = "main".parse().unwrap();
        let set: BackupLabel = "20261120-101500F".parse().unwrap();
        let two = RepoKey::try_from(2).unwrap();
        let expire = |set, repo, dry_run, limits| {
            Expire { stanza: &stanza, repo, set, dry_run, limits }.invocation()
        };
        let annotations =
            Annotations::parse(BTreeMap::from([("why".to_owned(), "a b".to_owned())])).unwrap();
        let lines = [
            expire(None, None, false, Limits::Configured),
            expire(Some(&set), Some(two), true, Limits::Nothing),
            expire(None, Some(two), false, Limits::Wal { count: 3, by: ArchiveType::Full }),
            expire(
                None,
                Some(RepoKey::FIRST),
                false,
                Limits::Wal { count: 5, by: ArchiveType::Diff },
            ),
            Verify { stanza: &stanza, repo: RepoKey::FIRST, set: None }.invocation(),
            Verify { stanza: &stanza, repo: two, set: Some(&set) }.invocation(),
            Annotate {
                stanza: &stanza,
                repo: None,
                set: &set,
                annotations: &annotations,
                remove: &["old".to_owned()],
            }
            .invocation(),
        ]
        .map(|invocation| {
            let log = "--log-level-console=detail --log-level-stderr=off --log-timestamp";
            invocation.args.join(" ").replace(log, "LOG")
        })
        .join("\n");
        insta::assert_snapshot!(lines, @r"
        --stanza=main LOG expire
        --stanza=main --repo=2 --set=20261120-101500F --dry-run --repo2-retention-full=9999999 --repo2-retention-full-type=count --repo2-retention-diff=9999999 --repo2-retention-archive=9999999 --repo2-retention-archive-type=full LOG expire
        --stanza=main --repo=2 --repo2-retention-full=9999999 --repo2-retention-full-type=count --repo2-retention-diff=9999999 --repo2-retention-archive=3 --repo2-retention-archive-type=full LOG expire
        --stanza=main --repo=1 --repo1-retention-full=9999999 --repo1-retention-full-type=count --repo1-retention-diff=9999999 --repo1-retention-archive=5 --repo1-retention-archive-type=diff LOG expire
        --stanza=main --repo=1 --output=text --verbose LOG verify
        --stanza=main --repo=2 --set=20261120-101500F --output=text --verbose LOG verify
        --stanza=main --set=20261120-101500F --annotation=why=a b --annotation=old= LOG annotate
        ");
    }
}
