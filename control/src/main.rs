//! The `virga` command.
#![deny(unsafe_code)]

/// Events are made, shared and let go by several threads, which the system's allocator is slower at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    virga::cli::main()
}
