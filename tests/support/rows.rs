//! Rows that must all be there in the end.

use std::collections::BTreeSet;

use super::sql::Sql;

/// A table and what was committed to it. A clone is what was there at a moment.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    sql: Sql,
    table: String,
    committed: BTreeSet<u32>,
}

impl Rows {
    /// Makes the table.
    pub(crate) fn in_new_table(sql: &Sql, table: &str) -> Self {
        Self::in_tablespace(sql, table, "pg_default")
    }

    /// Makes the table, somewhere.
    pub(crate) fn in_tablespace(sql: &Sql, table: &str, tablespace: &str) -> Self {
        sql.run(&format!("CREATE TABLE {table} (id integer PRIMARY KEY) TABLESPACE {tablespace}"));
        Self { sql: sql.clone(), table: table.to_owned(), committed: BTreeSet::new() }
    }

    /// Commits some more.
    #[track_caller]
    pub(crate) fn add(&mut self, count: u32) {
        let first = self.committed.last().map_or(1, |last| last + 1);
        self.add_from(first, count);
    }

    /// Commits rows with numbers from here on: on another timeline other rows have been there.
    #[track_caller]
    pub(crate) fn add_from(&mut self, first: u32, count: u32) {
        let (table, last) = (&self.table, first + count - 1);
        self.sql.run(&format!("INSERT INTO {table} SELECT generate_series({first}, {last})"));
        self.committed.extend(first..=last);
    }

    /// Those of the rows with numbers up to here.
    pub(crate) fn up_to(&self, last: u32) -> Self {
        let committed = self.committed.range(..=last).copied().collect();
        Self { committed, ..self.clone() }
    }

    /// The same rows, looked at through another socket.
    pub(crate) fn seen_through(&self, sql: &Sql) -> Self {
        Self { sql: sql.clone(), ..self.clone() }
    }

    /// How many were committed.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.committed.len()).unwrap()
    }

    /// Exactly the committed rows are there, in the table and in its index.
    #[track_caller]
    pub(crate) fn check(&self) {
        self.check_by(
            "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET \
                       enable_bitmapscan = off",
        );
        self.check_by("SET enable_seqscan = off");
    }

    /// The same once many transactions have passed: what a later one has left behind is seen only
    /// when its number was given again.
    #[track_caller]
    pub(crate) fn check_later(&self) {
        self.sql.run(
            "DO $$ BEGIN FOR i IN 1..300 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
        );
        self.check();
    }

    #[track_caller]
    fn check_by(&self, settings: &str) {
        let query = format!("{settings}; SELECT id FROM {} ORDER BY id", self.table);
        let found = self.sql.run(&query);
        let found: BTreeSet<u32> = found.lines().map(|line| line.parse().unwrap()).collect();
        let lost: Vec<_> = self.committed.difference(&found).collect();
        let strange: Vec<_> = found.difference(&self.committed).collect();
        assert!(
            lost.is_empty() && strange.is_empty(),
            "of {} committed rows {} are lost ({:?}…), and {} were never committed ({:?}…)",
            self.committed.len(),
            lost.len(),
            lost.first(),
            strange.len(),
            strange.first()
        );
    }

    /// The table's file, below PGDATA.
    pub(crate) fn file(&self) -> String {
        self.sql.run(&format!("SELECT pg_relation_filepath('{}')", self.table))
    }
}
