//! `replicas`, run by libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| virga_transport_fuzz::replicas::run(input));
