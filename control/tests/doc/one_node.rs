// A node without peers, for documentation: one reliable channel, `metrics/here`, which it
// may publish on and subscribe to, and keeps. Its socket and log are in `folder`, and it listens on an address of its own.

/// The node's configuration; nothing of it is on disk. `number`, 1 to 254, tells it from others.
fn one_node(
    folder: &std::path::Path,
    number: u8,
) -> Result<virga::config::Config, Box<dyn std::error::Error>> {
    use virga::keys::{Keys, Secret};
    let text = format!(
        r#"
[node]
name = "here"
network = "example"
node_key_file = "unread"
entity_key_file = "unread"
psk_file = "unread"
listen = "127.77.0.{number}:4783"
socket = "{}"
state = "{}"

[[channels]]
name = "metrics/here"
reliable = true
publish = ["here"]
subscribe = ["here"]
persist = true
"#,
        folder.join("node.sock").display(),
        folder.join("state").display()
    );
    let keys = Keys {
        node: Secret::generate()?.into(),
        entity: Secret::generate()?.into(),
        psk: Secret::generate()?,
    };
    let path = folder.join("here.toml");
    Ok(virga::config::Config::from_toml(&text, &path, keys)?)
}
