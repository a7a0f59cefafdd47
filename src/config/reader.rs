//! Looks a key up in all layers, remembers who asked for what, and collects what is wrong.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use secrecy::SecretString;

use super::ConfigErrors;
use super::layers::{Environment, FileLayer, Flags};

/// Variables with our prefix that only the client commands read.
const CLIENT_VARIABLES: &[&str] = &["HEADREST_URL", "HEADREST_TOKEN"];

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The configuration file of that name.
    File(String),
    /// The environment variable of that name.
    Environment(String),
    /// The command-line flag of that name.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value as `headrest config print` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Dotted key.
    pub key: String,
    /// The value in TOML, secrets masked.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// Reads keys; see the module's description.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    flags: &'a Flags,
    environment: &'a Environment,
    file: Option<FileLayer>,
    asked: BTreeSet<String>,
    variables: BTreeSet<String>,
    shown: Vec<Shown>,
    errors: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        flags: &'a Flags,
        environment: &'a Environment,
        file: Option<FileLayer>,
    ) -> Self {
        Self {
            flags,
            environment,
            file,
            asked: BTreeSet::new(),
            variables: BTreeSet::new(),
            shown: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// A value that has a default.
    pub(super) fn get<T: FromValue>(&mut self, key: &str, default: T) -> T {
        if let Some(value) = self.find(key) {
            return value;
        }
        self.show(key, default.show(), Origin::Default);
        default
    }

    /// A value that may be absent.
    pub(super) fn get_if_any<T: FromValue>(&mut self, key: &str) -> Option<T> {
        let found = self.find(key);
        if found.is_none() && !self.shown.iter().any(|shown| shown.key == key) {
            self.show(key, "(not set)".to_owned(), Origin::Default);
        }
        found
    }

    /// A value that is parsed from a string, with a default that is known to parse.
    pub(super) fn parse<T>(&mut self, key: &str, default: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        let text = self.get(key, default.to_owned());
        text.parse().map_err(|error: T::Err| self.error(key, &format!("{error}"))).ok()
    }

    /// A secret: from its variable, from the file its `..._FILE` variable names, or from the file.
    pub(super) fn secret(&mut self, key: &str) -> Option<SecretString> {
        let file_variable = format!("{}_FILE", variable(key));
        self.variables.insert(file_variable.clone());
        let in_file = self.environment.get(&file_variable).map(str::to_owned);
        let direct = self.lookup(key);
        let (text, origin) = match (direct, in_file) {
            (Some((_, Origin::Environment(name))), Some(_)) => {
                self.error(key, &format!("both {name} and {file_variable} are set; set one"));
                return None;
            }
            (_, Some(path)) => match std::fs::read_to_string(&path) {
                Ok(text) => (
                    text.trim_end_matches(['\n', '\r']).to_owned(),
                    Origin::Environment(file_variable),
                ),
                Err(error) => {
                    self.error(key, &format!("cannot read {path} of {file_variable}: {error}"));
                    return None;
                }
            },
            (Some((value, origin)), None) => match String::from_value(&value) {
                Ok(text) => (text, origin),
                Err(message) => {
                    self.error(key, &message);
                    return None;
                }
            },
            (None, None) => {
                self.show(key, "(not set)".to_owned(), Origin::Default);
                return None;
            }
        };
        self.show(key, "********".to_owned(), origin);
        if text.is_empty() {
            self.error(key, "is empty");
            return None;
        }
        Some(text.into())
    }

    /// A secret that the configuration file, too, may give as a file: `url`, or `url_file`. What a
    /// variable says wins over what the file says, in whichever of the two ways.
    pub(super) fn secret_or_file(&mut self, key: &str) -> Option<SecretString> {
        let path_key = format!("{key}_file");
        let direct = self.lookup(key).map(|(_, origin)| origin);
        let by_path = self.lookup(&path_key).map(|(_, origin)| origin);
        match (direct, by_path) {
            (Some(Origin::Environment(_)), Some(Origin::File(_))) => self.secret(key),
            (_, Some(Origin::Environment(_)) | None) => self.secret(key),
            (Some(_), Some(_)) => {
                self.error(key, &format!("both {key} and {path_key} are set; set one"));
                None
            }
            (None, Some(origin)) => {
                let path: String = self.find(&path_key)?;
                match std::fs::read_to_string(&path) {
                    Ok(text) if !text.trim().is_empty() => {
                        self.show(key, "********".to_owned(), origin);
                        Some(text.trim_end_matches(['\n', '\r']).into())
                    }
                    Ok(_) => {
                        self.error(key, &format!("{path} is empty"));
                        None
                    }
                    Err(error) => {
                        self.error(key, &format!("cannot read {path}: {error}"));
                        None
                    }
                }
            }
        }
    }

    /// Whether any source gives this key.
    pub(super) fn is_given(&mut self, key: &str) -> bool {
        self.lookup(key).is_some()
    }

    /// How many tables `[[section]]` has, with those that only variables describe.
    pub(super) fn tables_or_variables(&mut self, section: &str) -> usize {
        let mut count = self.tables(section);
        while self.has_section(&format!("{section}[{count}]")) {
            count += 1;
        }
        count
    }

    /// Whether any source says anything about a section.
    pub(super) fn has_section(&self, section: &str) -> bool {
        let prefix = format!("{}__", variable(section));
        self.file.as_ref().is_some_and(|file| file.table.contains_key(section))
            || self.environment.with_prefix(&prefix).next().is_some()
            || (section == "postgres"
                && (self.flags.data_dir.is_some() || self.environment.get("PGDATA").is_some()))
    }

    /// Whether there is a configuration file.
    pub(super) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// The environment variable that PostgreSQL itself reads for something.
    pub(super) fn postgres_variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// How many tables `[[section]]` has.
    pub(super) fn tables(&mut self, section: &str) -> usize {
        self.asked.insert(section.to_owned());
        let Some(value) = self.file.as_ref().and_then(|file| file.table.get(section)) else {
            return 0;
        };
        match value.as_array() {
            Some(array) if array.iter().all(toml::Value::is_table) => array.len(),
            _ => {
                self.error(section, &format!("must be written as [[{section}]]"));
                0
            }
        }
    }

    /// Records something that is wrong with a key.
    pub(super) fn error(&mut self, key: &str, message: &str) {
        self.errors.push(format!("{key}: {message}"));
    }

    /// Whether something is wrong with a key already.
    pub(super) fn has_error(&self, key: &str) -> bool {
        let begins = format!("{key}: ");
        self.errors.iter().any(|error| error.starts_with(&begins))
    }

    /// The `PGBACKREST_*` variables, those of `..._FILE` read.
    pub(super) fn pgbackrest_variables(&mut self) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        let variables: Vec<_> = self.environment.with_prefix("PGBACKREST_").collect();
        for (name, value) in variables {
            match name.strip_suffix("_FILE").filter(|option| is_read_from_file(option)) {
                Some(option) => match std::fs::read_to_string(value) {
                    Ok(text) => {
                        pairs.push((
                            option.to_owned(),
                            text.trim_end_matches(['\n', '\r']).to_owned(),
                        ));
                    }
                    Err(error) => self.errors.push(format!("{name}: cannot read {value}: {error}")),
                },
                None => pairs.push((name.to_owned(), value.to_owned())),
            }
        }
        pairs
    }

    /// The values as they were read, or everything that is wrong.
    pub(super) fn finish(mut self) -> Result<Vec<Shown>, ConfigErrors> {
        self.find_unknown_keys();
        self.find_unknown_variables();
        if self.errors.is_empty() { Ok(self.shown) } else { Err(ConfigErrors(self.errors)) }
    }

    fn find<T: FromValue>(&mut self, key: &str) -> Option<T> {
        let (value, origin) = self.lookup(key)?;
        match T::from_value(&value) {
            Ok(typed) => {
                self.show(key, typed.show(), origin);
                Some(typed)
            }
            Err(message) => {
                self.show(key, value.to_string(), origin.clone());
                self.error(key, &format!("{message} ({origin})"));
                None
            }
        }
    }

    fn lookup(&mut self, key: &str) -> Option<(toml::Value, Origin)> {
        self.asked.insert(key.to_owned());
        let name = variable(key);
        self.variables.insert(name.clone());
        if let Some((flag, value)) = self.flags.get(key) {
            return Some((toml::Value::String(value.to_owned()), Origin::Flag(flag)));
        }
        if let Some(value) = self.environment.get(&name) {
            return Some((toml::Value::String(value.to_owned()), Origin::Environment(name)));
        }
        let file = self.file.as_ref()?;
        let value = path_of(key).try_fold(Node::Table(&file.table), Node::child)?.value()?;
        Some((value, Origin::File(file.path.display().to_string())))
    }

    fn show(&mut self, key: &str, value: String, origin: Origin) {
        self.shown.push(Shown { key: key.to_owned(), value, origin });
    }

    fn find_unknown_keys(&mut self) {
        let Some(file) = self.file.take() else { return };
        let mut keys = Vec::new();
        collect_keys(&file.table, "", &self.asked, &mut keys);
        for key in keys {
            let known = self.asked.iter().map(String::as_str);
            let hint = nearest(&key, known);
            self.errors.push(format!("{key}: unknown key{hint} (file {})", file.path.display()));
        }
    }

    fn find_unknown_variables(&mut self) {
        let unknown: Vec<_> = self
            .environment
            .with_prefix("HEADREST_")
            .map(|(name, _)| name.to_owned())
            .filter(|name| !self.variables.contains(name))
            .filter(|name| !CLIENT_VARIABLES.contains(&name.as_str()))
            .filter(|name| !is_service_link(name))
            .collect();
        for name in unknown {
            let hint = nearest(&name, self.variables.iter().map(String::as_str));
            self.errors.push(format!("{name}: unknown variable{hint}"));
        }
    }
}

/// Whether Kubernetes, or Docker's links, put a variable there because a service is called headrest.
fn is_service_link(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("HEADREST_") else { return false };
    let of_port = |rest: &str| rest.is_empty() || rest.starts_with('_');
    rest.starts_with("SERVICE_HOST")
        || rest.starts_with("SERVICE_PORT")
        || rest.strip_prefix("PORT").is_some_and(of_port)
}

enum Node<'a> {
    Table(&'a toml::Table),
    Value(&'a toml::Value),
}

impl Node<'_> {
    fn child(self, part: &str) -> Option<Self> {
        let next = match (self, part.parse::<usize>()) {
            (Self::Value(toml::Value::Array(array)), Ok(index)) => array.get(index),
            (Self::Table(table) | Self::Value(toml::Value::Table(table)), _) => table.get(part),
            (Self::Value(_), _) => None,
        };
        next.map(Self::Value)
    }

    fn value(self) -> Option<toml::Value> {
        match self {
            Self::Value(value) => Some(value.clone()),
            Self::Table(_) => None,
        }
    }
}

/// `stanza[0].name` is looked up as `stanza`, `0`, `name`.
fn path_of(key: &str) -> impl Iterator<Item = &str> {
    key.split(['.', '[', ']']).filter(|part| !part.is_empty())
}

/// `postgres.port` is `HEADREST_POSTGRES__PORT`.
fn variable(key: &str) -> String {
    let parts: Vec<_> = path_of(key).map(str::to_ascii_uppercase).collect();
    format!("HEADREST_{}", parts.join("__"))
}

/// Whether the value of a pgBackRest variable must not be shown or written anywhere.
pub(crate) fn is_secret_option(option: &str) -> bool {
    ["_PASS", "_KEY", "_SECRET", "_TOKEN"].iter().any(|end| option.ends_with(end))
}

/// Whether a file that `..._FILE` names holds the value of this option. pgBackRest has options of its own
/// that name the file of a key: `repo1-sftp-private-key-file`, `tls-server-key-file`.
fn is_read_from_file(option: &str) -> bool {
    let own = ["PRIVATE_KEY", "PUBLIC_KEY", "HOST_KEY", "SERVER_KEY"];
    is_secret_option(option) && !own.iter().any(|end| option.ends_with(end))
}

/// Keys of a table that nobody asked for. A table of which some key was asked for is known.
fn collect_keys(
    table: &toml::Table,
    prefix: &str,
    asked: &BTreeSet<String>,
    into: &mut Vec<String>,
) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let is_section = |key: &str| asked.iter().any(|a| a.starts_with(&format!("{key}.")));
        match value {
            toml::Value::Table(inner) if is_section(&key) => collect_keys(inner, &key, asked, into),
            toml::Value::Array(array) if asked.contains(&key) => {
                for (index, item) in array.iter().enumerate() {
                    if let toml::Value::Table(inner) = item {
                        collect_keys(inner, &format!("{key}[{index}]"), asked, into);
                    }
                }
            }
            _ if asked.contains(&key) => {}
            _ => into.push(key),
        }
    }
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    known
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= name.len().div_ceil(3))
        .map_or(String::new(), |(_, candidate)| format!("; did you mean {candidate}?"))
}

/// A type that a TOML value, or a string from the environment, can become.
pub(super) trait FromValue: Sized {
    fn from_value(value: &toml::Value) -> Result<Self, String>;
    fn show(&self) -> String;
}

impl FromValue for String {
    fn from_value(value: &toml::Value) -> Result<Self, String> {
        value.as_str().map(str::to_owned).ok_or_else(|| format!("{value} is not a string"))
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl FromValue for bool {
    fn from_value(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Boolean(on) => Ok(*on),
            toml::Value::String(text) => {
                text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
            }
            other => Err(format!("{other} is neither true nor false")),
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl FromValue for u16 {
    fn from_value(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Integer(number) => (*number).try_into().map_err(|_| ()),
            toml::Value::String(text) => text.parse().map_err(|_| ()),
            _ => Err(()),
        }
        .map_err(|()| format!("{value} is not a whole number from 0 to 65535"))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl FromValue for Vec<String> {
    /// From the environment: words, quoted as in a shell.
    fn from_value(value: &toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Array(items) => items.iter().map(String::from_value).collect(),
            toml::Value::String(text) => {
                shlex::split(text).ok_or_else(|| format!("{text:?} has an open quote"))
            }
            other => Err(format!("{other} is not a list of strings")),
        }
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
}
