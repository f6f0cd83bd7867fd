//! Tells the package which compiler builds it: instruction counts are a compiler's own.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = match Command::new(&rustc).arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(_) => String::new(),
    };
    let number = version.split_whitespace().nth(1).unwrap_or("unknown");
    // So are those of code that is optimised over crates' borders.
    println!("cargo::rerun-if-env-changed=CARGO_PROFILE_RELEASE_LTO");
    let lto = match env::var("CARGO_PROFILE_RELEASE_LTO").as_deref() {
        Ok("false" | "off") => " without LTO",
        _ => "",
    };
    println!("cargo::rustc-env=BUILT_BY=rustc {number}{lto}");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    println!("cargo::rustc-env=BUILT_WITH={}", flags.replace('\x1f', " "));
}
