//! The command line of the server, and the process behind it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;

use super::floors::{self, Raised};
use super::{Archiving, FencedStart, Settings};
use crate::postgres::pgdata;
use crate::postgres::tail::OutputFile;
use crate::process::{Child, End, Output, Program, stop};

/// A postmaster, ours or taken over.
#[derive(Debug)]
pub(super) enum Postmaster {
    /// Our child.
    Child(Box<Child>),
    /// Started by an earlier Headrest; the descriptor keeps its pid from meaning another process.
    Adopted(Pid, AsyncFd<OwnedFd>),
}

impl Postmaster {
    /// Takes over a living postmaster.
    pub(super) fn adopt(pid: Pid) -> io::Result<Self> {
        let descriptor = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "its successor is unsafe; an owned descriptor is sound here")]
        let descriptor = AsyncFd::new(descriptor)?;
        Ok(Self::Adopted(pid, descriptor))
    }

    pub(super) fn pid(&self) -> Pid {
        match self {
            Self::Child(child) => child.pid,
            Self::Adopted(pid, _) => *pid,
        }
    }

    /// Waits until it is gone. Cancel safe.
    pub(super) async fn wait(&mut self) -> End {
        match self {
            Self::Child(child) => child.wait().await,
            Self::Adopted(_, descriptor) => {
                // A pidfd becomes readable when the process ends (pidfd_open(2)).
                let _ = descriptor.readable().await;
                End::Unseen
            }
        }
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) {
        match self {
            Self::Child(child) => stop::signal_process(child.pid, signal),
            Self::Adopted(_, descriptor) => {
                // It can only have ended in this moment, which `wait` sees.
                let _ = rustix::process::pidfd_send_signal(descriptor, signal);
            }
        }
    }
}

/// Starts the server, with `raised` settings where it is not fenced. The error is a sentence.
pub(super) async fn launch(
    settings: &Settings,
    fenced: Option<&FencedStart>,
    raised: &[Raised],
) -> Result<Postmaster, String> {
    let mut program = Program::new(settings.binaries.program("postgres"));
    program.env.clone_from(&settings.env);
    program.kill_on_drop = false;
    let archive_timeout = match (fenced, settings.archiving) {
        (None, Archiving::Ours) => default_archive_timeout(settings).await,
        _ => None,
    };
    program.args = arguments(settings, fenced, archive_timeout);
    for setting in raised {
        program.args.extend(["-c".to_owned(), format!("{}={}", setting.name, setting.value)]);
    }
    if fenced.is_some() {
        prepare_fence(&fence_dir(&settings.state_dir))
            .map_err(|error| format!("cannot prepare the private socket directory: {error}"))?;
    }
    let output = OutputFile::at(settings.state_dir.join("log/postgres.log"));
    let file =
        output.for_child().map_err(|error| format!("cannot open the server's log: {error}"))?;
    program.output = Output::File(file);
    let child = program.spawn().map_err(|error| error.explain())?;
    Ok(Postmaster::Child(Box::new(child)))
}

/// Where the socket of a fenced server is.
pub fn fence_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("fence")
}

/// The arguments of the server. Later ones win, so what must hold comes last.
fn arguments(
    settings: &Settings,
    fenced: Option<&FencedStart>,
    archive_timeout: Option<&str>,
) -> Vec<String> {
    let config = &settings.config;
    let mut args = vec!["-D".to_owned(), config.data_dir.display().to_string()];
    let set = |args: &mut Vec<String>, name: &str, value: &str| {
        args.extend(["-c".to_owned(), format!("{name}={value}")]);
    };
    if let Some(port) = config.port {
        set(&mut args, "port", &port.to_string());
    }
    if let Some(directory) = &config.socket_dir {
        set(&mut args, "unix_socket_directories", &directory.display().to_string());
    }
    if let Some(value) = archive_timeout {
        set(&mut args, "archive_timeout", value);
    }
    args.extend(config.args.iter().cloned());
    // On the command line and not in PGDATA, so that no restore can take them away.
    match settings.archiving {
        Archiving::Ours => {
            set(&mut args, "archive_mode", "on");
            set(&mut args, "archive_command", &settings.archive_command);
        }
        Archiving::Off => set(&mut args, "archive_mode", "off"),
        Archiving::NotOurs => {}
    }
    // The server's output is the file we follow; a collector would take it elsewhere.
    set(&mut args, "logging_collector", "off");
    set(&mut args, "log_destination", "stderr");
    if let Some(fenced) = fenced {
        for (name, value) in fenced_settings(settings, fenced) {
            set(&mut args, &name, &value);
        }
    }
    args
}

/// What keeps clients out of a fenced server, and lets it recover in standby mode undisturbed.
fn fenced_settings(settings: &Settings, fenced: &FencedStart) -> Vec<(String, String)> {
    let fence = fence_dir(&settings.state_dir);
    let in_fence = |name: &str| fence.join(name).display().to_string();
    let mut list: Vec<(String, String)> = [
        ("listen_addresses", String::new()),
        ("unix_socket_directories", fence.display().to_string()),
        ("unix_socket_permissions", "0700".to_owned()),
        ("hba_file", in_fence("pg_hba.conf")),
        ("ident_file", in_fence("pg_ident.conf")),
        ("hot_standby", "on".to_owned()),
        ("restore_command", fenced.restore_command.clone()),
        ("wal_retrieve_retry_interval", "100ms".to_owned()),
        // Who looks at the data does not hold up recovery.
        ("max_standby_archive_delay", "0".to_owned()),
        ("max_standby_streaming_delay", "0".to_owned()),
        // Why it ended is read from its log.
        ("lc_messages", "C".to_owned()),
        ("log_min_messages", "warning".to_owned()),
        ("log_line_prefix", "%m [%p] ".to_owned()),
        ("log_error_verbosity", "default".to_owned()),
        // What promotion leaves to be archived waits for the real start: .ready files are kept.
        ("archive_command", String::new()),
        ("recovery_target_timeline", fenced.timeline.clone()),
        ("recovery_min_apply_delay", "0".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    // A restored configuration must not follow a primary, stop early or run somebody's command.
    for name in [
        "primary_conninfo",
        "recovery_end_command",
        "archive_cleanup_command",
        "recovery_target",
        "recovery_target_time",
        "recovery_target_name",
        "recovery_target_lsn",
        "recovery_target_xid",
    ] {
        list.push((name.to_owned(), String::new()));
    }
    // After the empty ones: the other way round PostgreSQL takes them for several targets (tested
    // with 15, 17 and 18).
    list.extend(fenced.target.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    // Gone since PostgreSQL 16: naming it would keep a later server from starting.
    if pgdata::major_version(&settings.config.data_dir).is_some_and(|major| major < 16) {
        list.push(("promote_trigger_file".to_owned(), String::new()));
    }
    list.extend(
        fenced.setting_floors.iter().map(|(name, floor)| (name.clone(), floor.to_string())),
    );
    list
}

/// A directory that only our user can enter, and the rules of who may connect there: everybody
/// who got in. The restored pg_hba.conf might not even let us in.
fn prepare_fence(directory: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    fs::write(directory.join("pg_hba.conf"), "local all all trust\n")?;
    fs::write(directory.join("pg_ident.conf"), "")
}

/// `archive_timeout` when nobody set one: else commits of a quiet server would stay out of the
/// archive until a segment is full.
async fn default_archive_timeout(settings: &Settings) -> Option<&'static str> {
    let value = floors::configured(settings, "archive_timeout").await;
    (value.as_deref() == Some("0")).then_some("60s")
}
