//! The `virga` command.
#![deny(unsafe_code)]

fn main() {}
