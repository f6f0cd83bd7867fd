//! The `virga` command.
#![deny(unsafe_code)]

fn main() -> std::process::ExitCode {
    virga::cli::main()
}
