//! Interfaces, addresses, routes and neighbours as the kernel knows them, by netlink.
//!
//! [`Kernel::facts`] reads all of it anew; [`Changes`] says when to. Link-layer addresses of next hops
//! come from the kernel's neighbour table, which is asked to keep them resolved.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection,
    packet_core::NetlinkMessage,
    packet_route::{
        RouteNetlinkMessage,
        address::AddressAttribute,
        link::{InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkXdp},
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourState,
        },
        route::{RouteAddress, RouteAttribute, RouteProtocol, RouteVia},
    },
    sys::SocketAddr as NetlinkAddress,
};

use crate::config::{Config, Reach};

/// Changes that come together are read together.
const SETTLE: Duration = Duration::from_millis(5);
/// Marks the neighbours that nodes have the kernel keep resolved: `ip neigh` shows `proto 86`. Routing
/// daemons have other numbers (linux/rtnetlink.h).
const NEIGHBOUR_PROTOCOL: RouteProtocol = RouteProtocol::Other(86);

/// Why the kernel's state could not be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum KernelError {
    #[error("no netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    #[error("netlink, reading {0}: {1}")]
    Read(&'static str, rtnetlink::Error),
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its link-layer address; zero where it has none.
    pub mac: [u8; 6],
    /// Bytes of IP packet.
    pub mtu: u32,
    /// Whether it is up and has a carrier.
    pub is_up: bool,
    /// For a veth: the index of its peer, where the peer is in this namespace.
    pub peer_here: Option<u32>,
    /// For a VLAN device: the interface that carries its frames, and the VLAN id.
    pub vlan: Option<(u32, u16)>,
    /// Id of the XDP program on it.
    pub xdp_program: Option<u32>,
}

/// How packets get to an adjacent peer now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Egress interface.
    pub ifindex: u32,
    /// This node's address on it.
    pub source: IpAddr,
    /// The peer itself, or the gateway to it.
    pub gateway: IpAddr,
    /// Link-layer address of the gateway, where the kernel knows it.
    pub mac: Option<[u8; 6]>,
    /// Whether it stays known: the kernel keeps it resolved, or an operator has set it.
    pub is_kept: bool,
}

/// What the neighbour table says about an address.
#[derive(Clone, Copy, Debug, Default)]
struct Resolution {
    mac: Option<[u8; 6]>,
    is_managed: bool,
    is_permanent: bool,
    /// Whether a node has asked for it.
    is_ours: bool,
}

/// What the kernel knew at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Interfaces by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// This host's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Adjacent peers that have a route, by their index in [`Config::peers`].
    pub links: BTreeMap<usize, Link>,
}

impl Facts {
    /// An interface by name.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.values().find(|i| i.name == name)
    }

    /// The gateways of all links, by interface.
    #[must_use]
    pub fn gateways(&self) -> BTreeSet<(u32, IpAddr)> {
        let links = self.links.values();
        links.map(|l| (l.ifindex, l.gateway)).collect()
    }
}

/// A netlink socket.
#[derive(Clone, Debug)]
pub struct Kernel {
    handle: Handle,
}

/// Notices that something changed.
#[derive(Debug)]
pub struct Changes {
    messages: futures_channel::mpsc::UnboundedReceiver<(
        NetlinkMessage<RouteNetlinkMessage>,
        NetlinkAddress,
    )>,
}

impl Changes {
    /// Waits for a change and for those that come right after it. False when the socket is gone.
    pub async fn next(&mut self) -> bool {
        if self.messages.next().await.is_none() {
            return false;
        }
        tokio::time::sleep(SETTLE).await;
        while self.messages.try_recv().is_ok() {}
        true
    }
}

impl Kernel {
    /// Opens a socket and subscribes to changes; runs on the current tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn connect() -> Result<(Self, Changes), KernelError> {
        let (connection, handle, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        tokio::spawn(connection);
        Ok((Self { handle }, Changes { messages }))
    }

    /// Reads everything that the node's tables are made from.
    ///
    /// # Errors
    /// When the kernel refuses a request.
    pub async fn facts(&self, config: &Config) -> Result<Facts, KernelError> {
        let interfaces = self.interfaces().await?;
        let addresses = self.addresses().await?;
        let neighbours = self.neighbours().await?;
        let mut links = BTreeMap::new();
        for (index, peer) in config.peers.iter().enumerate() {
            let Reach::Adjacent { address, interface } = &peer.reach else {
                continue;
            };
            let wanted = interface.as_ref().map(|name| {
                interfaces
                    .values()
                    .find(|i| &i.name == name)
                    .map(|i| i.ifindex)
            });
            // A named interface that is not there: no link until it returns.
            let Ok(wanted) = wanted.map_or(Ok(None), |found| found.map(Some).ok_or(())) else {
                continue;
            };
            if let Some((ifindex, source, gateway)) = self.route(address.ip(), wanted).await? {
                let link = link((ifindex, source, gateway), &neighbours);
                links.insert(index, link);
            }
        }
        Ok(Facts {
            interfaces,
            addresses,
            links,
        })
    }

    /// Asks the kernel to resolve the gateways and keep them resolved (managed neighbours, since 5.16;
    /// before that, a neighbour is resolved by being used). What it refuses shows in the next facts.
    pub async fn resolve(&self, facts: &Facts) {
        for link in facts.links.values().filter(|l| !l.is_kept) {
            self.keep(link.ifindex, link.gateway, NeighbourExtFlags::Managed)
                .await;
        }
    }

    /// Leaves gateways to themselves that were kept resolved; they stay known while they are used.
    pub async fn release(&self, gateways: impl IntoIterator<Item = (u32, IpAddr)>) {
        for (ifindex, gateway) in gateways {
            self.keep(ifindex, gateway, NeighbourExtFlags::empty())
                .await;
        }
    }

    /// The same for all that nodes in this namespace had kept resolved, but for the gateways of `facts`.
    /// Another node that runs here asks for its own again.
    ///
    /// # Errors
    /// When the neighbours cannot be read.
    pub async fn release_others(&self, facts: &Facts) -> Result<(), KernelError> {
        let wanted = facts.gateways();
        let mut others = self.neighbours().await?;
        others.retain(|gateway, known| {
            known.is_ours && known.is_managed && !wanted.contains(gateway)
        });
        self.release(others.into_keys()).await;
        Ok(())
    }

    async fn keep(&self, ifindex: u32, gateway: IpAddr, how: NeighbourExtFlags) {
        let mut request = self
            .handle
            .neighbours()
            .add(ifindex, gateway)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        request.message_mut().attributes.extend([
            NeighbourAttribute::ExtFlags(how),
            NeighbourAttribute::Protocol(NEIGHBOUR_PROTOCOL),
        ]);
        if let Err(error) = request.execute().await {
            tracing::debug!(%gateway, %error, "neighbour neither kept resolved nor released");
        }
    }

    /// How packets get to an address now, and through which interface; `None` where there is no route.
    ///
    /// # Errors
    /// When the kernel refuses a request.
    pub async fn link_to(&self, target: IpAddr) -> Result<Option<(Interface, Link)>, KernelError> {
        let Some(route) = self.route(target, None).await? else {
            return Ok(None);
        };
        let link = link(route, &self.neighbours().await?);
        let interface = self.interfaces().await?.remove(&link.ifindex);
        Ok(interface.map(|interface| (interface, link)))
    }

    async fn interfaces(&self) -> Result<BTreeMap<u32, Interface>, KernelError> {
        let failed = |e| KernelError::Read("interfaces", e);
        let mut all = BTreeMap::new();
        let mut dump = self.handle.link().get().execute();
        while let Some(message) = dump.try_next().await.map_err(failed)? {
            let mut interface = Interface {
                name: String::new(),
                ifindex: message.header.index,
                mac: [0; 6],
                mtu: 0,
                is_up: message
                    .header
                    .flags
                    .contains(LinkFlags::Up | LinkFlags::LowerUp),
                peer_here: None,
                vlan: None,
                xdp_program: None,
            };
            let (mut below, mut is_elsewhere) = (None, false);
            let (mut is_veth, mut vlan_id) = (false, None);
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => interface.name = name,
                    LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                    LinkAttribute::Address(mac) => interface.mac = six(&mac).unwrap_or_default(),
                    LinkAttribute::Link(index) => below = Some(index),
                    LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
                    LinkAttribute::LinkInfo(info) => {
                        is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
                        vlan_id = info.iter().find_map(vlan_id_of);
                    }
                    LinkAttribute::Xdp(xdp) => {
                        interface.xdp_program = xdp.iter().find_map(|x| match x {
                            LinkXdp::ProgId(id) => Some(*id),
                            _ => None,
                        });
                    }
                    _ => {}
                }
            }
            let below_here = below.filter(|_| !is_elsewhere);
            interface.peer_here = below_here.filter(|_| is_veth);
            interface.vlan = below_here.zip(vlan_id);
            all.insert(interface.ifindex, interface);
        }
        Ok(all)
    }

    async fn addresses(&self) -> Result<BTreeSet<IpAddr>, KernelError> {
        let failed = |e| KernelError::Read("addresses", e);
        let mut all = BTreeSet::new();
        let mut dump = self.handle.address().get().execute();
        while let Some(message) = dump.try_next().await.map_err(failed)? {
            // On a point-to-point link `Address` is the peer's and `Local` this host's.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let address = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            all.extend(local.or(address));
        }
        Ok(all)
    }

    async fn neighbours(&self) -> Result<BTreeMap<(u32, IpAddr), Resolution>, KernelError> {
        let failed = |e| KernelError::Read("neighbours", e);
        let mut all = BTreeMap::new();
        let mut dump = self.handle.neighbours().get().execute();
        while let Some(message) = dump.try_next().await.map_err(failed)? {
            let is_valid = !matches!(
                message.header.state,
                NeighbourState::None | NeighbourState::Incomplete | NeighbourState::Failed
            );
            let (mut ip, mut mac) = (None, None);
            let (mut is_managed, mut is_ours) = (false, false);
            for attribute in &message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                        ip = Some(IpAddr::V4(*v4));
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                        ip = Some(IpAddr::V6(*v6));
                    }
                    NeighbourAttribute::LinkLayerAddress(bytes) => mac = six(bytes),
                    NeighbourAttribute::ExtFlags(flags) => {
                        is_managed = flags.contains(NeighbourExtFlags::Managed);
                    }
                    NeighbourAttribute::Protocol(by) => is_ours = *by == NEIGHBOUR_PROTOCOL,
                    _ => {}
                }
            }
            if let Some(ip) = ip {
                let resolution = Resolution {
                    mac: mac.filter(|_| is_valid),
                    is_managed,
                    is_permanent: message.header.state == NeighbourState::Permanent,
                    is_ours,
                };
                all.insert((message.header.ifindex, ip), resolution);
            }
        }
        Ok(all)
    }

    /// Egress interface, own address and gateway towards `target`; `None` where there is no route.
    async fn route(
        &self,
        target: IpAddr,
        wanted: Option<u32>,
    ) -> Result<Option<(u32, IpAddr, IpAddr)>, KernelError> {
        let mut request = match target {
            IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        request.attributes.extend(wanted.map(RouteAttribute::Oif));
        let answer = match self.handle.route().get(request).execute().try_next().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(None),
            Err(error) if is_unroutable(&error) => return Ok(None),
            Err(error) => return Err(KernelError::Read("routes", error)),
        };
        let (mut ifindex, mut source, mut gateway) = (None, None, target);
        for attribute in &answer.attributes {
            match attribute {
                RouteAttribute::Oif(index) => ifindex = Some(*index),
                RouteAttribute::PrefSource(address) => source = ip(address),
                RouteAttribute::Gateway(address) => gateway = ip(address).unwrap_or(target),
                // An IPv4 route over an IPv6 gateway (RFC 5549).
                RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = IpAddr::V6(*address),
                _ => {}
            }
        }
        let found = ifindex.zip(source);
        Ok(found.map(|(ifindex, source)| (ifindex, source, gateway)))
    }
}

/// A route, with what the neighbour table says about its gateway.
fn link(
    (ifindex, source, gateway): (u32, IpAddr, IpAddr),
    neighbours: &BTreeMap<(u32, IpAddr), Resolution>,
) -> Link {
    let known = neighbours.get(&(ifindex, gateway)).copied();
    let known = known.unwrap_or_default();
    Link {
        ifindex,
        source,
        gateway,
        mac: known.mac,
        is_kept: known.is_managed || known.is_permanent,
    }
}

/// Leaves the neighbours to themselves that nodes in this namespace had the kernel keep resolved.
///
/// # Errors
/// When the kernel gives no netlink socket, or its neighbours cannot be read.
pub async fn release_all() -> Result<(), KernelError> {
    let (kernel, _changes) = Kernel::connect()?;
    kernel.release_others(&Facts::default()).await
}

/// Whether the kernel says that there is no way, rather than that it could not answer.
fn is_unroutable(error: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = error else {
        return false;
    };
    let no_way = [
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::ENETDOWN,
        libc::ENODEV,
        libc::EINVAL,
        libc::EACCES,
    ];
    no_way.contains(&-message.raw_code())
}

fn vlan_id_of(info: &LinkInfo) -> Option<u16> {
    let LinkInfo::Data(InfoData::Vlan(attributes)) = info else {
        return None;
    };
    attributes.iter().find_map(|attribute| match attribute {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn six(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}
