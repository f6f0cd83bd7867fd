//! Which drivers run XDP programs natively: for kernels before 6.3, which do not say.

/// Names as `ethtool -i` prints them (kernel 6.12's `ndo_bpf` users).
const NATIVE: [&str; 44] = [
    "am65-cpsw-nuss",
    "atlantic",
    "bnxt_en",
    "bonding",
    "cpsw",
    "dpaa_eth",
    "dpaa2-eth",
    "ena",
    "fec",
    "fsl_dpaa2_eth",
    "fsl_enetc",
    "fsl_enetc_vf",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "icssg-prueth",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "lan966x-switch",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mtk_soc_eth",
    "mvneta",
    "mvpp2",
    "netdevsim",
    "netsec",
    "nfp",
    "nicvf",
    "qede",
    "rvu-nicpf",
    "rvu_nicpf",
    "rvu-nicvf",
    "sfc",
    "st_gmac",
    "stmmac",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
];

/// Whether a driver runs XDP programs natively; `None` for one that is not in the table.
#[must_use]
pub fn is_native(driver: &str) -> Option<bool> {
    const GENERIC_ONLY: [&str; 12] = [
        "802.1Q VLAN Support",
        "bridge",
        "dummy",
        "e1000",
        "e1000e",
        "ifb",
        "ipvlan",
        "macvlan",
        "r8169",
        "tg3",
        "vxlan",
        "wireguard",
    ];
    if NATIVE.contains(&driver) {
        return Some(true);
    }
    GENERIC_ONLY.contains(&driver).then_some(false)
}

/// What a driver wants of its queues before it takes a program or a redirected frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRule {
    /// A send queue for each CPU that redirects; it shares or refuses otherwise.
    OnePerCpu,
    /// At most half of what the card has: the other half is for redirected frames.
    AtMostHalf,
    /// One spare a CPU for redirected frames; without, send queues are shared under a lock.
    SparePerCpu,
    /// Nothing special.
    Any,
}

/// The rule of a driver.
#[must_use]
pub fn queue_rule(driver: &str) -> QueueRule {
    match driver {
        "i40e" | "ice" | "ixgbe" => QueueRule::OnePerCpu,
        "virtio_net" => QueueRule::SparePerCpu,
        "ena" => QueueRule::AtMostHalf,
        _ => QueueRule::Any,
    }
}
