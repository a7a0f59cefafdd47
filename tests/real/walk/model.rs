//! What should be there, and what is.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::support::moments::at;
use crate::support::sql::Sql;

/// The rows of every database that the walk makes.
const GOODS: &str = "20";

/// A table of the database `postgres`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) rows: BTreeSet<u32>,
    pub(super) columns: u32,
    /// Empty for the default one.
    pub(super) tablespace: String,
}

/// Everything that was committed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct World {
    pub(super) tables: BTreeMap<String, Table>,
    pub(super) databases: BTreeSet<String>,
    pub(super) tablespaces: BTreeSet<String>,
    /// Prepared transactions, each with the row that it inserts into `t`.
    pub(super) prepared: BTreeMap<String, u32>,
}

impl World {
    /// What a server shows: each table read by its pages and by its index, each database read. Some tables
    /// cannot be read.
    pub(super) fn seen(sql: &Sql, locked: &BTreeSet<String>) -> Self {
        let list = |query: &str| -> BTreeSet<String> {
            sql.run(query).lines().map(str::to_owned).collect()
        };
        let tables = sql.run(
            "SELECT relname, coalesce(spcname, ''), relnatts FROM pg_class c LEFT JOIN pg_tablespace s \
             ON s.oid = reltablespace WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
        );
        let table = |line: &str| {
            let fields: Vec<&str> = line.split('|').collect();
            let table = Table {
                rows: rows(sql, fields[0]),
                columns: fields[2].parse().unwrap(),
                tablespace: fields[1].to_owned(),
            };
            (fields[0].to_owned(), table)
        };
        let databases = list("SELECT datname FROM pg_database WHERE datname LIKE 'd_%'");
        for database in &databases {
            let count = sql.attempt_in(database, "SELECT count(*) FROM goods");
            assert_eq!(count.as_deref(), Ok(GOODS), "database {database}");
        }
        let prepared = list("SELECT gid FROM pg_prepared_xacts");
        let number = |gid: String| (gid.clone(), gid.trim_start_matches('x').parse().unwrap());
        Self {
            tables: tables
                .lines()
                .filter(|line| !locked.contains(line.split('|').next().unwrap_or_default()))
                .map(table)
                .collect(),
            databases,
            tablespaces: list("SELECT spcname FROM pg_tablespace WHERE spcname LIKE 's_%'"),
            prepared: prepared.into_iter().map(number).collect(),
        }
    }

    /// What is different in what was found, in words.
    pub(super) fn differences(&self, found: &Self) -> Vec<String> {
        let mut found_wrong = Vec::new();
        let names: BTreeSet<&String> = self.tables.keys().chain(found.tables.keys()).collect();
        for name in names {
            match (self.tables.get(name), found.tables.get(name)) {
                (Some(wanted), Some(is)) if wanted != is => {
                    let lost: Vec<_> = wanted.rows.difference(&is.rows).collect();
                    let strange: Vec<_> = is.rows.difference(&wanted.rows).collect();
                    let layout = |table: &Table| (table.columns, table.tablespace.clone());
                    found_wrong.push(format!(
                        "table {name}: lost {lost:?}, strange {strange:?}, {:?} for {:?}",
                        layout(is),
                        layout(wanted)
                    ));
                }
                (Some(_), Some(_)) => {}
                (Some(_), None) => found_wrong.push(format!("table {name} is lost")),
                (None, _) => found_wrong.push(format!("table {name} is strange")),
            }
        }
        let mut sets = |what: &str, wanted: &BTreeSet<String>, is: &BTreeSet<String>| {
            if wanted != is {
                found_wrong.push(format!("{what}: {is:?} instead of {wanted:?}"));
            }
        };
        sets("databases", &self.databases, &found.databases);
        sets("tablespaces", &self.tablespaces, &found.tablespaces);
        let gids = |world: &Self| world.prepared.keys().cloned().collect();
        sets("prepared transactions", &gids(self), &gids(found));
        found_wrong
    }
}

fn rows(sql: &Sql, table: &str) -> BTreeSet<u32> {
    let by = |settings: &str| -> BTreeSet<u32> {
        let query = format!("{settings}; SELECT id FROM {table} ORDER BY id");
        sql.run(&query).lines().map(|line| line.parse().unwrap()).collect()
    };
    let by_pages = by("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET \
                       enable_bitmapscan = off");
    assert_eq!(by("SET enable_seqscan = off"), by_pages, "table {table} and its index differ");
    by_pages
}

/// A moment of the past that can be asked for.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub(super) world: World,
    pub(super) moment: Timestamp,
    pub(super) lsn: String,
    pub(super) timeline: u32,
    /// The last transaction that was committed, where nothing else was done since.
    pub(super) xid: Option<u64>,
    pub(super) point: Option<String>,
    /// The backups from which it can be reached, each with the first moment that it can be restored to.
    pub(super) backups: Vec<(String, Timestamp)>,
    /// Some of its WAL may have reached no archive.
    pub(super) is_doubtful: bool,
}

impl Snapshot {
    /// A way to ask for it, and the timeline where that must be said.
    pub(super) fn target(&self, choice: u32) -> (Value, Value) {
        let on_timeline = json!({ "timeline": self.timeline });
        match (choice % 5, &self.point, self.xid) {
            (0, Some(name), _) => (json!({ "type": "name", "value": name }), json!({})),
            (1, _, Some(xid)) => (json!({ "type": "xid", "value": xid }), on_timeline),
            (0..=2, _, _) => {
                let target = json!({ "type": "lsn", "value": self.lsn, "exclusive": true });
                (target, on_timeline)
            }
            _ => (at(self.moment), json!({})),
        }
    }
}
