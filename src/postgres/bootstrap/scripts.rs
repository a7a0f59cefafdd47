//! The files of `/docker-entrypoint-initdb.d`, run against the temporary server.
//!
//! As the documentation of the official `postgres` image says ("Initialization scripts"): in the
//! order of the current locale; `.sh` is run if it may be executed and sourced otherwise, SQL is
//! given to `psql` with `ON_ERROR_STOP`, everything else is passed over. The first that fails ends
//! the first start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;

use super::{BootstrapError, FirstStart, file};
use crate::config::Contract;
use crate::postgres::install::{Binaries, is_executable};
use crate::postgres::{pgdata, session};
use crate::process::{End, Output, Program, capture};

/// Files in the state directory while they are needed.
pub(super) const STATEMENTS: &str = "first-start.sql";
pub(super) const EXPORTED: &str = "first-start.env";

/// For sourced scripts: the one function of the official entrypoint that they are known to call.
const PRELUDE: &str = r#"
docker_process_sql() {
    PGHOST= PGHOSTADDR= psql -v ON_ERROR_STOP=1 --no-psqlrc --no-password \
        --username "$POSTGRES_USER" ${POSTGRES_DB:+--dbname "$POSTGRES_DB"} "$@"
}
. "$1"
env -0 >"$2"
"#;

/// What a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Shell,
    Sql,
    /// SQL behind this program.
    Compressed(&'static str),
    Other,
}

fn kind(path: &Path) -> Kind {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ends = |ending: &str| name.ends_with(ending);
    match () {
        () if ends(".sh") => Kind::Shell,
        () if ends(".sql") => Kind::Sql,
        () if ends(".sql.gz") => Kind::Compressed("gzip"),
        () if ends(".sql.xz") => Kind::Compressed("xz"),
        () if ends(".sql.zst") => Kind::Compressed("zstd"),
        () => Kind::Other,
    }
}

/// Runs what belongs to one first start.
pub(super) struct Scripts<'a> {
    first: &'a FirstStart,
    contract: &'a Contract,
    binaries: &'a Binaries,
    /// What every script gets; a sourced one may change it.
    env: BTreeMap<String, String>,
}

impl<'a> Scripts<'a> {
    pub(super) fn new(
        first: &'a FirstStart,
        contract: &'a Contract,
        binaries: &'a Binaries,
        server_env: &BTreeMap<String, String>,
    ) -> Self {
        let mut env = contract.variables.clone();
        for name in ["HOME", "USER", "LOGNAME", "PATH"] {
            if let Some(value) = server_env.get(name) {
                env.insert(name.to_owned(), value.clone());
            }
        }
        env.insert("POSTGRES_USER".to_owned(), contract.user.clone());
        env.insert("POSTGRES_DB".to_owned(), contract.database.clone());
        env.insert("PGDATA".to_owned(), first.data_dir.display().to_string());
        if let Some(password) = &contract.password {
            env.entry("PGPASSWORD".to_owned()).or_insert(password.expose_secret().to_owned());
        }
        Self { first, contract, binaries, env }
    }

    /// The files, in the order of the locale: the shell's, because it sorts as the user sees it.
    pub(super) async fn list(&self) -> Result<Vec<PathBuf>, BootstrapError> {
        let directory = &self.contract.init_dir;
        if let Err(error) = fs::read_dir(directory) {
            if error.kind() == std::io::ErrorKind::NotFound {
                return Ok(Vec::new());
            }
            return Err(file("read", directory)(error));
        }
        let mut program = self.bash("shopt -s nullglob\nprintf '%s\\0' \"$1\"/*");
        program.args.push(directory.display().to_string());
        let captured = capture(program, super::PATIENCE).await?;
        let text = String::from_utf8_lossy(&captured.stdout).into_owned();
        // An empty directory gives one empty name.
        Ok(text.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
    }

    /// Gives the superuser, which is called postgres yet, the name that it is to have. Nobody can
    /// rename themselves, so somebody else does it. In a file, because a command line can be read
    /// by others and the password is in it.
    pub(super) async fn rename_superuser(&self) -> Result<(), BootstrapError> {
        let path = self.first.state_dir.join(STATEMENTS);
        let name = super::quoted(&self.contract.user);
        let password = self.contract.password.as_ref().map_or("NULL".to_owned(), |password| {
            // With escapes, so that no setting changes what a backslash means.
            let text = password.expose_secret().replace('\\', "\\\\").replace('\'', "''");
            format!("E'{text}'")
        });
        let script = format!(
            "CREATE ROLE headrest_first_start SUPERUSER LOGIN PASSWORD {password};\n\
             \\connect - headrest_first_start\n\
             ALTER ROLE postgres RENAME TO {name};\n\
             ALTER ROLE {name} PASSWORD {password};\n\
             \\connect - {name}\n\
             DROP ROLE headrest_first_start;\n"
        );
        super::write_durably(&path, &script).map_err(file("write", &path))?;
        let mut program = self.own_psql("postgres", "postgres");
        program.args.extend([
            "--quiet".to_owned(),
            "--file".to_owned(),
            path.display().to_string(),
        ]);
        let end = run(program).await;
        fs::remove_file(&path).map_err(file("remove", &path))?;
        let end = end?;
        end.is_success()
            .then_some(())
            .ok_or_else(|| BootstrapError::Rename { name: self.contract.user.clone(), end })
    }

    /// Makes the database that is asked for, unless every cluster has it.
    pub(super) async fn create_database(&self) -> Result<(), BootstrapError> {
        let name = &self.contract.database;
        let statement = format!("CREATE DATABASE {}", super::quoted(name));
        let mut program = self.own_psql(&self.contract.user, "postgres");
        program.args.extend(["--quiet".to_owned(), "--command".to_owned(), statement]);
        let end = run(program).await?;
        end.is_success()
            .then_some(())
            .ok_or_else(|| BootstrapError::Database { name: name.clone(), end })
    }

    /// Runs one file.
    pub(super) async fn run(&mut self, path: &Path) -> Result<(), BootstrapError> {
        let shown = path.display();
        let end = match kind(path) {
            Kind::Shell if is_executable(path) => {
                tracing::info!("first start: running {shown}");
                // By a shell: it also runs what has no first line.
                let mut program = self.bash("\"$1\"");
                program.args.push(shown.to_string());
                run(program).await?
            }
            Kind::Shell => {
                tracing::info!("first start: sourcing {shown}");
                self.source(path).await?
            }
            Kind::Sql => {
                tracing::info!("first start: running {shown}");
                let mut program = self.psql(&self.contract.user, &self.contract.database);
                program.args.extend(["--file".to_owned(), shown.to_string()]);
                run(program).await?
            }
            Kind::Compressed(unpack) => {
                tracing::info!("first start: running {shown}");
                self.unpacked(unpack, path).await?
            }
            Kind::Other => {
                tracing::info!("first start: ignoring {shown}");
                return Ok(());
            }
        };
        end.is_success()
            .then_some(())
            .ok_or_else(|| BootstrapError::Script { path: path.to_owned(), end })
    }

    /// Sources a script; what it exports counts for those after it.
    async fn source(&mut self, path: &Path) -> Result<End, BootstrapError> {
        let exported = self.first.state_dir.join(EXPORTED);
        // Secrets will be in it: it is nobody else's from the beginning.
        super::write_durably(&exported, "").map_err(file("write", &exported))?;
        let mut program = self.bash(PRELUDE);
        program.args.extend([path.display().to_string(), exported.display().to_string()]);
        let end = run(program).await?;
        let text = fs::read(&exported).map_err(file("read", &exported))?;
        fs::remove_file(&exported).map_err(file("remove", &exported))?;
        // Empty when the script ended the shell by itself.
        if !text.is_empty() {
            let text = String::from_utf8_lossy(&text);
            self.env = text
                .split('\0')
                .filter_map(|pair| pair.split_once('='))
                .filter(|(name, _)| !name.starts_with("BASH_FUNC_"))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
        }
        Ok(end)
    }

    async fn unpacked(&self, unpack: &str, path: &Path) -> Result<End, BootstrapError> {
        let mut packer = Program::new(unpack);
        packer.args = vec!["--decompress".to_owned(), "--stdout".to_owned()];
        packer.env.clone_from(&self.env);
        packer.input = Some(File::open(path).map_err(file("read", path))?.into());
        let (reader, writer) = std::io::pipe().map_err(file("make a pipe for", path))?;
        packer.output = Output::Into(writer.into());
        let mut packer = packer.spawn().map_err(capture_error)?;
        let mut program = self.psql(&self.contract.user, &self.contract.database);
        program.input = Some(reader.into());
        let end = run(program).await?;
        let unpacked = packer.wait().await;
        Ok(if end.is_success() { unpacked } else { end })
    }

    /// The same for our own statements, whatever defaults the server's arguments give a session.
    fn own_psql(&self, user: &str, database: &str) -> Program {
        let mut program = self.psql(user, database);
        let major = pgdata::major_version(&self.first.data_dir);
        program.env.insert("PGOPTIONS".to_owned(), session::options(major, true));
        program
    }

    fn psql(&self, user: &str, database: &str) -> Program {
        let mut program = Program::new(self.binaries.program("psql"));
        let args = ["--variable=ON_ERROR_STOP=1", "--no-psqlrc", "--no-password", "--username"];
        program.args = args.map(str::to_owned).to_vec();
        program.args.extend([user.to_owned(), "--dbname".to_owned()]);
        program.args.push(connection_string(database));
        program.env.clone_from(&self.env);
        program.env.retain(|name, _| name != "PGHOST" && name != "PGHOSTADDR");
        program
    }

    fn bash(&self, script: &str) -> Program {
        let mut program = Program::new("bash");
        let args = ["-Eeo", "pipefail", "-c", script, "first-start"];
        program.args = args.map(str::to_owned).to_vec();
        program.env.clone_from(&self.env);
        program
    }
}

/// A database's name as psql takes it: a bare name with `=` in it would be a connection string.
fn connection_string(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Runs a program whose words go where ours go. Nothing limits how long.
async fn run(mut program: Program) -> Result<End, BootstrapError> {
    if matches!(program.output, Output::Piped) {
        program.output = Output::Ours;
    }
    let mut child = program.spawn().map_err(capture_error)?;
    Ok(child.wait().await)
}

fn capture_error(error: crate::process::SpawnError) -> BootstrapError {
    BootstrapError::Run(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (name, expect) in [
            ("a.sh", Kind::Shell),
            ("a.sql", Kind::Sql),
            ("a b.sql.gz", Kind::Compressed("gzip")),
            ("a.sql.xz", Kind::Compressed("xz")),
            ("a.sql.zst", Kind::Compressed("zstd")),
            ("a.gz", Kind::Other),
            ("a.sql.bak", Kind::Other),
            ("README", Kind::Other),
            ("a.SQL", Kind::Other),
        ] {
            assert_eq!(
                kind(&Path::new("/docker-entrypoint-initdb.d").join(name)),
                expect,
                "{name}"
            );
        }
    }

    #[test]
    fn odd_database_names() {
        assert_eq!(connection_string("my cool = db"), "dbname='my cool = db'");
        assert_eq!(connection_string(r"it's \ here"), r"dbname='it\'s \\ here'");
    }
}
