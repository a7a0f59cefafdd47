//! The first start: a cluster where there is none.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::install::Binaries;
use super::pgdata::{self, Content};
use crate::process::{CaptureError, Program, capture};

const PATIENCE: Duration = Duration::from_mins(10);

/// What the first start needs to know.
#[derive(Debug, Clone)]
pub struct FirstStart {
    /// PGDATA.
    pub data_dir: PathBuf,
    /// The superuser to make.
    pub superuser: String,
    /// The operating-system user that the server and Headrest run as.
    pub os_user: String,
    /// Headrest's own directory: the mark of an unfinished initdb lives there.
    pub state_dir: PathBuf,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// PGDATA holds something else.
    #[error(
        "{} is not empty and holds no PostgreSQL cluster (no PG_VERSION); point postgres.data_dir \
         to another directory", data_dir.display()
    )]
    Foreign {
        /// PGDATA.
        data_dir: PathBuf,
    },
    /// An earlier initdb was cut short.
    #[error(
        "an earlier initdb in {} was cut short; empty that directory and remove {}, then start \
         again", data_dir.display(), mark.display()
    )]
    CutShort {
        /// PGDATA.
        data_dir: PathBuf,
        /// The mark that says so.
        mark: PathBuf,
    },
    /// initdb could not be run.
    #[error(transparent)]
    Run(#[from] CaptureError),
    /// initdb failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// A file could not be read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

/// Makes a cluster if PGDATA is empty. Answers whether it made one.
pub async fn ensure_cluster(
    first: &FirstStart,
    binaries: &Binaries,
    env: &BTreeMap<String, String>,
) -> Result<bool, BootstrapError> {
    let mark = first.state_dir.join("initdb-unfinished");
    let content = pgdata::content(&first.data_dir).map_err(file("read", &first.data_dir))?;
    if mark.exists() && content != Content::Empty {
        return Err(BootstrapError::CutShort { data_dir: first.data_dir.clone(), mark });
    }
    match content {
        Content::Cluster(_) | Content::HalfRestored(_) => return Ok(false),
        Content::Foreign => {
            return Err(BootstrapError::Foreign { data_dir: first.data_dir.clone() });
        }
        Content::Empty => {}
    }
    // On disk before initdb begins: after a power failure it is all that tells a torso apart.
    write_durably(&mark, "initdb was started here and has not ended\n")
        .map_err(file("write", &mark))?;
    tracing::info!(pgdata = %first.data_dir.display(), "making a new cluster with initdb");
    let mut program = Program::new(binaries.program("initdb"));
    program.args = initdb_arguments(first, env);
    program.env.clone_from(env);
    let captured = capture(program, PATIENCE).await?;
    if !captured.end.is_success() {
        // initdb removes what it made when it fails by itself.
        if pgdata::content(&first.data_dir).is_ok_and(|content| content == Content::Empty) {
            fs::remove_file(&mark).map_err(file("remove", &mark))?;
        }
        return Err(BootstrapError::Initdb(captured.stderr.replace('\n', " ")));
    }
    allow_identities(first)?;
    fs::remove_file(&mark).map_err(file("remove", &mark))?;
    Ok(true)
}

fn initdb_arguments(first: &FirstStart, env: &BTreeMap<String, String>) -> Vec<String> {
    let mut args = vec![
        format!("--pgdata={}", first.data_dir.display()),
        format!("--username={}", first.superuser),
        "--encoding=UTF8".to_owned(),
        "--auth-local=peer".to_owned(),
        "--auth-host=scram-sha-256".to_owned(),
        "--data-checksums".to_owned(),
    ];
    // A server without a locale in its environment would otherwise get C with SQL_ASCII's sorting.
    if !env.contains_key("LANG") && !env.contains_key("LC_ALL") {
        args.push("--locale=C.UTF-8".to_owned());
    }
    args
}

/// Lets the operating-system user that runs the server, and root, be the superuser over the local
/// socket; everybody else is who they are.
fn allow_identities(first: &FirstStart) -> Result<(), BootstrapError> {
    let ident = first.data_dir.join("pg_ident.conf");
    let superuser = quoted(&first.superuser);
    let mut text = fs::read_to_string(&ident).map_err(file("read", &ident))?;
    text.push_str("\n# Written by Headrest at the first start.\n");
    for user in [first.os_user.as_str(), "root"] {
        text.push_str(&format!("headrest {} {superuser}\n", quoted(user)));
    }
    text.push_str("headrest /^(.*)$ \\1\n");
    write_durably(&ident, &text).map_err(file("write", &ident))?;

    let hba = first.data_dir.join("pg_hba.conf");
    let text = fs::read_to_string(&hba).map_err(file("read", &hba))?;
    let text: Vec<String> = text
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.first() == Some(&"local") && fields.last() == Some(&"peer") {
                format!("{line} map=headrest")
            } else {
                line.to_owned()
            }
        })
        .collect();
    write_durably(&hba, &(text.join("\n") + "\n")).map_err(file("write", &hba))
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file =
        fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootstrapError {
    let path = path.to_owned();
    move |source| BootstrapError::File { operation, path, source }
}
