//! How far channels go among subnets.

use super::*;

#[test]
fn rules_of_a_channels_visibility() {
    for (block, key, say) in [
        (
            channel("a", "visibility = \"local\""),
            "visibility",
            "no visibility",
        ),
        (
            channel("a", "visibility = \"exported\""),
            "visibility",
            "nothing would cross",
        ),
        (
            channel("a", "visibility = \"exported\"\nexport_to = []"),
            "export_to",
            "name a subnet",
        ),
        (
            channel("a", "export_to = [\"2.0.0.0/8\"]"),
            "export_to",
            "add visibility = \"exported\"",
        ),
        (
            channel(
                "a",
                "visibility = \"exported\"\nexport_to = [\"0.0.0.0/0\"]",
            ),
            "export_to",
            "\"global\"",
        ),
        (
            channel(
                "a",
                &format!(
                    "visibility = \"exported\"\nexport_to = [{}]",
                    "\"2.0.0.0/8\", ".repeat(9)
                ),
            ),
            "export_to",
            "name 8 at most",
        ),
    ] {
        refused(&(mesh() + &block), &format!("channels[0].{key}"), say);
    }
}

#[test]
fn a_channel_is_exported_to_what_it_names() {
    let lines = "visibility = \"exported\"\nexport_to = [\"2.0.0.0/8\", \"0.0.0.0/32\"]";
    let config = parse(&format!("{NODE}{}", channel("a", lines))).unwrap();
    let channel = &config.channels[0];
    assert_eq!(channel.visibility, Visibility::Exported);
    let prefixes = [(0, u32::MAX), (0x0200_0000, 0xff00_0000)];
    let prefixes = prefixes.map(|(levels, mask)| SubnetPrefix {
        subnet: Subnet(levels),
        mask,
    });
    assert_eq!(channel.export_to, prefixes.into());
}
