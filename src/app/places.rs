//! Headrest's own files.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use secrecy::{ExposeSecret as _, SecretString};

use super::{Misconfigured, nearest_existing};
use crate::config::{Config, is_secret_option};
use crate::http;
use crate::pgbackrest::conf::{DEFAULT_REPOSITORY, UserOptions};
use crate::process::inspect::mount_root;

/// How long a Headrest that was killed may take to be gone altogether: its last system call, or a
/// child that it had only just begun to start, still holds what it held.
pub(super) const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(3);
/// How often that is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The shortest admin token that is taken.
const SHORTEST_TOKEN: usize = 16;

/// Makes the state directory and takes it for this process alone. The answer must be kept.
pub(super) fn claim_state_dir(state_dir: &Path) -> anyhow::Result<File> {
    let shown = state_dir.display();
    let make = |path: &Path| match fs::DirBuilder::new().mode(0o700).recursive(true).create(path) {
        Ok(()) => Ok(()),
        Err(error) => {
            let above = nearest_existing(path);
            Err(error).with_context(|| {
                format!("cannot write to the state directory {shown} (below {})", above.display())
            })
        }
    };
    make(state_dir)?;
    close_to_others(state_dir)?;
    make(&state_dir.join("log"))?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(state_dir.join("headrest.lock"))
        .with_context(|| format!("cannot write to the state directory {shown}"))?;
    lock_for_us(lock, || format!("the state directory {shown}"))
}

/// Takes PGDATA for this process alone, which the state directory does not: another Headrest may
/// have another one. The directory itself is locked, so nothing is put into it. The answer must be
/// kept.
pub(super) fn claim_data_dir(data_dir: &Path) -> anyhow::Result<File> {
    let shown = data_dir.display();
    let made = fs::DirBuilder::new().mode(0o700).recursive(true).create(data_dir);
    made.with_context(|| format!("cannot make PGDATA {shown}"))?;
    // As the official image does it. PostgreSQL refuses to start on one that others may enter, as
    // orchestrators leave it that give a volume to a group.
    let meta = fs::metadata(data_dir).with_context(|| format!("cannot look at PGDATA {shown}"))?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if ours && !matches!(meta.mode() & 0o777, 0o700 | 0o750) {
        let closed = fs::set_permissions(data_dir, fs::Permissions::from_mode(0o700));
        closed.with_context(|| format!("cannot close PGDATA {shown} to others"))?;
    }
    let directory = File::open(data_dir).with_context(|| format!("cannot open PGDATA {shown}"))?;
    lock_for_us(directory, || format!("PGDATA {shown}"))
}

fn lock_for_us(file: File, what: impl Fn() -> String) -> anyhow::Result<File> {
    let tries = PREDECESSOR_PATIENCE.as_millis() / LOOK_EVERY.as_millis();
    for _ in 0..tries {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOOK_EVERY),
            Err(errno) => {
                return Err(io::Error::from(errno))
                    .with_context(|| format!("cannot lock {}", what()));
            }
        }
    }
    bail!("another Headrest uses {}", what())
}

/// A container's image has it open for whichever user it is to run as; once that is known nobody
/// else has any business there.
fn close_to_others(state_dir: &Path) -> anyhow::Result<()> {
    let shown = state_dir.display();
    let meta = fs::metadata(state_dir).with_context(|| format!("cannot look at {shown}"))?;
    if meta.mode() & 0o007 != 0 && meta.uid() == rustix::process::geteuid().as_raw() {
        fs::set_permissions(state_dir, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot close {shown} to others"))?;
    }
    Ok(())
}

/// Says what a disk, or a container, that is gone takes with it.
pub(super) fn warn_about_repository(options: &UserOptions, data_dir: &Path, in_container: bool) {
    let elsewhere = ["repo1-host", "pg1-host"].iter().any(|option| options.is_set(option))
        || options.get("repo1-type").is_some_and(|kind| kind != "posix");
    let path = Path::new(options.get("repo1-path").unwrap_or(DEFAULT_REPOSITORY));
    if elsewhere || options.has_other_repos() {
        return;
    }
    let shown = path.display();
    let mount = path.ancestors().filter(|above| *above != Path::new("/")).find_map(mount_root);
    let named = mount.as_ref().is_some_and(|root| !is_anonymous(root));
    if in_container && !named {
        let place = if mount.is_some() { "an anonymous volume" } else { "no volume" };
        tracing::warn!(
            "the backup repository {shown} is on {place}: it goes with the container. Mount one \
             there, or configure another place (PGBACKREST_REPO1_*)"
        );
    }
    let device = |path: &Path| fs::metadata(nearest_existing(path)).map(|meta| meta.dev()).ok();
    if device(path).is_some_and(|of_repository| device(data_dir) == Some(of_repository)) {
        tracing::warn!(
            "the backup repository {shown} is on the same file system as the data: whatever takes \
             that away takes both"
        );
    }
}

/// Whether what is mounted is a volume that the engine made because nobody named one: its name is
/// 64 hexadecimal digits.
fn is_anonymous(root: &str) -> bool {
    let is_name = |part: &str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
    root.split('/').any(is_name)
}

/// Headrest's own executable, for PostgreSQL to run as its user. Where that user cannot reach it
/// (below `/root`, or an executable that was replaced), a copy in the state directory.
pub(super) fn own_program(state_dir: &Path) -> anyhow::Result<PathBuf> {
    use rustix::fs::{Access, access};
    let path = std::env::current_exe().context("cannot tell where Headrest's executable is")?;
    if access(&path, Access::EXEC_OK).is_ok() {
        return Ok(path);
    }
    let directory = state_dir.join("bin");
    let (copy, temporary) = (directory.join("headrest"), directory.join("headrest.tmp"));
    let make = || -> io::Result<()> {
        fs::create_dir_all(&directory)?;
        // The running one, wherever it is.
        fs::copy("/proc/self/exe", &temporary)?;
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o700))?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, &copy)
    };
    make().with_context(|| {
        format!("cannot copy Headrest's executable {} to {}", path.display(), copy.display())
    })?;
    tracing::info!(
        "PostgreSQL's user cannot run {}: a restore will use the copy {}",
        path.display(),
        copy.display()
    );
    Ok(copy)
}

/// The configured admin token, or the generated one, which stays the same from start to start.
pub(super) fn admin_token(config: &Config) -> anyhow::Result<SecretString> {
    if let Some(token) = &config.server.admin_token {
        if token.expose_secret().len() < SHORTEST_TOKEN {
            let text = format!("admin_token: has fewer than {SHORTEST_TOKEN} characters");
            return Err(Misconfigured(text).into());
        }
        return Ok(token.clone());
    }
    let path = config.state_dir.join("admin-token");
    let shown = path.display();
    match fs::read_to_string(&path) {
        Ok(text) if text.trim().len() >= SHORTEST_TOKEN => {
            tracing::info!("the admin token is in {shown}");
            return Ok(text.trim().to_owned().into());
        }
        Ok(_) => bail!("{shown} holds no admin token; remove it and start again"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    }
    let token = http::random_token();
    write_private(&path, &format!("{token}\n"))?;
    tracing::info!("made an admin token; it is in {shown}");
    // The value itself goes to a person in front of a terminal and into no log.
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        let _ = writeln!(stderr, "headrest: the admin token is {token}");
    }
    Ok(token.into())
}

/// Writes what a person needs to run pgbackrest by hand with the settings that Headrest adds.
pub(super) fn make_pgbackrest_hint(
    state_dir: &Path,
    env: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let mut text = String::from(
        "# What pgBackRest is told beyond its own configuration file. To run it by hand, as the user\n\
         # PostgreSQL runs as:  . ./pgbackrest.env; pgbackrest --stanza=main info\n",
    );
    for (name, value) in env {
        if is_secret_option(name) {
            text.push_str(&format!("# {name} is set too; it is not written here\n"));
            continue;
        }
        let value = shlex::try_quote(value).unwrap_or_default();
        text.push_str(&format!("export {name}={value}\n"));
    }
    write_private(&state_dir.join("pgbackrest.env"), &text)
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
