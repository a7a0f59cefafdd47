//! Databases and tablespaces that recovery has destroyed, although they exist at the target.
//!
//! `DROP DATABASE` and `DROP TABLESPACE` remove files before their transaction commits (PostgreSQL
//! source, `dropdb` and `DropTableSpace`). Recovery that stops in between has removed the files and
//! still lists the database. So recovery has to end before the removal; that leaves nothing out as
//! long as nothing else was committed between the removal and the target.
//!
//! Pure: `postgres::waldump` reads the records, `jobs::restore` looks at the recovered cluster.

use super::Lsn;

/// A record of the WAL, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Where it begins.
    pub lsn: Lsn,
    /// The transaction that wrote it; 0 for none.
    pub xid: u32,
    /// What it does.
    pub what: What,
}

/// What a record does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Commits a transaction, prepares one, or ends a prepared one: somebody was told that it is done.
    Commit,
    /// Rolls its transaction back.
    Abort,
    /// Removes the files of a database with this OID.
    DropDatabase(u32),
    /// Removes the directory of a tablespace with this OID.
    DropTablespace(u32),
    /// Changes a row of `pg_database` outside of any transaction: a database that is being dropped is
    /// marked as invalid so.
    MarkDatabase,
    /// A server was started after a crash, or shut down: what was under way has ended without a trace.
    ServerEnd,
    /// Something else.
    Other,
}

/// Something that exists at the target and has no files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destroyed {
    /// A database: OID and name.
    Database(u32, String),
    /// A tablespace: OID and name.
    Tablespace(u32, String),
}

impl Destroyed {
    /// Whether it is the database with this OID.
    pub fn is_database(&self, oid: u32) -> bool {
        matches!(self, Self::Database(own, _) if *own == oid)
    }
}

impl std::fmt::Display for Destroyed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(_, name) => write!(f, "database {name:?}"),
            Self::Tablespace(_, name) => write!(f, "tablespace {name:?}"),
        }
    }
}

/// What can be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing is destroyed.
    Nothing,
    /// End recovery before the record at this position: nothing that was committed is left out.
    EndBefore(Lsn),
    /// The same would leave out this many transactions, which committed after the removal.
    Conflict {
        /// The removal.
        removal: Lsn,
        /// How many.
        commits: usize,
    },
    /// It was so on the server that the backup is of: the removal is not among the records, or what did
    /// it had failed by then.
    WasSo,
}

/// Judges the last records, in their order, up to where recovery ended.
pub fn remedy(records: &[Record], destroyed: &[Destroyed]) -> Remedy {
    if destroyed.is_empty() {
        return Remedy::Nothing;
    }
    let removes = |record: &Record| {
        destroyed.iter().any(|lost| match (lost, &record.what) {
            (Destroyed::Database(oid, _), What::DropDatabase(dropped))
            | (Destroyed::Tablespace(oid, _), What::DropTablespace(dropped)) => oid == dropped,
            _ => false,
        })
    };
    let Some(removal) = records.iter().position(removes) else { return Remedy::WasSo };
    let is_commit = |record: &&Record| record.what == What::Commit;
    let commits = records[removal..].iter().filter(is_commit).count();
    let has_failed = |record: &Record| {
        record.what == What::ServerEnd
            || record.what == What::Abort && record.xid == records[removal].xid
    };
    if commits > 0 && records[removal..].iter().any(has_failed) {
        return Remedy::WasSo;
    }
    if commits > 0 {
        return Remedy::Conflict { removal: records[removal].lsn, commits };
    }
    // The mark that comes first is left out as well, unless something was committed since.
    let before = records[..removal].iter().rev().take_while(|record| !is_commit(record));
    let mark = before.filter(|record| record.what == What::MarkDatabase).last();
    Remedy::EndBefore(mark.unwrap_or(&records[removal]).lsn)
}

/// Whether a database that a transaction has marked as invalid is whole all the same, if it still has
/// its files: the mark comes before the removal, and this one was set after `position`, until when
/// the set had copied everything.
pub fn was_marked_after(records: &[Record], xid: u32, position: Lsn) -> bool {
    let first = records.iter().position(|record| record.xid == xid).filter(|_| xid != 0);
    first.is_some_and(|first| {
        let is_mark = |record: &Record| record.what == What::MarkDatabase && record.lsn > position;
        records[..first].iter().any(is_mark)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(list: &[(u64, u32, What)]) -> Vec<Record> {
        let record = |(lsn, xid, what): &(u64, u32, What)| Record {
            lsn: Lsn::new(*lsn),
            xid: *xid,
            what: what.clone(),
        };
        list.iter().map(record).collect()
    }

    #[test]
    fn recovery_ends_before_the_removal_unless_something_is_left_out() {
        use What::{Abort, Commit, DropDatabase, DropTablespace, MarkDatabase, Other, ServerEnd};
        let shop = [Destroyed::Database(5, "shop".into())];
        let space = [Destroyed::Tablespace(7, "space".into())];
        let end = |lsn| Remedy::EndBefore(Lsn::new(lsn));
        let dropped = [
            (10, 3, Commit),
            (20, 0, MarkDatabase),
            (30, 4, Other),
            (40, 0, Other),
            (50, 4, DropDatabase(5)),
        ];
        let with = |more: &[(u64, u32, What)]| records(&[&dropped[..], more].concat());
        let cases = [
            (with(&[]), &shop[..], end(20)),
            (with(&[(60, 6, Other), (70, 6, Abort)]), &shop, end(20)),
            (
                with(&[(60, 6, Commit), (70, 7, Commit)]),
                &shop,
                Remedy::Conflict { removal: Lsn::new(50), commits: 2 },
            ),
            (with(&[]), &space, Remedy::WasSo),
            (vec![], &shop, Remedy::WasSo),
            // Something was committed after the mark: the mark stays, and is mended afterwards.
            (
                records(&[
                    (20, 0, MarkDatabase),
                    (30, 4, Other),
                    (35, 9, Commit),
                    (50, 4, DropDatabase(5)),
                ]),
                &shop,
                end(50),
            ),
            (
                records(&[(10, 3, Commit), (30, 4, Other), (50, 4, DropTablespace(7))]),
                &space,
                end(50),
            ),
            (records(&[(50, 0, DropTablespace(7))]), &space, end(50)),
            // What removed it had failed at the target: it was destroyed on the server as well.
            (with(&[(60, 4, Abort), (70, 6, Commit)]), &shop, Remedy::WasSo),
            (with(&[(60, 0, ServerEnd), (70, 6, Commit)]), &shop, Remedy::WasSo),
            (
                with(&[(60, 9, Abort), (70, 6, Commit)]),
                &shop,
                Remedy::Conflict { removal: Lsn::new(50), commits: 1 },
            ),
            (with(&[(60, 4, Abort)]), &shop, end(20)),
            (with(&[]), &[], Remedy::Nothing),
            // Of another database.
            (records(&[(50, 4, DropDatabase(6))]), &shop, Remedy::WasSo),
        ];
        for (records, destroyed, expect) in cases {
            assert_eq!(remedy(&records, destroyed), expect, "{records:?}");
        }
    }

    #[test]
    fn a_mark_that_is_younger_than_the_set_leaves_the_database_whole() {
        use What::{Abort, Commit, MarkDatabase, Other};
        let list = records(&[
            (10, 3, Commit),
            (20, 0, MarkDatabase),
            (30, 4, Other),
            (40, 5, Other),
            (50, 4, Abort),
        ]);
        let after = |xid, position| was_marked_after(&list, xid, Lsn::new(position));
        assert!(after(4, 15) && after(5, 15));
        // Before the set's end; a transaction whose beginning is not known; none.
        assert!(!after(4, 25) && !after(3, 5) && !after(7, 5) && !after(0, 5));
    }
}
