//! The `millrace` program.

use std::process::ExitCode;

/// Every message is a few dozen small allocations, freed on another thread than they were made on.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    millrace_cli::main()
}
