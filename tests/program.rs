//! The `millrace` program, built for the tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    millrace_cli::main()
}
