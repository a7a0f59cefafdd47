//! The command line.

mod ask;
mod doctor;
mod entrypoint;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::entrypoint::Entry;
use crate::config::{Config, ConfigErrors, Contract, Environment, Flags};
use crate::pgbackrest::archive_get::ArchiveGet;
use crate::process::become_program;

/// The exit code of a configuration that cannot be used (`EX_USAGE` of sysexits.h).
pub const EXIT_CONFIG: u8 = 64;
/// The exit code of everything else that goes wrong.
pub const EXIT_RUNTIME: u8 = 1;

/// The head on pgBackRest: backups, safe restores and supervision of PostgreSQL.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service
    Serve(Flags),
    /// Look at the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Say whether PostgreSQL takes writes: exit code 0, or 1
    Healthcheck(Flags),
    /// Say what is wrong, check by check: exit code 0, 1 for a warning, 2 for a failure, 3 when
    /// that cannot be told
    Doctor(Flags),
    /// Print the OpenAPI document
    Openapi,
    /// What a server that recovers for a restore runs to get WAL from the archive
    #[command(hide = true)]
    ArchiveGet(ArchiveGet),
    /// What the container image starts: postgres and its arguments, or any other command
    #[command(disable_help_flag = true, disable_version_flag = true)]
    Entrypoint {
        /// Arguments for postgres, or a command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say everything that is wrong with it
    Check(Flags),
    /// Print each value and where it comes from, secrets masked
    Print(Flags),
}

/// Runs a command line. `args` begins with the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version to standard output, mistakes to standard error.
            let _ = error.print();
            return if error.use_stderr() { EXIT_CONFIG.into() } else { ExitCode::SUCCESS };
        }
    };
    if let Command::ArchiveGet(archive_get) = &cli.command {
        return archive_get.run().into();
    }
    let environment = Environment::of_this_process();
    match cli.command {
        Command::ArchiveGet(archive_get) => archive_get.run().into(),
        Command::Serve(flags) => match Config::load(&flags, &environment) {
            Ok(config) => crate::app::run(config, &environment),
            Err(errors) => refuse(&errors),
        },
        Command::Config { command: ConfigCommand::Check(flags) } => {
            match Config::load(&flags, &environment) {
                Ok(_) => print("the configuration is sound\n"),
                Err(errors) => refuse(&errors),
            }
        }
        Command::Config { command: ConfigCommand::Print(flags) } => {
            match Config::load(&flags, &environment) {
                Ok(config) => {
                    let lines = config.shown.iter().map(|shown| {
                        format!("{} = {}  # {}\n", shown.key, shown.value, shown.origin)
                    });
                    print(&lines.collect::<String>())
                }
                Err(errors) => refuse(&errors),
            }
        }
        Command::Healthcheck(flags) => match Config::load(&flags, &environment) {
            Ok(config) => match ask::get(config.server.listen, "/readyz", None) {
                Ok(answer) if answer.status == 200 => print(&format!("{}\n", answer.body.trim())),
                Ok(answer) => complain(&format!("not ready: {}", answer.body.trim())),
                Err(why) => complain(&why),
            },
            Err(errors) => refuse(&errors),
        },
        Command::Doctor(flags) => match Config::load(&flags, &environment) {
            Ok(config) => doctor::run(&config, &environment),
            Err(errors) => refuse(&errors),
        },
        Command::Entrypoint { args } => enter(args, &environment),
        Command::Openapi => match crate::http::document().to_pretty_json() {
            Ok(text) => print(&(text + "\n")),
            Err(error) => complain(&format!("cannot write the OpenAPI document: {error}")),
        },
    }
}

/// Does what the container was asked to do.
fn enter(args: Vec<OsString>, environment: &Environment) -> ExitCode {
    let mut environment = environment.clone();
    let (root, programs) = (Path::new("/var/lib"), Path::new("/usr/lib/postgresql"));
    if let Some(pgdata) = entrypoint::pgdata_instead(environment.get("PGDATA"), root, programs) {
        environment.set("PGDATA", pgdata);
    }
    let environment = &environment;
    let args = match entrypoint::entry(args) {
        Entry::Command(program, args) => {
            let error = become_program(&program, &args, None);
            // As a shell does it.
            let missing = error.source.kind() == std::io::ErrorKind::NotFound;
            complain(&error.explain());
            return if missing { 127 } else { 126 }.into();
        }
        Entry::Postgres(args) => {
            return complain(&format!("{:#}", crate::app::become_postgres(&args, environment)));
        }
        Entry::Serve(args) => args,
    };
    let args: Result<Vec<String>, _> = args.into_iter().map(OsString::into_string).collect();
    let Ok(args) = args else {
        complain("an argument of postgres is not UTF-8");
        return EXIT_CONFIG.into();
    };
    let config = Config::load(&Flags::default(), environment)
        .and_then(|config| config.as_agreed(Contract::read(environment)?, args));
    match config {
        Ok(config) => crate::app::run(config, environment),
        Err(errors) => refuse(&errors),
    }
}

fn refuse(errors: &ConfigErrors) -> ExitCode {
    for error in &errors.0 {
        complain(&format!("configuration: {error}"));
    }
    EXIT_CONFIG.into()
}

/// One line to standard error, and the exit code that goes with it.
pub fn complain(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "headrest: {message}");
    EXIT_RUNTIME.into()
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => EXIT_RUNTIME.into(),
    }
}
