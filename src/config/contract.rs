//! The contract of the official `postgres` image: its variables, read once.
//!
//! The names and what they mean are those of that image's documentation ("Environment Variables",
//! "Docker Secrets"). Reading the files that `..._FILE` variables name happens here, because it
//! must happen while Headrest is still root: a secret may be readable for root alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::SecretString;

use super::{ConfigErrors, Environment};

/// Where a first start finds its scripts.
const INIT_DIR: &str = "/docker-entrypoint-initdb.d";
/// Variables that may be given as a file instead.
const WITH_FILE: [&str; 4] =
    ["POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_INITDB_ARGS"];

/// What the container was told about the cluster to make. It counts on the first start alone, but
/// for the superuser, as whom Headrest connects ever after.
#[derive(Debug, Clone)]
pub struct Contract {
    /// The superuser.
    pub user: String,
    /// Its password. A first start needs one, unless everybody is trusted.
    pub password: Option<SecretString>,
    /// The database to make; `postgres` is there anyway.
    pub database: String,
    /// More arguments for initdb.
    pub initdb_args: Vec<String>,
    /// Where the WAL goes instead of PGDATA.
    pub wal_dir: Option<PathBuf>,
    /// The method in the line of `pg_hba.conf` for connections over TCP.
    pub host_auth_method: Option<String>,
    /// The scripts of a first start.
    pub init_dir: PathBuf,
    /// Every variable of the container, those of files read: what scripts of a first start get.
    /// Holds secrets.
    pub variables: BTreeMap<String, String>,
}

impl Contract {
    /// Reads it, and says everything that is wrong at once.
    pub fn read(environment: &Environment) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let mut variables: BTreeMap<String, String> = environment
            .with_prefix("")
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        for name in WITH_FILE {
            let file_variable = format!("{name}_FILE");
            let Some(path) = variables.remove(&file_variable).filter(|path| !path.is_empty())
            else {
                continue;
            };
            if variables.get(name).is_some_and(|value| !value.is_empty()) {
                errors.push(format!("both {name} and {file_variable} are set; set one"));
                continue;
            }
            match std::fs::read_to_string(&path) {
                // As a shell's $(<file): line ends at the end do not count.
                Ok(text) => {
                    variables.insert(name.to_owned(), text.trim_end_matches('\n').to_owned());
                }
                Err(error) => {
                    errors.push(format!("{file_variable}: cannot read {path}: {error}"));
                }
            }
        }
        let given = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
        let user = given("POSTGRES_USER").unwrap_or_else(|| "postgres".to_owned());
        let database = given("POSTGRES_DB").unwrap_or_else(|| user.clone());
        let initdb_args =
            given("POSTGRES_INITDB_ARGS").map_or(Some(Vec::new()), |text| shlex::split(&text));
        if initdb_args.is_none() {
            errors.push("POSTGRES_INITDB_ARGS has an open quote".to_owned());
        }
        let wal_dir = given("POSTGRES_INITDB_WALDIR").map(PathBuf::from);
        if wal_dir.as_ref().is_some_and(|dir| !dir.is_absolute()) {
            errors.push("POSTGRES_INITDB_WALDIR is not an absolute path".to_owned());
        }
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        let contract = Self {
            password: given("POSTGRES_PASSWORD").map(Into::into),
            host_auth_method: given("POSTGRES_HOST_AUTH_METHOD"),
            initdb_args: initdb_args.unwrap_or_default(),
            init_dir: INIT_DIR.into(),
            wal_dir,
            user,
            database,
            variables,
        };
        Ok(contract)
    }

    /// The variables that PostgreSQL's own processes get: all that the container has, without what
    /// is only Headrest's, pgBackRest's or the first start's.
    pub fn server_variables(&self) -> impl Iterator<Item = (String, String)> {
        let ours = ["HEADREST_", "PGBACKREST_", "POSTGRES_PASSWORD"];
        self.variables
            .iter()
            .filter(move |(name, _)| !ours.iter().any(|prefix| name.starts_with(prefix)))
            .filter(|(name, _)| *name != "PGPASSWORD")
            .map(|(name, value)| (name.clone(), value.clone()))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Contract, Vec<String>> {
        let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Contract::read(&Environment::from_pairs(pairs)).map_err(|errors| errors.0)
    }

    #[test]
    fn the_database_is_named_like_the_user_and_empty_means_not_set() {
        let plain = read(&[("POSTGRES_USER", ""), ("POSTGRES_PASSWORD", "")]).unwrap();
        assert_eq!((plain.user.as_str(), plain.database.as_str()), ("postgres", "postgres"));
        assert!(plain.password.is_none());
        let odd = read(&[("POSTGRES_USER", "my \"cool\" user")]).unwrap();
        assert_eq!(odd.database, "my \"cool\" user");
        let both = read(&[("POSTGRES_USER", "u"), ("POSTGRES_DB", "d")]).unwrap();
        assert_eq!((both.user.as_str(), both.database.as_str()), ("u", "d"));
    }

    #[test]
    fn files_are_read_and_both_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), " se cret\n\n").unwrap();
        let path = file.path().to_str().unwrap();
        for name in WITH_FILE {
            let file_variable = format!("{name}_FILE");
            let contract = read(&[(&file_variable, path)]).unwrap();
            assert_eq!(contract.variables[name], " se cret");
            assert!(!contract.variables.contains_key(&file_variable));
            let errors = read(&[(&file_variable, path), (name, "x")]).unwrap_err();
            assert!(errors[0].contains(name) && errors[0].contains(&file_variable), "{errors:?}");
            let errors = read(&[(&file_variable, "/no/such/file")]).unwrap_err();
            assert!(errors[0].contains("/no/such/file"), "{errors:?}");
        }
        let contract = read(&[("POSTGRES_PASSWORD_FILE", path)]).unwrap();
        assert_eq!(contract.password.unwrap().expose_secret(), " se cret");
    }

    #[test]
    fn arguments_are_split_as_a_shell_does() {
        let args = "--data-checksums --locale-provider=icu --set 'work_mem=8 MB'";
        let contract = read(&[("POSTGRES_INITDB_ARGS", args)]).unwrap();
        assert_eq!(contract.initdb_args.len(), 4);
        assert_eq!(contract.initdb_args[3], "work_mem=8 MB");
        let errors =
            read(&[("POSTGRES_INITDB_ARGS", "'"), ("POSTGRES_INITDB_WALDIR", "wal")]).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
    }

    #[test]
    fn the_server_gets_no_secrets_of_ours() {
        let pairs = [
            ("POSTGRES_PASSWORD", "x"),
            ("PGBACKREST_REPO1_S3_KEY", "x"),
            ("HEADREST_ADMIN_TOKEN", "x"),
            ("PGPASSWORD", "x"),
            ("PGDATA", "/d"),
            ("JAVA_HOME", "/j"),
        ];
        let contract = read(&pairs).unwrap();
        let names: Vec<_> = contract.server_variables().map(|(name, _)| name).collect();
        assert_eq!(names, ["JAVA_HOME", "PGDATA"]);
        assert_eq!(contract.variables.len(), pairs.len());
    }
}
