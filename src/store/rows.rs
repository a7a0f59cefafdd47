//! How domain values stand in columns.

use jiff::Timestamp;
use rusqlite::Row;
use serde::de::DeserializeOwned;

use super::StoreError;

/// Names the operation of a failed statement.
pub(super) fn during(operation: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Statement { operation, source }
}

/// A column as SQLite holds it.
pub(super) fn column<T: rusqlite::types::FromSql>(
    row: &Row<'_>,
    name: &'static str,
) -> Result<T, StoreError> {
    row.get(name).map_err(during("read a row"))
}

/// A column that holds a word or an id.
pub(super) fn parsed<T: std::str::FromStr>(
    row: &Row<'_>,
    name: &'static str,
) -> Result<T, StoreError> {
    let text: String = column(row, name)?;
    text.parse().map_err(|_| StoreError::Unreadable { what: name, value: text })
}

/// A column that holds JSON.
pub(super) fn json<T: DeserializeOwned>(
    row: &Row<'_>,
    name: &'static str,
) -> Result<T, StoreError> {
    let text: String = column(row, name)?;
    serde_json::from_str(&text).map_err(|_| StoreError::Unreadable { what: name, value: text })
}

/// A column that holds JSON or nothing.
pub(super) fn json_if_any<T: DeserializeOwned>(
    row: &Row<'_>,
    name: &'static str,
) -> Result<Option<T>, StoreError> {
    let text: Option<String> = column(row, name)?;
    let Some(text) = text else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|_| StoreError::Unreadable { what: name, value: text })
}

/// A column that holds a time.
pub(super) fn time(row: &Row<'_>, name: &'static str) -> Result<Timestamp, StoreError> {
    from_micros(column(row, name)?, name)
}

/// A column that holds a time or nothing.
pub(super) fn time_if_any(
    row: &Row<'_>,
    name: &'static str,
) -> Result<Option<Timestamp>, StoreError> {
    column::<Option<i64>>(row, name)?.map(|micros| from_micros(micros, name)).transpose()
}

fn from_micros(micros: i64, name: &'static str) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros)
        .map_err(|_| StoreError::Unreadable { what: name, value: micros.to_string() })
}

/// JSON for a column. Our own types always serialize.
pub(super) fn to_json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| {
        tracing::error!(%error, "a value of our own cannot be written as JSON");
        "null".to_owned()
    })
}
