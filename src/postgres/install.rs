//! Finding PostgreSQL's programs.

use std::fs;
use std::path::{Path, PathBuf};

/// The programs of one PostgreSQL installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
}

/// Why no installation was found.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// The configured directory does not hold it.
    #[error(
        "there is no executable `postgres` in {}; correct postgres.bin_dir",
        directory.display()
    )]
    NotThere {
        /// The configured directory.
        directory: PathBuf,
    },
    /// PGDATA needs a version that is not installed.
    #[error(
        "PGDATA is of PostgreSQL {major}, which is not installed (looked in {looked}); install \
         postgresql-{major} or set postgres.bin_dir"
    )]
    NoSuchMajor {
        /// The major version that PGDATA is of.
        major: u16,
        /// Where it was looked for.
        looked: String,
    },
    /// None at all.
    #[error("PostgreSQL is not installed (looked in {looked}); install it or set postgres.bin_dir")]
    Nowhere {
        /// Where it was looked for.
        looked: String,
    },
}

impl Binaries {
    /// The configured directory, else the installation that fits PGDATA, else the newest.
    pub fn find(
        configured: Option<&Path>,
        path: &str,
        pgdata_major: Option<u16>,
    ) -> Result<Self, NotFound> {
        if let Some(directory) = configured {
            let found = Self { directory: directory.to_owned() };
            return if is_executable(&found.program("postgres")) {
                Ok(found)
            } else {
                Err(NotFound::NotThere { directory: directory.to_owned() })
            };
        }
        // Debian's layout, then PGDG's on Red Hat, then PATH.
        let mut versioned: Vec<(u16, PathBuf)> = Vec::new();
        for (root, prefix) in [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")] {
            for entry in fs::read_dir(root).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let major = name.to_str().and_then(|n| n.strip_prefix(prefix)?.parse().ok());
                let directory = entry.path().join("bin");
                if let Some(major) = major
                    && is_executable(&directory.join("postgres"))
                {
                    versioned.push((major, directory));
                }
            }
        }
        let looked = "/usr/lib/postgresql, /usr/pgsql-*, PATH".to_owned();
        if let Some(wanted) = pgdata_major {
            if let Some((_, directory)) = versioned.iter().find(|(major, _)| *major == wanted) {
                return Ok(Self { directory: directory.clone() });
            }
            if !versioned.is_empty() {
                return Err(NotFound::NoSuchMajor { major: wanted, looked });
            }
        }
        if let Some((_, directory)) = versioned.into_iter().max() {
            return Ok(Self { directory });
        }
        path.split(':')
            .map(PathBuf::from)
            .find(|directory| is_executable(&directory.join("postgres")))
            .map(|directory| Self { directory })
            .ok_or(NotFound::Nowhere { looked })
    }

    /// A program's path.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory they are in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Whether a path is a file that somebody may execute.
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
