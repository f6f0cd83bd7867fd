//! Nodes on the loopback that learn from each other who leads where: of each, the file says its neighbours'
//! addresses and everybody's keys.

use crate::stage::{Channel, Node, eventually};
use std::process::Output;
use virga::{keys::Secret, mesh::Mesh};

/// All of them; whatever happens, no process outlives it.
pub(crate) struct Town {
    nodes: Vec<Node>,
    /// Goes last.
    _folder: tempfile::TempDir,
}

impl Town {
    /// Nodes with these links, running.
    pub(crate) async fn running(
        names: &[&'static str],
        links: &[(&str, &str)],
        channels: &[Channel],
    ) -> Self {
        Self::running_with(names, (links, channels), &[]).await
    }

    /// The same, where some files say more.
    pub(crate) async fn running_with(
        names: &[&'static str],
        (links, channels): (&[(&str, &str)], &[Channel]),
        more: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let psk = Secret::generate().unwrap();
        let nodes = (0_u8..).zip(names).map(|(n, name)| {
            let ip = format!("127.0.3.{}", n + 2);
            Node::new(name, &ip, folder.path(), &psk)
        });
        let nodes = nodes.collect();
        let mut town = Self {
            _folder: folder,
            nodes,
        };
        for name in names {
            town.configure(name, links, channels);
        }
        for (name, text) in more {
            let file = town.node(name).config();
            let before = std::fs::read_to_string(&file).unwrap();
            std::fs::write(file, before + text).unwrap();
        }
        for node in &mut town.nodes {
            node.spawn(|_| {});
        }
        for name in names {
            eventually(&format!("{name} answers"), async || {
                let socket = town.node(name).socket();
                Mesh::open(socket).await.ok()?.status().await.ok()
            })
            .await;
        }
        town
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    fn configure(&self, name: &str, links: &[(&str, &str)], channels: &[Channel]) {
        let own = self.node(name);
        let mut text = own.head() + "[routing]\nenabled = true\n";
        for peer in self.nodes.iter().filter(|peer| peer.name != name) {
            let is_near =
                |&(a, b): &(&str, &str)| (a, b) == (name, peer.name) || (b, a) == (name, peer.name);
            let reach = match links.iter().any(is_near) {
                true => format!("address = \"{}\"\n", peer.listen),
                false => String::new(),
            };
            text += &format!(
                "[[peers]]\nname = \"{}\"\nnode_key = \"{}\"\nentity_key = \"{}\"\n{reach}",
                peer.name, peer.node_key, peer.entity_key
            );
        }
        for channel in channels {
            text += &channel.block();
        }
        std::fs::write(own.config(), text).unwrap();
    }

    pub(crate) async fn mesh(&self, name: &str) -> Mesh {
        Mesh::open(self.node(name).socket()).await.unwrap()
    }

    /// Runs a command at a node.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Output {
        let output = self.node(name).run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        output
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self, name: &str) {
        let node = self.nodes.iter_mut().find(|node| node.name == name);
        node.unwrap().end();
    }

    /// Waits until so many nodes are on a node's roster of a channel.
    pub(crate) async fn subscribers(&self, name: &str, channel: &str, count: usize) {
        eventually(&format!("{count} subscribers of {channel}"), async || {
            let status = self.mesh(name).await.status().await.ok()?;
            let channel = status.channels.iter().find(|c| c.name == channel)?;
            (channel.remote_subscribers == count).then_some(())
        })
        .await;
    }
}
