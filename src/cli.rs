//! The command line.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigErrors, Environment, Flags};

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
    /// Print the OpenAPI document
    Openapi,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say everything that is wrong with it
    Check(Flags),
    /// Print each value and where it comes from, secrets masked
    Print(Flags),
}

/// Runs a command line. `args` begins with the program's name.
pub fn run(args: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and version to standard output, mistakes to standard error.
            let _ = error.print();
            return if error.use_stderr() { EXIT_CONFIG.into() } else { ExitCode::SUCCESS };
        }
    };
    let environment = Environment::of_this_process();
    match cli.command {
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
        Command::Openapi => match crate::http::document().to_pretty_json() {
            Ok(text) => print(&(text + "\n")),
            Err(error) => complain(&format!("cannot write the OpenAPI document: {error}")),
        },
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
