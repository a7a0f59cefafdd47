//! Who Headrest and its children are: root is given up before anything runs.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, fchown, lchown,
};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use nix::unistd::{Uid, User as Account, initgroups, setgid, setuid};
use rustix::fs::{Mode, OFlags};

use crate::config::{Config, Environment};
use crate::pgbackrest::conf::DEFAULT_REPOSITORY;

/// Variables that children get from our own environment.
const PASSED_ON: [&str; 4] = ["PATH", "LANG", "TZ", "PGTZ"];

/// Where the server's socket is in a container.
const CONTAINER_SOCKETS: &str = "/var/run/postgresql";

/// The user that everything runs as.
#[derive(Debug, Clone)]
pub(super) struct User {
    pub(super) name: String,
    /// Whether the user database knows it.
    pub(super) has_entry: bool,
    home: PathBuf,
}

impl User {
    /// The environment of PostgreSQL's programs: a short list, nothing that would leak into them.
    pub(super) fn environment(&self, ours: &Environment) -> BTreeMap<String, String> {
        let mut env: BTreeMap<String, String> = PASSED_ON
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), ours.get(name)?.to_owned())))
            .chain(ours.with_prefix("LC_").map(|(name, value)| (name.to_owned(), value.to_owned())))
            .collect();
        env.entry("PATH".to_owned()).or_insert_with(|| {
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()
        });
        env.insert("HOME".to_owned(), self.home.display().to_string());
        env.insert("USER".to_owned(), self.name.clone());
        env.insert("LOGNAME".to_owned(), self.name.clone());
        env
    }
}

/// As root: makes the directories and becomes the configured user. Otherwise: says who we are.
pub(super) fn settle(config: &Config) -> anyhow::Result<User> {
    let me = Uid::effective();
    if !me.is_root() {
        let account = Account::from_uid(me).context("cannot look up our own user")?;
        // A user without an entry (an arbitrary `--user` of a container) is known by its number.
        return Ok(account.map_or_else(
            || User { name: me.to_string(), has_entry: false, home: PathBuf::from("/") },
            |account| User { name: account.name, has_entry: true, home: account.dir },
        ));
    }
    let account = account(&config.os_user)?;
    hand_over(&config.state_dir, 0o700, &account)?;
    if let Some(postgres) = &config.postgres {
        hand_over(&postgres.data_dir, 0o700, &account)?;
        if let Some(directory) = &postgres.socket_dir {
            hand_over(directory, 0o755, &account)?;
        }
    }
    for (option, mode) in
        [("REPO1_PATH", 0o750), ("LOCK_PATH", 0o770), ("LOG_PATH", 0o750), ("SPOOL_PATH", 0o750)]
    {
        let variable = format!("PGBACKREST_{option}");
        let path = config.pgbackrest_env.iter().find(|(name, _)| *name == variable);
        let posix = !config.pgbackrest_env.iter().any(|(name, value)| {
            option == "REPO1_PATH"
                && (name == "PGBACKREST_REPO1_HOST"
                    || name == "PGBACKREST_REPO1_TYPE" && value != "posix")
        });
        if let Some((_, path)) = path.filter(|_| posix) {
            hand_over(Path::new(path), mode, &account)?;
        }
    }
    if let (Some(contract), Some(postgres)) = (&config.contract, &config.postgres) {
        hand_over_all_in(&postgres.data_dir, 0o700, &account)?;
        hand_over_all_in(&config.state_dir, 0o700, &account)?;
        if let Some(directory) = &contract.wal_dir {
            hand_over_all_in(directory, 0o700, &account)?;
        }
        // Read-only root file systems have the sockets' place as a tmpfs of root; a directory of the
        // host for the repository is root's, or may only be read.
        let sockets = hand_over_all_in(Path::new(CONTAINER_SOCKETS), 0o3775, &account);
        let repository = hand_over(Path::new(DEFAULT_REPOSITORY), 0o750, &account);
        for error in [sockets, repository].into_iter().filter_map(Result::err) {
            tracing::warn!("{error:#}");
        }
    }
    become_user(&account)?;
    Ok(User { name: account.name, has_entry: true, home: account.dir })
}

/// As root: becomes the user that PostgreSQL runs as. Answers its home.
pub(super) fn give_up_root(os_user: &str) -> anyhow::Result<Option<PathBuf>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let account = account(os_user)?;
    become_user(&account)?;
    Ok(Some(account.dir))
}

fn account(name: &str) -> anyhow::Result<Account> {
    let account = Account::from_name(name)
        .with_context(|| format!("cannot look up the operating-system user {name}"))?
        .with_context(|| {
            format!(
                "the operating-system user {name} does not exist; install PostgreSQL, or set \
                 postgres.os_user"
            )
        })?;
    if account.uid.is_root() {
        bail!("postgres.os_user is root; PostgreSQL refuses to run as root");
    }
    Ok(account)
}

fn become_user(account: &Account) -> anyhow::Result<()> {
    let name = CString::new(account.name.as_str()).context("a user's name holds a zero byte")?;
    initgroups(&name, account.gid).context("cannot give up root's groups")?;
    setgid(account.gid).context("cannot give up root's group")?;
    setuid(account.uid).context("cannot give up root")?;
    // Our own /proc entries stay readable for us, and core files possible.
    let _ = nix::sys::prctl::set_dumpable(true);
    Ok(())
}

/// What the official image does with its volumes as root: everything in them becomes the server's,
/// whoever had it before.
fn hand_over_all_in(path: &Path, mode: u32, account: &Account) -> anyhow::Result<()> {
    hand_over(path, mode, account)?;
    let shown = path.display();
    let failed = |error| anyhow::Error::new(error).context(format!("cannot give away {shown}"));
    let meta = fs::symlink_metadata(path).map_err(failed)?;
    if meta.is_symlink() {
        return Ok(());
    }
    // A group may have been let in (initdb --allow-group-access).
    if meta.mode() & 0o7777 != mode && meta.mode() & 0o7777 != 0o750 {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    }
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).map_err(failed)?;
        if meta.uid() != account.uid.as_raw() {
            lchown(&path, Some(account.uid.as_raw()), Some(account.gid.as_raw()))
                .map_err(failed)?;
        }
        if meta.is_dir() {
            for entry in fs::read_dir(&path).map_err(failed)? {
                pending.push(entry.map_err(failed)?.path());
            }
        }
    }
    Ok(())
}

/// Makes a directory for the user. One that is there and root's is given to it; one that is
/// somebody else's is left alone, and will be complained about when it is used.
fn hand_over(path: &Path, mode: u32, account: &Account) -> anyhow::Result<()> {
    let shown = path.display();
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Those above it stay root's, and open to pass through.
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).with_context(|| format!("cannot make {shown}"))?;
            }
            fs::DirBuilder::new()
                .mode(mode)
                .create(path)
                .with_context(|| format!("cannot make {shown}"))?;
        }
        Err(error) => return Err(error).with_context(|| format!("cannot make {shown}")),
    }
    if !fs::metadata(path).with_context(|| format!("cannot look at {shown}"))?.is_dir() {
        bail!("{shown} is not a directory");
    }
    // Never through a link: whoever may write above it could have us give away another directory.
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY;
    let Ok(directory) = rustix::fs::open(path, flags, Mode::empty()) else { return Ok(()) };
    let directory = fs::File::from(directory);
    let meta = directory.metadata().with_context(|| format!("cannot look at {shown}"))?;
    if meta.uid() == 0 {
        fchown(&directory, Some(account.uid.as_raw()), Some(account.gid.as_raw()))
            .with_context(|| format!("cannot give {shown} to {}", account.name))?;
    }
    Ok(())
}
