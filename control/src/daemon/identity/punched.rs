//! Peers that are sent to straight through their NATs: neighbours for as long as that works, in the same sessions.

use super::{Registry, locked};
use crate::{config::Config, dispatch::Ended};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use virga_ebpf::header::NodeId;

impl Registry {
    /// These peers are neighbours at these addresses from now on, beside those that the file names and those that were
    /// found. No session ends by it.
    pub(in crate::daemon) async fn set_punched(
        &self,
        punched: BTreeMap<NodeId, SocketAddr>,
    ) -> Result<(), Ended> {
        let mut state = self.0.state.lock().await;
        *locked(&self.0.punched) = punched;
        let (before, next) = (self.configured(), self.with_all_found(&self.filed()));
        if before.peers == next.peers {
            return Ok(());
        }
        let none = std::collections::BTreeSet::new();
        self.log(self.change(&mut state, &next, &none).await)
    }

    /// What a file says, with the nodes that were found.
    pub(super) fn with_found(&self, filed: &Config) -> Config {
        filed.with_found(&locked(&self.0.found))
    }

    /// The same with the ways through NATs that there are.
    pub(super) fn with_all_found(&self, filed: &Config) -> Arc<Config> {
        let found = self.with_found(filed);
        Arc::new(found.with_punched(&locked(&self.0.punched)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::others;
    use crate::{
        config::Config,
        hex,
        keys::{EntityKey, Keys, NodeKey, Secret},
    };
    use std::path::Path;
    use virga_discovery::Adopted;

    fn node(number: u8) -> NodeKey {
        Secret::new([number; 32]).into()
    }

    fn entity(number: u8) -> EntityKey {
        Secret::new([100 + number; 32]).into()
    }

    #[test]
    fn a_node_that_is_found_where_a_peer_was_punched_through_to_takes_its_place_and_not_its_session()
     {
        let keys = [&node(2).public, &entity(2).public].map(hex::encode);
        let text = format!(
            "[node]\nname = \"n1\"\nnetwork = \"test\"\nnode_key_file = \"n\"\nentity_key_file = \"e\"\n\
             psk_file = \"p\"\nlisten = \"10.0.0.1:4783\"\n[routing]\nenabled = true\n[nat]\nenabled = true\n\
             [discovery]\n[[peers]]\nname = \"far\"\nnode_key = \"{}\"\nentity_key = \"{}\"\n",
            keys[0], keys[1]
        );
        let keys = Keys {
            node: node(1),
            entity: entity(1),
            psk: Secret::new([9; 32]),
        };
        let filed = Config::from_toml(&text, Path::new("/nowhere/n.toml"), keys).unwrap();
        let far = filed.peers[0].id;
        let address = "192.0.2.9:4783".parse().unwrap();
        let found = Adopted {
            node: virga_transport::PeerKey::from(node(3).public).id(),
            node_key: node(3).public,
            entity_key: entity(3).public,
            name: "n3".into(),
            address,
            subnet: virga_ebpf::header::Subnet(0),
        };
        let punched = [(far, address)].into();
        let before = filed.with_found(&[]);
        let now = filed.with_found(&[found]);
        assert!(before.with_punched(&punched).punched.contains_key(&far));
        assert!(!now.with_punched(&punched).punched.contains_key(&far));
        // Whom sessions are ended with is a matter of what is there beside the ways through NATs.
        assert_eq!(others(&before, &now), ["n3".to_owned()].into());
    }
}
