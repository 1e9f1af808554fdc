//! The command line. Results go to standard output, everything else to standard error; an error is one line that says
//! what to do. Exit status: 0 well, 1 failed, 2 the command or the configuration is wrong.

/// Prints a line. The standard macro panics if the reader has gone (`torchlane models | head -1`).
macro_rules! println {
    () => { $crate::cli::print_line(format_args!("")) };
    ($($part:tt)*) => { $crate::cli::print_line(format_args!($($part)*)) };
}

mod bench;
mod check;
mod client;
mod health;
mod infer;
mod init;
mod inspect;
mod json;
mod models;
mod picture;
mod reload;
mod rollout;
mod serve;
mod show;
mod sign;
mod verify;
mod versions;

use std::{io::Write as _, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::plain;

/// How a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit status 1.
    Failed(String),
    /// Exit status 2.
    Usage(String),
}

impl Failure {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "torchlane",
    version,
    about = "Serves TorchScript models over gRPC, by priority and deadline"
)]
#[command(
    after_help = "Try it:\n  torchlane serve --repository models\n  torchlane models\n  torchlane infer digits --image tests/data/digits/png/3-0012.png"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the models of a repository
    Serve(serve::Args),
    /// Print the merged configuration and try to load every model
    Check(check::Args),
    /// Send one request to a model
    Infer(infer::Args),
    /// Put a new version live
    Reload(reload::Args),
    /// Put the version live that was live before
    Rollback(reload::RollbackArgs),
    /// Stop serving a model
    Unload(reload::UnloadArgs),
    /// Roll a version out beside the live one, or see how it goes
    Rollout(rollout::Args),
    /// List models, or show one
    Models(models::Args),
    /// Ask whether a server or a model is ready; exit status 0 if it is
    Health(health::Args),
    /// Send load and show how long answers take
    Bench(bench::Args),
    /// Print what an archive holds, without running it
    Inspect(inspect::Args),
    /// Write the digests of a version's files, and sign them
    Sign(sign::Args),
    /// Check versions against their digests and signatures
    Verify(verify::Args),
    /// Write a torchlane.toml, or a model.toml for a model
    Init(init::Args),
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return misread(&error),
    };
    let outcome = match command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Infer(args) => infer::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Rollback(args) => reload::rollback(&args),
        Command::Unload(args) => reload::unload(&args),
        Command::Health(args) => health::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Rollout(args) => rollout::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Sign(args) => sign::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "torchlane", &mut script);
            println!("{}", String::from_utf8_lossy(&script).trim_end());
            Ok(())
        }
    };
    let (status, message) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
    };
    // Where that cannot be written either, the status has to do.
    let error = console::style("error:").red().bold().for_stderr();
    let _unwritable = writeln!(std::io::stderr(), "{error} {}", message.replace('\n', " "));
    ExitCode::from(status)
}

/// Help and the version, which are no errors, or what is wrong with the arguments.
fn misread(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        error.exit();
    }
    let text = error.render();
    let text = if console::colors_enabled_stderr() { text.ansi().to_string() } else { text.to_string() };
    let _unwritable = write!(std::io::stderr(), "{}", plain::std_words(&text));
    ExitCode::from(2)
}

/// Ends the command where standard output cannot be written: well if its reader has seen enough.
fn print_line(line: std::fmt::Arguments<'_>) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        let _unwritable = writeln!(std::io::stderr(), "error: cannot write the result: {error}");
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
