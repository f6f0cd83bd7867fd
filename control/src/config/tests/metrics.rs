//! `[metrics]`

use super::*;

#[test]
fn metrics_have_an_address_of_their_own() {
    let with = |lines: &str| format!("{NODE}\n[metrics]\n{lines}\n");
    let config = parse(&with("listen = \"[::1]:9478\"")).unwrap();
    assert_eq!(config.metrics, Some("[::1]:9478".parse().unwrap()));
    refused(&with(""), "metrics.listen", "listen = \"127.0.0.1:9478\"");
    for wrong in ["9478", "127.0.0.1", "127.0.0.1:0", "224.0.0.1:9478"] {
        let text = with(&format!("listen = \"{wrong}\""));
        refused(&text, "metrics.listen", "write an IP address and a port");
    }
    refused(
        &with("listen = \"[::1]:1\"\nport = 1"),
        "metrics.port",
        "unknown key",
    );
    let text = format!("metrics = true\n{NODE}");
    refused(&text, "metrics", "begin the section with a line [metrics]");
}
