//! The command line of `dormouse`: it parses words, calls the library and prints what came of it.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
