//! What a server lists: databases, tablespaces, replication slots.

use super::{Connection, PATIENCE, QueryError, TextRow};

/// The databases and tablespaces that a server lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// The databases.
    pub databases: Vec<ListedDatabase>,
    /// The tablespaces: OID and name.
    pub tablespaces: Vec<(u32, String)>,
}

/// A database, as `pg_database` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDatabase {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// The OID of its tablespace.
    pub tablespace: u32,
    /// Whether a DROP DATABASE has begun and was not committed: it does not accept connections then.
    pub is_invalid: bool,
    /// The transaction that has deleted or locked its row; 0 for none.
    pub xmax: u32,
}

impl Connection {
    /// The databases and tablespaces that exist.
    pub async fn catalogue(&self) -> Result<Catalogue, QueryError> {
        let databases = self
            .rows(
                "SELECT oid, datname, dattablespace, datconnlimit = -2, xmax FROM pg_database",
                PATIENCE,
            )
            .await?;
        let tablespaces = self.rows("SELECT oid, spcname FROM pg_tablespace", PATIENCE).await?;
        let unexpected = || QueryError::Unexpected("the databases and tablespaces");
        let database = |row: &TextRow| {
            Some(ListedDatabase {
                oid: row.parse(0)?,
                name: row.text(1)?,
                tablespace: row.parse(2)?,
                is_invalid: row.is_true(3),
                xmax: row.parse(4)?,
            })
        };
        let tablespace = |row: &TextRow| Some((row.parse(0)?, row.text(1)?));
        Ok(Catalogue {
            databases: databases
                .iter()
                .map(database)
                .collect::<Option<_>>()
                .ok_or_else(unexpected)?,
            tablespaces: tablespaces
                .iter()
                .map(tablespace)
                .collect::<Option<_>>()
                .ok_or_else(unexpected)?,
        })
    }

    /// Takes the mark of an uncommitted DROP DATABASE off a database.
    pub async fn make_valid(&self, database: &str) -> Result<(), QueryError> {
        let name = database.replace('\'', "''");
        let update = format!(
            "UPDATE pg_catalog.pg_database SET datconnlimit = -1 WHERE datconnlimit = -2 AND datname = \
             '{name}'"
        );
        self.execute(&update, PATIENCE).await
    }

    /// The names of the replication slots that outlive their connection, in order.
    pub async fn replication_slots(&self) -> Result<Vec<String>, QueryError> {
        let sql =
            "SELECT slot_name FROM pg_replication_slots WHERE NOT temporary ORDER BY slot_name";
        let rows = self.rows(sql, PATIENCE).await?;
        Ok(rows.iter().filter_map(|row| row.text(0)).collect())
    }
}
