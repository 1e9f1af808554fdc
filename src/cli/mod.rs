//! The command line. Results go to standard output, everything else to standard error; an error is one line that says
//! what to do. Exit status: 0 well, 1 failed, 2 the command or the configuration is wrong.

/// Prints a line. The standard macro panics where nobody reads any more (`torchlane models | head -1`).
macro_rules! println {
    () => { $crate::cli::print_line(format_args!("")) };
    ($($part:tt)*) => { $crate::cli::print_line(format_args!($($part)*)) };
}

mod bench;
mod check;
mod client;
mod infer;
mod inspect;
mod models;
mod picture;
mod reload;
mod rollout;
mod serve;
mod sign;
mod verify;
mod versions;

use std::{io::Write as _, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

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
    /// Put a new version live, go back, or unload
    Reload(reload::Args),
    /// Roll a version out beside the live one, or see how it goes
    Rollout(rollout::Args),
    /// List models, or show one
    Models(models::Args),
    /// Send load and show how long answers take
    Bench(bench::Args),
    /// Print what an archive holds, without running it
    Inspect(inspect::Args),
    /// Write the digests of a version's files, and sign them
    Sign(sign::Args),
    /// Check versions against their digests and signatures
    Verify(verify::Args),
    /// Print a completion script for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Infer(args) => infer::run(&args),
        Command::Reload(args) => reload::run(&args),
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
    let _unwritable = writeln!(std::io::stderr(), "error: {}", message.replace('\n', " "));
    ExitCode::from(status)
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

/// `1 file`, `2 files`.
fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Prints rows in columns.
fn print_table(header: &[&str], rows: &[Vec<String>]) {
    let width = |(column, title): (usize, &&str)| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([title.len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = header.iter().enumerate().map(width).collect();
    let print = |cells: Vec<&str>| {
        let last = cells.len().saturating_sub(1);
        let mut line = String::new();
        for (i, cell) in cells.iter().enumerate() {
            line.push_str(cell);
            if i < last {
                let width = widths.get(i).copied().unwrap_or(0);
                line.push_str(&" ".repeat(width.saturating_sub(cell.chars().count()) + 2));
            }
        }
        println!("{}", line.trim_end());
    };
    print(header.to_vec());
    for row in rows {
        print(row.iter().map(String::as_str).collect());
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
