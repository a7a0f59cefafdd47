//! Databases and tablespaces that exist where recovery has ended, and that it has destroyed
//! (`domain::drops`): restored again to the position before, or said.

use super::super::plans::add_histories;
use super::super::worker::problem;
use super::close::DESTROYED;
use super::{Next, Run, Stop};
use crate::domain::Lsn;
use crate::domain::drops::{self, Destroyed, Record, Remedy};
use crate::domain::plan::check::CheckId;
use crate::domain::recovery::RecoveryTarget;
use crate::domain::restore::{Awaiting, Phase, Wait};
use crate::domain::timeline::Timelines;
use crate::pgbackrest::log::Level;
use crate::postgres::client::{Catalogue, Connection, RecoveryFacts};
use crate::postgres::{tablespaces, waldump};

impl Run<'_> {
    /// Looks whether everything that the recovered cluster lists has its files. `None` when it has, or when
    /// what is missing was accepted, or was gone on the server that the backup is of.
    pub(super) async fn find_destroyed(
        &mut self,
        connection: &Connection,
        facts: &RecoveryFacts,
    ) -> Result<Option<Next>, Stop> {
        self.journal.destroyed.clear();
        self.journal.unmark.clear();
        let listed = connection.catalogue().await.map_err(|error| {
            let message = format!("cannot look at the recovered databases: {error}");
            Stop::NeedsOperator(problem("recovery-failed", message, &["Restore again."]))
        })?;
        self.note_unborn_tablespaces(&listed)?;
        let destroyed = self.without_files(&listed);
        let marked: Vec<_> = listed
            .databases
            .iter()
            .filter(|database| database.is_invalid)
            .filter(|database| !destroyed.iter().any(|lost| lost.is_database(database.oid)))
            .collect();
        if destroyed.is_empty() && marked.is_empty() {
            return Ok(None);
        }
        let (records, unread) = match self.last_records(facts).await {
            Ok(records) => (records, None),
            Err(message) => {
                self.recorder.say(Level::Warn, message.clone()).await;
                (Vec::new(), Some(message))
            }
        };
        let set_end = self.end_of_set();
        let mut half_dropped = Vec::new();
        for database in marked {
            if drops::was_marked_after(&records, database.xmax, set_end) {
                let text = format!(
                    "database {:?} is marked as invalid by a DROP DATABASE that was not committed; its \
                     files are whole, and the mark will be taken off. Its connection limit, if it had \
                     one, is lost",
                    database.name
                );
                self.recorder.say(Level::Warn, text).await;
                self.journal.unmark.push(database.name.clone());
            } else {
                half_dropped.push(Destroyed::Database(database.oid, database.name.clone()));
            }
        }
        let next = match drops::remedy(&records, &destroyed) {
            Remedy::Nothing => None,
            Remedy::EndBefore(cut) if self.can_end_before(cut, set_end) => {
                return self.end_before(cut, &destroyed).await.map(Some);
            }
            Remedy::Conflict { removal, commits } if !self.is_destroyed_anyway() => {
                let text = format!(
                    "{} is listed at the target, and its files were removed at {removal}, before {}",
                    join(&destroyed),
                    match commits {
                        1 => "a transaction that was committed until the target".to_owned(),
                        n => format!("{n} transactions that were committed until the target"),
                    }
                );
                self.decide_about_destroyed(connection, text).await?
            }
            Remedy::EndBefore(cut) if !self.is_destroyed_anyway() => {
                let text = format!(
                    "{} is listed at the target, and its files were removed at {cut}, while the \
                     backup was made: an older backup set has them",
                    join(&destroyed)
                );
                self.decide_about_destroyed(connection, text).await?
            }
            Remedy::WasSo if unread.is_some() && !self.is_destroyed_anyway() => {
                let text = format!(
                    "{} is listed at the target and has no files, and where they were removed is not \
                     known: {}",
                    join(&destroyed),
                    unread.unwrap_or_default()
                );
                self.decide_about_destroyed(connection, text).await?
            }
            Remedy::Conflict { .. } | Remedy::EndBefore(_) | Remedy::WasSo => None,
        };
        if matches!(next, None | Some(Next::Unfence)) {
            let lost = destroyed.iter().chain(&half_dropped);
            self.journal.destroyed = lost.map(ToString::to_string).collect();
        }
        Ok(next)
    }

    fn without_files(&self, listed: &Catalogue) -> Vec<Destroyed> {
        let data_dir = &self.side.data_dir;
        let version_dir = self.journal.version_dir.as_deref();
        let databases = listed.databases.iter().filter(|database| {
            tablespaces::directory(data_dir, version_dir, database.tablespace).is_some_and(
                |space| !space.join(database.oid.to_string()).join("PG_VERSION").exists(),
            )
        });
        let databases =
            databases.map(|database| Destroyed::Database(database.oid, database.name.clone()));
        let spaces = listed.tablespaces.iter().filter(|(oid, _)| {
            tablespaces::directory(data_dir, version_dir, *oid)
                .is_some_and(|directory| !directory.is_dir())
        });
        let spaces = spaces.map(|(oid, name)| Destroyed::Tablespace(*oid, name.clone()));
        databases.chain(spaces).collect()
    }

    /// The last records that were replayed.
    async fn last_records(&self, facts: &RecoveryFacts) -> Result<Vec<Record>, String> {
        let replayed = facts.replayed.ok_or("nothing was replayed")?;
        let timeline = self.journal.timeline.ok_or("the timeline is not known")?;
        let (size, pg_wal) = (self.segment_size(), self.side.data_dir.join("pg_wal"));
        let mut timelines = Timelines::default();
        add_histories(&[&pg_wal, &self.histories_dir()], &mut timelines);
        let last = timelines.branch(timeline).segment(size.number_before(replayed), size);
        waldump::last_records(&self.side.binaries, &self.side.env, &pg_wal, last, replayed, size)
            .await
            .map_err(|error| {
                format!(
                    "cannot read the WAL before {replayed}: {}",
                    crate::telemetry::chain(&error)
                )
            })
    }

    /// Where the set ends: replay cannot end before.
    fn end_of_set(&self) -> Lsn {
        let seen = self.context.catalog.last(&self.journal.stanza).and_then(Result::ok);
        let stop = seen.and_then(|seen| {
            let mut backups = seen.stanza.backups.iter();
            backups.find(|backup| backup.label == self.journal.set)?.lsn_stop
        });
        stop.unwrap_or(Lsn::new(0))
    }

    fn can_end_before(&self, cut: Lsn, set_end: Lsn) -> bool {
        cut > set_end && self.journal.cut.is_none_or(|before| cut < before)
    }

    /// Whether what is missing was missing on the server of that time as well: at the very end of a
    /// timeline the removal has happened. Or it was accepted.
    fn is_destroyed_anyway(&self) -> bool {
        self.journal.target == RecoveryTarget::Latest
            || self.journal.accept.contains(&CheckId::Destroyed)
    }

    /// Restores everything again, to the position before the removal.
    async fn end_before(&mut self, cut: Lsn, destroyed: &[Destroyed]) -> Result<Next, Stop> {
        let text = format!(
            "{} is listed at the target, and its files were removed by a transaction that was not \
             committed. Nothing was committed after the removal: restoring again, to the position \
             before it ({cut})",
            join(destroyed)
        );
        self.recorder.say(Level::Warn, text).await;
        self.stop_server().await?;
        // In one write: a server started with this position on files of after it would end itself.
        self.journal.cut = Some(cut);
        self.journal.phase = Phase::Restoring;
        self.write_journal().await.map_err(Stop::NeedsOperator)?;
        self.helm.phases.tell(Phase::Restoring, None).await;
        Ok(Next::Restore)
    }

    async fn decide_about_destroyed(
        &mut self,
        connection: &Connection,
        text: String,
    ) -> Result<Option<Next>, Stop> {
        self.wait_for_decision(connection, Wait::of(Awaiting::Destroyed, text)).await.map(Some)
    }

    /// Takes the mark off databases that an uncommitted DROP DATABASE had marked.
    pub(super) async fn unmark_databases(&mut self, connection: &Connection) {
        for name in std::mem::take(&mut self.journal.unmark) {
            match connection.make_valid(&name).await {
                Ok(()) => {
                    let text = format!("database {name:?} accepts connections again");
                    self.recorder.say(Level::Info, text).await;
                }
                Err(error) => {
                    let text = format!("cannot take the mark off database {name:?}: {error}");
                    self.recorder.say(Level::Warn, text).await;
                    self.journal.unmark.push(name);
                    break;
                }
            }
        }
    }

    /// What has to be said of databases that cannot be used.
    pub(super) fn warn_of_destroyed(&mut self) {
        if self.journal.destroyed.is_empty() && self.journal.unmark.is_empty() {
            return;
        }
        let (mut told, mut hints) = (Vec::new(), Vec::new());
        if !self.journal.destroyed.is_empty() {
            told.push(format!(
                "{} was being dropped at the target, and has no files or only some",
                self.journal.destroyed.join(", ")
            ));
            hints.push(
                "Finish what was begun with DROP DATABASE or DROP TABLESPACE; or restore to an earlier \
                 target, at which it is whole.",
            );
        }
        if !self.journal.unmark.is_empty() {
            told.push(format!(
                "{} does not accept connections: a DROP DATABASE had marked it",
                self.journal.unmark.join(", ")
            ));
            hints.push(
                "Connect as a superuser and run: UPDATE pg_database SET datconnlimit = -1 WHERE \
                 datconnlimit = -2 AND datname = '…'",
            );
        }
        let message = format!("the restore is complete, but {}", told.join("; and "));
        self.journal.warning.get_or_insert(problem(DESTROYED, message, &hints));
    }
}

fn join(destroyed: &[Destroyed]) -> String {
    let names: Vec<String> = destroyed.iter().map(ToString::to_string).collect();
    names.join(", ")
}
