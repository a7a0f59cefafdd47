//! What pgBackRest's exit codes mean: its own name, our problem kind, and what to do next.
//!
//! The names are those of pgBackRest's `error.yaml` (70 codes, the same in 2.45 and 2.60); the
//! grouping is design/failures.md. The code decides and text only refines: this module must not
//! read logs, decide whether to retry, or know HTTP statuses.

/// What was being done, for the codes whose meaning depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    Backup,
    Restore,
    Check,
    StanzaCreate,
    StanzaUpgrade,
    Expire,
    Verify,
    Info,
    ArchivePush,
    /// Anything else, or not known.
    Other,
}

/// One exit code, explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitInfo {
    /// The exit code; numbers outside a byte are cut to 0 or 255.
    pub code: u8,
    /// pgBackRest's error name, such as `LockAcquireError`, or `unknown`.
    pub name: &'static str,
    /// The group it belongs to.
    pub problem: ProblemKind,
    /// Whether the same command may succeed later with nobody changing anything. A job that was
    /// cancelled on request is never retried, whatever this says.
    pub retryable: bool,
    /// What to look at or do next, for a person.
    pub hint: &'static str,
}

macro_rules! problem_kinds {
    ($($(#[$doc:meta])* $kind:ident = $text:literal,)*) => {
        /// Our grouping of what can go wrong in a pgBackRest run (design/failures.md).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ProblemKind { $($(#[$doc])* $kind,)* }

        impl ProblemKind {
            /// Every kind, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The kebab-case word used in the API, the store and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $text,)* }
            }
        }
    };
}

problem_kinds! {
    /// A defect or an unexpected state inside pgBackRest or the kernel.
    PgbackrestInternal = "pgbackrest-internal",
    RepositoryCorrupt = "repository-corrupt",
    ConfigInvalid = "config-invalid",
    PostgresUnavailable = "postgres-unavailable",
    /// The stanza in the repository belongs to another cluster.
    StanzaMismatch = "stanza-mismatch",
    InvalidTarget = "invalid-target",
    /// We called pgBackRest wrongly.
    InvocationBug = "invocation-bug",
    StanzaNotConfigured = "stanza-not-configured",
    PostgresRunning = "postgres-running",
    WorkerFailed = "worker-failed",
    TargetNotEmpty = "target-not-empty",
    StorageRead = "storage-read",
    /// Version or system identifier differ from the stanza's.
    WrongCluster = "wrong-cluster",
    /// A segment with the same name and other content is in the archive.
    ArchiveDiverged = "archive-diverged",
    Unsupported = "unsupported",
    StorageWrite = "storage-write",
    InsufficientStorage = "insufficient-storage",
    RepositoryUnreachable = "repository-unreachable",
    /// Another pgBackRest process holds the lock.
    LockHeld = "lock-held",
    StanzaNotCreated = "stanza-not-created",
    /// A file that should be in the repository is not.
    RepositoryIncomplete = "repository-incomplete",
    PostgresQuery = "postgres-query",
    TimelineUnreachable = "timeline-unreachable",
    StanzaStopped = "stanza-stopped",
    Terminated = "terminated",
    ArchivingMisconfigured = "archiving-misconfigured",
    LayoutMismatch = "layout-mismatch",
    BackupNotFound = "backup-not-found",
    TargetBeforeFirstBackup = "target-before-first-backup",
    NoBackupForThisVersion = "no-backup-for-this-version",
    DatabaseSelection = "database-selection",
    ArchiveTimeout = "archive-timeout",
    OsUser = "os-user",
    OutOfMemory = "out-of-memory",
    RepositoryCipher = "repository-cipher",
    PostgresLost = "postgres-lost",
    CommandFailed = "command-failed",
    NoValidRepository = "no-valid-repository",
    PartialFailure = "partial-failure",
    RepositoryDenied = "repository-denied",
    ClockSkew = "clock-skew",
    /// Ended by a signal rather than by itself.
    Interrupted = "interrupted",
    /// A code that is not in pgBackRest's list.
    Unknown = "unknown",
}

const RETRY: bool = true;
const FINAL: bool = false;

macro_rules! exit_table {
    ($($code:literal $name:ident $problem:ident $retry:ident $hint:literal)*) => {
        &[$(ExitInfo {
            code: $code,
            name: stringify!($name),
            problem: ProblemKind::$problem,
            retryable: $retry,
            hint: $hint,
        },)*]
    };
}

/// All codes of pgBackRest's `error.yaml`, ascending.
const TABLE: &[ExitInfo] = exit_table! {
    25 AssertError PgbackrestInternal FINAL
    "A defect in pgBackRest itself. Keep the log, update pgBackRest, and look for the message in its issue tracker."
    26 ChecksumError RepositoryCorrupt FINAL
    "A file in the repository does not match its checksum, typically a backup.info or archive.info cut short by a full disk. Compare it with its .copy, free space, then run verify."
    27 ConfigError ConfigInvalid FINAL
    "pgBackRest refuses its configuration; the message names the option. Correct pgbackrest.conf or the PGBACKREST_ variables."
    28 FileInvalidError StanzaMismatch FINAL
    "The stanza in this repository belongs to another cluster. Check pg1-path and repo1-path; for a new cluster use a new stanza or an empty repository, never delete the info files."
    29 FormatError RepositoryCorrupt FINAL
    "A file could not be understood: pgbackrest.conf, or a damaged or encrypted file in the repository. Check the cipher passphrase first, then run verify and use an older backup set if needed."
    30 CommandRequiredError InvocationBug FINAL
    "Headrest called pgBackRest without a command. Please report this with the job's log."
    31 OptionInvalidError InvocationBug FINAL
    "This pgBackRest version does not accept an option it was given; the message names it. Check the pgBackRest version and pgbackrest.conf, then report it."
    32 OptionInvalidValueError InvocationBug FINAL
    "An option has a value that pgBackRest does not accept; the message names it. If it stands in pgbackrest.conf or a PGBACKREST_ variable, correct it there."
    37 OptionRequiredError StanzaNotConfigured FINAL
    "A required option is missing, usually pg1-path: the stanza's name is probably misspelt or it has no section in pgbackrest.conf."
    38 PgRunningError PostgresRunning FINAL
    "postmaster.pid exists in the data directory. Stop PostgreSQL first; remove the file only after making sure that no postgres process uses this directory."
    39 ProtocolError WorkerFailed RETRY
    "A pgBackRest worker or remote process ended or answered nonsense, often killed for lack of memory. Look for OOM kills, check that both hosts run the same version, and try again."
    40 PathNotEmptyError TargetNotEmpty FINAL
    "The target directory is not empty. Restore with delta to reuse it, or move its content away."
    41 FileOpenError StorageRead FINAL
    "A file exists but cannot be opened; the message names it. Check its owner and permissions for the user that runs pgBackRest."
    42 FileReadError StorageRead FINAL
    "Reading a file failed midway, which points at the disk or the mount. Look at the kernel log before anything else."
    43 ParamRequiredError InvocationBug FINAL
    "Headrest called pgBackRest without a required parameter. Please report this with the job's log."
    44 ArchiveMismatchError WrongCluster FINAL
    "This cluster's version or system identifier is not the one in the archive. After pg_upgrade run stanza-upgrade; otherwise the wrong cluster is archiving here, so stop it first."
    45 ArchiveDuplicateError ArchiveDiverged FINAL
    "The archive already holds this WAL segment with other content: an older copy of the data was started on the same timeline. Archiving stays stuck until a person decides which copy is right; restore or promote to a new timeline."
    46 VersionNotSupportedError Unsupported FINAL
    "This pgBackRest does not support this PostgreSQL version or repository format. Update pgBackRest."
    47 PathCreateError StorageWrite FINAL
    "A directory could not be created. Check that the parent exists, belongs to the pgBackRest user, and is not mounted read-only."
    48 CommandInvalidError InvocationBug FINAL
    "This pgBackRest version does not know the command. Check the configured binary and its version."
    49 HostConnectError RepositoryUnreachable RETRY
    "The repository or database host cannot be reached. Check the network, DNS, port and certificates; it works again without a change when the host is back."
    50 LockAcquireError LockHeld RETRY
    "Another pgBackRest process is working on this stanza; wait for it. If none runs, check that the lock path is writable: a leftover lock file by itself does no harm."
    51 BackupMismatchError WrongCluster FINAL
    "This cluster's version or system identifier is not the stanza's. After pg_upgrade run stanza-upgrade and then a full backup; otherwise check pg1-path."
    52 FileSyncError StorageWrite FINAL
    "Flushing a file to disk failed. Treat the disk as suspect: look at the kernel log and free space before repeating."
    53 PathOpenError StorageRead FINAL
    "A directory cannot be listed. Its owner or permissions keep the pgBackRest user out, often something that root created."
    54 PathSyncError StorageWrite FINAL
    "Flushing a directory to disk failed. Look at the kernel log and free space; some network file systems need another mount option."
    55 FileMissingError RepositoryIncomplete FINAL
    "A file that must exist is missing; the message names it. If it belongs to a backup, use another backup set and run verify."
    56 DbConnectError PostgresUnavailable RETRY
    "No usable PostgreSQL primary: it is down, still in recovery or paused, or pg1-port, pg1-socket-path or pg1-user is wrong."
    57 DbQueryError PostgresQuery RETRY
    "A query on PostgreSQL failed, often because a backend crashed or the role lacks rights. Look at PostgreSQL's log at this minute."
    58 DbMismatchError TimelineUnreachable FINAL
    "The target timeline does not continue from this backup. Choose timeline current, an older backup set, or another target."
    60 FileRemoveError StorageWrite FINAL
    "A file could not be removed. Check ownership and permissions of its directory, and object lock or retention rules on the bucket."
    61 PathRemoveError StorageWrite FINAL
    "A directory could not be removed. Check its ownership, and whether something else still writes into it."
    62 StopError StanzaStopped FINAL
    "pgbackrest stop is in force for this stanza. Run start when the reason for stopping it is gone; WAL is not archived until then."
    63 TermError Terminated RETRY
    "pgBackRest was asked to end by a signal. Nothing is damaged and the lock is free; start it again unless somebody cancelled it on purpose."
    64 FileWriteError StorageWrite FINAL
    "Writing a file failed, most often because the disk is full. Free space and repeat: a restore continues where it stopped when run with delta."
    67 FeatureNotSupportedError Unsupported FINAL
    "This build of pgBackRest lacks the feature, for example a compression type or storage driver. Choose another or install a build that has it."
    68 ArchiveCommandInvalidError ArchivingMisconfigured FINAL
    "archive_command does not call pgbackrest. Set it to pgbackrest --stanza=NAME archive-push %p and reload PostgreSQL."
    69 LinkExpectedError LayoutMismatch FINAL
    "A link was expected and something else was found. Compare the links in the data directory with the backup's, or restore with other link options."
    70 LinkDestinationError LayoutMismatch FINAL
    "A link points where it must not, such as into the data directory or to the same place as another. Correct the link or its mapping."
    72 HostInvalidError RepositoryUnreachable RETRY
    "The host is not the one expected for this command. Check repo1-host and pg1-host, and run the command on the right machine."
    73 PathMissingError StorageRead FINAL
    "A directory that must exist is missing; the message names it. Check that the volume is mounted."
    74 FileMoveError StorageWrite FINAL
    "Renaming a file failed. Check free space, permissions, and that source and destination are on one file system."
    75 BackupSetInvalidError BackupNotFound FINAL
    "No backup set fits: the label does not exist, or no repository could be read. Compare with info; if info shows backups, check repository access and passphrase."
    76 TablespaceMapError LayoutMismatch FINAL
    "The tablespace mapping does not fit the backup. Take the names from info --set and map each tablespace once."
    78 LinkMapError LayoutMismatch FINAL
    "The link mapping does not fit the backup. Take the names from info --set and map each link once."
    79 FileCloseError PgbackrestInternal FINAL
    "Closing a file failed, which on network storage means that earlier writes were lost. Check the mount and the kernel log."
    80 DbMissingError DatabaseSelection FINAL
    "A database named for the restore is not in this backup. Take the names from info --set."
    81 DbInvalidError DatabaseSelection FINAL
    "A database cannot be selected in this way: system databases are always restored, and one cannot be both included and excluded."
    82 ArchiveTimeoutError ArchiveTimeout RETRY
    "WAL did not reach the archive in time. Look at PostgreSQL's log and pg_stat_archiver for the failing archive_command: that is the real error; archive-timeout only reports it."
    83 FileModeError StorageWrite FINAL
    "Setting permissions failed. The file belongs to another user, or the file system does not keep permissions."
    87 ArchiveDisabledError ArchivingMisconfigured FINAL
    "archive_mode is off. Set it to on and restart PostgreSQL; a reload is not enough."
    88 FileOwnerError StorageWrite FINAL
    "Setting a file's owner failed. Run as the user that owns the files, or correct their owner."
    89 UserMissingError OsUser FINAL
    "The process runs under a user id that has no name on this system. Add the user to /etc/passwd or run under another one."
    93 FileExistsError TargetNotEmpty FINAL
    "A file is in the way of one to be created; the message names it. Move it aside after checking what it is."
    94 MemoryError OutOfMemory RETRY
    "Memory ran out. Lower process-max or the compression level, or raise the memory limit, then try again."
    95 CryptoError RepositoryCipher FINAL
    "Decryption or TLS set-up failed: the passphrase, cipher type or certificate is not the one used when the data was written."
    96 ParamInvalidError InvocationBug FINAL
    "Headrest passed a parameter that this command does not take. Please report this with the job's log."
    97 PathCloseError PgbackrestInternal FINAL
    "Closing a directory failed. Check the mount and the kernel log."
    98 FileInfoError PgbackrestInternal FINAL
    "Reading a file's attributes failed. Check permissions along its path and the kernel log."
    99 JsonFormatError PgbackrestInternal FINAL
    "pgBackRest could not read JSON, from its own files or from a storage service. Look at the message for the file or host, then run verify."
    100 KernelError PgbackrestInternal FINAL
    "The operating system refused something basic, such as a new process. Check limits on processes and open files, and the kernel log."
    101 ServiceError PostgresLost RETRY
    "A service broke off: PostgreSQL stopped during the backup, or the object store answered 5xx. Check that PostgreSQL is up, then repeat."
    102 ExecuteError CommandFailed FINAL
    "A program that pgBackRest starts failed, such as ssh or its own binary. Run it by hand as the same user to see why."
    103 RepoInvalidError NoValidRepository RETRY
    "No configured repository is usable for this stanza: none reachable, stanza-create not run, or another cluster's stanza. The lines above name the reason for each repository."
    104 CommandError PartialFailure RETRY
    "Part of the command failed, typically one repository of several. Find the first ERROR above it in the log; WAL reaches no repository until every one accepts it."
    105 AccessError RepositoryDenied FINAL
    "The storage service refused the credentials or the permission. Check key, role, bucket policy and the clock of this host."
    106 ClockError ClockSkew FINAL
    "The newest backup is labelled later than now, so the clock or time zone went backwards. Correct the clock; if it is right now, wait until it passes that label."
    122 RuntimeError PgbackrestInternal FINAL
    "pgBackRest failed without a more precise reason. Read the last lines of the log."
    124 UnhandledError PgbackrestInternal FINAL
    "pgBackRest failed in a way it did not foresee. Keep the log and look for the message in its issue tracker."
    125 UnknownError PgbackrestInternal FINAL
    "A program under pgBackRest failed without saying why. Read the lines above it in the log."
};

/// Explains an exit code. Total: a code outside the table answers an `unknown` entry that keeps the
/// number, and 128 + n, as a shell or wrapper reports a signal, answers [`ProblemKind::Interrupted`].
pub fn lookup(code: i32, context: Context) -> ExitInfo {
    match TABLE.iter().find(|entry| i32::from(entry.code) == code) {
        Some(entry) => in_context(*entry, context),
        None => unlisted(code),
    }
}

fn unlisted(code: i32) -> ExitInfo {
    let (problem, retryable, hint) = match code {
        0 => (ProblemKind::Unknown, FINAL, "pgBackRest reported success."),
        1 => (
            ProblemKind::Unknown,
            FINAL,
            "Only archive-get and repo-get end with 1, for \"not found\", which is normal at the end of the archive. Otherwise something other than pgBackRest answered: check the configured binary.",
        ),
        126 | 127 => (
            ProblemKind::Unknown,
            FINAL,
            "The configured pgbackrest binary is missing or cannot be executed.",
        ),
        129..=159 => (
            ProblemKind::Interrupted,
            RETRY,
            "A wrapper reports that pgBackRest was killed by signal (code - 128); 137 is usually the OOM killer. Look at the kernel log.",
        ),
        _ => (
            ProblemKind::Unknown,
            FINAL,
            "This code is not one of pgBackRest's. Check which binary ran and read the last lines of the log.",
        ),
    };
    let code = u8::try_from(code.clamp(0, 255)).unwrap_or(u8::MAX);
    ExitInfo { code, name: "unknown", problem, retryable, hint }
}

/// The codes whose meaning depends on the command (design/failures.md, notes column).
fn in_context(entry: ExitInfo, context: Context) -> ExitInfo {
    use Context::{ArchivePush, Backup, Check, Expire, Info, Restore, StanzaCreate, StanzaUpgrade};
    let with = |problem, retryable, hint| ExitInfo { problem, retryable, hint, ..entry };
    match (entry.code, context) {
        (27, Check) => with(
            ProblemKind::PostgresUnavailable,
            RETRY,
            "check found no usable PostgreSQL: it is down, in recovery or paused. If it is up as a primary, check pg1-path, pg1-port and pg1-socket-path.",
        ),
        (29, Restore) => with(
            ProblemKind::InvalidTarget,
            FINAL,
            "The recovery target could not be understood; give the time with its offset and the LSN as 16/B374D848. If the target is sound, a repository file is damaged: run verify.",
        ),
        (30 | 31 | 32 | 43 | 48 | 96, ArchivePush) => with(
            ProblemKind::ArchivingMisconfigured,
            FINAL,
            "archive_command passes something that pgBackRest refuses; with 32 it is mostly a pg1-path that is not this cluster's data directory. Compare it with SHOW data_directory.",
        ),
        (55, Backup | Check | Expire | StanzaUpgrade | Info | ArchivePush) => NOT_CREATED.on(entry),
        (58, Backup | Check | StanzaCreate | StanzaUpgrade) => OTHER_SERVER.on(entry),
        (63, ArchivePush) => with(
            ProblemKind::Terminated,
            RETRY,
            "archive-push was ended by a signal, usually because PostgreSQL stopped. PostgreSQL tries the segment again by itself.",
        ),
        _ => entry,
    }
}

/// A meaning that replaces the table's, by context or by text.
struct Meaning(ProblemKind, &'static str);

impl Meaning {
    fn on(&self, entry: ExitInfo) -> ExitInfo {
        ExitInfo { problem: self.0, hint: self.1, ..entry }
    }
}

const NOT_CREATED: Meaning = Meaning(
    ProblemKind::StanzaNotCreated,
    "The repository knows no such stanza: run stanza-create once. If backups existed before, check first that the right repository is mounted and that repo1-path is right.",
);
const OTHER_SERVER: Meaning = Meaning(
    ProblemKind::ConfigInvalid,
    "pg1-path and pg1-port lead to different clusters, or a standby is on another timeline. Compare SHOW data_directory on that port with pg1-path.",
);
const NO_SPACE: Meaning = Meaning(
    ProblemKind::InsufficientStorage,
    "The disk named in the message is full. Free space and repeat; expire still works on a full repository and frees its space.",
);
const DAMAGED: Meaning = Meaning(
    ProblemKind::RepositoryCorrupt,
    "A file of this backup is damaged or encrypted with another passphrase. Run verify, and restore from the previous backup set.",
);
const LINK_OF_NO_TABLESPACE: Meaning = Meaning(
    ProblemKind::LayoutMismatch,
    "pg_tblspc in PGDATA has a link, named in the message by its OID, that belongs to no tablespace: a CREATE TABLESPACE was cut short by a crash, or runs now. If SELECT oid FROM pg_tablespace does not list it, remove the link; until then every backup fails.",
);
const TOO_EARLY: Meaning = Meaning(
    ProblemKind::TargetBeforeFirstBackup,
    "The target lies before the end of the oldest backup. Choose a later target, or a repository that keeps older backups.",
);
const OTHER_VERSION: Meaning = Meaning(
    ProblemKind::NoBackupForThisVersion,
    "The newest backup is from before the PostgreSQL upgrade. Take a full backup now; to go back to the old version name its backup set explicitly.",
);
const WRONG_PG_PATH: Meaning = Meaning(
    ProblemKind::ConfigInvalid,
    "pg1-path is not a PostgreSQL data directory, or its volume is not mounted. Compare it with SHOW data_directory.",
);
const HALF_STANZA: Meaning = Meaning(
    ProblemKind::RepositoryIncomplete,
    "Only one of archive.info and backup.info is in the repository. Do not create the stanza again: look for their .copy files and for what removed them.",
);
const NOT_STOPPED: Meaning = Meaning(
    ProblemKind::InvocationBug,
    "The stanza must be stopped before it is deleted: stop PostgreSQL, run pgbackrest stop, then delete.",
);

impl ExitInfo {
    /// Sharpens the problem by the text of the first `ERROR: [NNN]:` line, where one code has
    /// several meanings (design/failures.md: "text decides"). Unknown text changes nothing.
    #[must_use]
    pub fn refine(self, message: &str) -> Self {
        let has = |needle: &str| message.contains(needle);
        let meaning = match self.code {
            25 if has("not found in tablespace map") => LINK_OF_NO_TABLESPACE,
            29 if self.problem == ProblemKind::InvalidTarget
                && !has("automatic backup set selection")
                && !has("unable to convert") =>
            {
                DAMAGED
            }
            55 if has("stop file does not exist") => NOT_STOPPED,
            55 if has(".info exists but ") => HALF_STANZA,
            55 if has("unable to load info file") => NOT_CREATED,
            55 if has("global/pg_control") => WRONG_PG_PATH,
            58 if has("queried from cluster") || has("standby is on timeline") => OTHER_SERVER,
            75 if has("unable to find backup set with") => TOO_EARLY,
            75 if has("prior version of PostgreSQL") => OTHER_VERSION,
            _ if self.problem == ProblemKind::StorageWrite && has("No space left on device") => {
                NO_SPACE
            }
            _ => return self,
        };
        meaning.on(self)
    }
}

#[cfg(test)]
mod tests;
