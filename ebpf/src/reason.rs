//! Why a packet is dropped, and what is counted.
//!
//! A reason's number is its counter's place in the NIC path's map and never changes its meaning; its
//! name is its label everywhere: NIC, CLI, metrics.

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident = $number:literal, $label:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$item_doc])* $item = $number,)*
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$item,)*];

            /// The label used by counters, CLI and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$item => $label,)*
                }
            }
        }
    };
}

numbered! {
    /// Why the NIC path refuses a packet. One to nine: the packet is malformed.
    Reason {
        /// First two bytes are not [`crate::header::MAGIC`].
        Magic = 1, "magic";
        /// Not [`crate::header::VERSION`].
        Version = 2, "version";
        /// Priority above 7.
        Priority = 3, "priority";
        /// `payload_len`, UDP length and IP length disagree.
        Length = 4, "length";
        /// Too short for a mesh header, or shorter than its IP length says.
        Truncated = 5, "truncated";
        /// IPv4 options before our port.
        IpOptions = 6, "ip_options";
        /// First fragment of a packet for our port.
        IpFragment = 7, "ip_fragment";
        /// IPv6 extension headers before our port.
        Ipv6Extension = 8, "ipv6_extension";
        /// UDP checksum 0: forwarders update checksums and cannot update none.
        ZeroChecksum = 9, "zero_checksum";
        /// Not from a known neighbour, and not for this node.
        Neighbour = 10, "neighbour";
        /// The header's subnet lies outside the ingress link's.
        Subnet = 11, "subnet";
        /// The guard or the exact set does not hold (origin, channel).
        Unauthorised = 12, "unauthorised";
        /// Above the channel's rate.
        Rate = 13, "rate";
        /// Above the neighbour's rate of transit handshakes.
        HandshakeRate = 14, "handshake_rate";
        /// Hop limit used up.
        HopLimit = 15, "hop_limit";
        /// No route to the destination.
        NoRoute = 16, "no_route";
        /// Neither primary nor backup next hop is alive.
        NextHopDown = 17, "next_hop_down";
        /// Larger than the next hop's MTU.
        TooBig = 18, "too_big";
        /// Forwarded already within the last second.
        Duplicate = 19, "duplicate";
        /// From a neighbour whose packets carry link tags, without the right one.
        LinkTag = 20, "link_tag";
        /// The channel does not go from the sender's subnet to the destination's.
        Visibility = 21, "visibility";
        /// No valid filter of the destination's subnet is known.
        SubnetUnknown = 22, "subnet_unknown";
        /// Says that it is an echo that this node sent, and is none, or came before.
        Echo = 23, "echo";
    }
}

impl Reason {
    /// Whether the packet itself is at fault, whoever sent it.
    #[must_use]
    pub const fn is_malformed(self) -> bool {
        (self as u8) <= Self::ZeroChecksum as u8
    }
}

numbered! {
    /// What became of a packet that was not dropped for a [`Reason`].
    Outcome {
        /// Not ours: handed to the kernel's stack.
        Pass = 0, "pass";
        /// For this node, through the kernel's stack.
        Local = 1, "local";
        /// Sent on through another interface.
        Redirect = 2, "redirect";
        /// Sent on through the interface it came from.
        Transmit = 3, "transmit";
        /// The program could not finish: a fault of this node.
        Aborted = 4, "aborted";
        /// For this node, handed to the AF_XDP socket of the queue that it came in by.
        Xsk = 5, "xsk";
        /// An echo that came back from the neighbour that it was sent to: noted.
        Echo = 6, "echo";
    }
}

/// Place of the first [`Reason`] in the counters: reason `r` counts at `REASONS_FROM + r`.
pub const REASONS_FROM: u32 = 16;
/// Counters in the map.
pub const COUNTERS: u32 = 64;

const _: () = assert!(Outcome::ALL.len() <= REASONS_FROM as usize);
const _: () = assert!(REASONS_FROM as usize + Reason::ALL.len() < COUNTERS as usize);

/// One counter of the NIC path, per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the frames as they arrived (of the UDP payloads, in user space).
    pub bytes: u64,
}

impl Outcome {
    /// Place of this outcome's counter.
    #[must_use]
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        self as u32
    }
}

impl Reason {
    /// Place of this reason's counter.
    #[must_use]
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        REASONS_FROM + self as u32
    }
}
