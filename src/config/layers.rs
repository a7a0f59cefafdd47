//! The three sources of values, still as text and TOML.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{ConfigErrors, DEFAULT_FILE};

/// What the command line sets.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// Configuration file [default: /etc/headrest/headrest.toml, if it is there]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Address and port to listen on
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Directory for Headrest's own state
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// PGDATA of the supervised PostgreSQL
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
}

impl Flags {
    /// The flag for a key, if the key has one, and its value, if it was given.
    pub(super) fn get(&self, key: &str) -> Option<(&'static str, &str)> {
        let (flag, value) = match key {
            "listen" => ("--listen", &self.listen),
            "state_dir" => ("--state-dir", &self.state_dir),
            "postgres.data_dir" => ("--data-dir", &self.data_dir),
            _ => return None,
        };
        value.as_deref().map(|value| (flag, value))
    }
}

/// The environment, read once.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Our own.
    pub fn of_this_process() -> Self {
        Self::from_pairs(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    /// The given one.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().collect())
    }

    /// A variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Sets a variable here; our own environment stays as it is.
    pub fn set(&mut self, name: &str, value: String) {
        self.0.insert(name.to_owned(), value);
    }

    /// All variables whose name begins so.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .iter()
            .filter(move |(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// The configuration file.
#[derive(Debug)]
pub(super) struct FileLayer {
    pub(super) path: PathBuf,
    pub(super) table: toml::Table,
}

/// Reads the named file, or the default one if it is there.
pub(super) fn read_file(named: Option<&Path>) -> Result<Option<FileLayer>, ConfigErrors> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => parse_file(path, &text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => Ok(None),
        Err(error) => Err(ConfigErrors(vec![format!(
            "cannot read the configuration file {}: {error}",
            path.display()
        )])),
    }
}

/// Parses the file's text.
pub(super) fn parse_file(path: &Path, text: &str) -> Result<FileLayer, ConfigErrors> {
    let table = text.parse().map_err(|error: toml::de::Error| {
        let at = error.span().map_or(String::new(), |span| {
            let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
            format!(", line {line}")
        });
        ConfigErrors(vec![format!(
            "{}{at}: {}",
            path.display(),
            error.message().replace('\n', " ")
        )])
    })?;
    Ok(FileLayer { path: path.to_owned(), table })
}
