//! What a network driver says of itself: the `SIOCETHTOOL` requests that only read.

use std::{
    ffi::CStr,
    io, mem,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd as _},
};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const SIOCGIFHWADDR: libc::c_ulong = 0x8927;
const GDRVINFO: u32 = 0x03;
const GCOALESCE: u32 = 0x0e;
const GRINGPARAM: u32 = 0x10;
const GSTRINGS: u32 = 0x1b;
const GRXFH: u32 = 0x29;
const GRXCLSRLCNT: u32 = 0x2e;
const GRXCLSRLALL: u32 = 0x30;
const GSSET_INFO: u32 = 0x37;
const GRXFHINDIR: u32 = 0x38;
const GFEATURES: u32 = 0x3a;
const GCHANNELS: u32 = 0x3c;
/// Number of the set of strings that names the features.
const SET_FEATURES: u32 = 4;
/// Words of the largest fixed structure, `ethtool_drvinfo`.
const DRVINFO_WORDS: usize = 49;
/// Words of `ethtool_channels`.
const CHANNELS_WORDS: usize = 9;
/// Words of `ethtool_ringparam`.
const RINGPARAM_WORDS: usize = 9;
/// Words of `ethtool_coalesce`.
const COALESCE_WORDS: usize = 23;
/// Words of `ethtool_rxnfc`, with room to spare.
const RXNFC_WORDS: usize = 64;
/// Word of `ethtool_rxnfc` that counts rules; their numbers follow.
const RXNFC_RULES_AT: usize = 46;
/// More steering rules than this no card has.
const RULES_MAX: u32 = 65_536;
/// More entries than this no card's indirection table has.
const INDIRECTION_MAX: u32 = 65_536;
/// Words of `ethtool_sset_info` with one count.
const SSET_INFO_WORDS: usize = 5;
const NAME_BYTES: usize = 32;
/// More features than this no kernel has; about 70 are known.
const FEATURES_MAX: usize = 1_024;

/// How many queues of which kind there are and may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Channels {
    /// Receive queues of their own.
    pub rx: u32,
    /// Send queues of their own.
    pub tx: u32,
    /// Queues that do both.
    pub combined: u32,
    /// How many `rx` may be.
    pub rx_max: u32,
    /// How many `tx` may be.
    pub tx_max: u32,
    /// How many `combined` may be.
    pub combined_max: u32,
}

/// How many frames the rings hold and may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rings {
    pub(crate) rx: u32,
    pub(crate) tx: u32,
    pub(crate) rx_max: u32,
    pub(crate) tx_max: u32,
}

/// When a received frame raises an interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coalesce {
    pub(crate) rx_usecs: u32,
    pub(crate) is_adaptive_rx: bool,
}

/// A feature of `ethtool -k`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    pub(crate) name: String,
    pub(crate) is_active: bool,
    /// Not `[fixed]`.
    pub(crate) is_changeable: bool,
}

/// UDP over which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Flow {
    /// IPv4.
    Udp4,
    /// IPv6.
    Udp6,
}

/// Asks about one interface.
pub(crate) struct Ethtool {
    socket: UdpSocket,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Ethtool {
    /// Needs an open socket of any kind, and no privilege.
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
        let mut name = [0; libc::IFNAMSIZ];
        if interface.len() >= name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        Ok(Self { socket, name })
    }

    /// The driver's name, such as `ice` or `veth`.
    pub(crate) fn driver(&self) -> io::Result<String> {
        let mut words = [0; DRVINFO_WORDS];
        words[0] = GDRVINFO;
        self.request(&mut words)?;
        let bytes: Vec<u8> = words[1..=NAME_BYTES / 4]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        Ok(text(&bytes))
    }

    /// How many queues there are; an error where the driver cannot say.
    pub(crate) fn channels(&self) -> io::Result<Channels> {
        let mut words = [0; CHANNELS_WORDS];
        words[0] = GCHANNELS;
        self.request(&mut words)?;
        let [_, rx_max, tx_max, _, combined_max, rx, tx, _, combined] = words;
        Ok(Channels {
            rx,
            tx,
            combined,
            rx_max,
            tx_max,
            combined_max,
        })
    }

    /// How large the rings are; an error where the driver cannot say.
    pub(crate) fn rings(&self) -> io::Result<Rings> {
        let mut words = [0; RINGPARAM_WORDS];
        words[0] = GRINGPARAM;
        self.request(&mut words)?;
        let [_, rx_max, _, _, tx_max, rx, _, _, tx] = words;
        Ok(Rings {
            rx,
            tx,
            rx_max,
            tx_max,
        })
    }

    /// How interrupts are coalesced; an error where the driver cannot say.
    pub(crate) fn coalesce(&self) -> io::Result<Coalesce> {
        let mut words = [0; COALESCE_WORDS];
        words[0] = GCOALESCE;
        self.request(&mut words)?;
        Ok(Coalesce {
            rx_usecs: words[1],
            is_adaptive_rx: words[10] != 0,
        })
    }

    /// The queue of each entry of the indirection table; an error where the card has none.
    pub(crate) fn indirection(&self) -> io::Result<Vec<u32>> {
        let mut words = vec![GRXFHINDIR, 0];
        self.request(&mut words)?;
        let size = words[1];
        if size > INDIRECTION_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let entries = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut words = vec![0; 2 + entries];
        words[..2].copy_from_slice(&[GRXFHINDIR, size]);
        self.request(&mut words)?;
        Ok(words.split_off(2))
    }

    /// The letters of `ethtool -N … rx-flow-hash`: which fields a flow is hashed by.
    pub(crate) fn flow_hash(&self, flow: Flow) -> io::Result<String> {
        const LETTERS: [(u32, char); 8] = [
            (1, 'm'),
            (2, 'v'),
            (3, 't'),
            (4, 's'),
            (5, 'd'),
            (6, 'f'),
            (7, 'n'),
            (31, 'r'),
        ];
        let mut words = [0; RXNFC_WORDS];
        words[0] = GRXFH;
        words[1] = match flow {
            Flow::Udp4 => 0x02,
            Flow::Udp6 => 0x06,
        };
        self.request(&mut words)?;
        // A field of 64 bits, of which the first 32 are used.
        let [a, b] = [words[2].to_ne_bytes(), words[3].to_ne_bytes()];
        let fields = u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]);
        let letters = LETTERS.iter().filter(|(bit, _)| fields >> bit & 1 == 1);
        Ok(letters.map(|(_, letter)| *letter).collect())
    }

    /// Numbers of the steering rules; an error where the card has no such rules.
    pub(crate) fn rules(&self) -> io::Result<Vec<u32>> {
        let mut words = vec![0; RXNFC_WORDS];
        words[0] = GRXCLSRLCNT;
        self.request(&mut words)?;
        let count = words[RXNFC_RULES_AT];
        if count > RULES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let most = usize::try_from(count).map_err(|_| io::ErrorKind::InvalidData)?;
        let mut words = vec![0; RXNFC_WORDS + most];
        words[0] = GRXCLSRLALL;
        words[RXNFC_RULES_AT] = count;
        self.request(&mut words)?;
        let now = usize::try_from(words[RXNFC_RULES_AT]).map_err(|_| io::ErrorKind::InvalidData)?;
        let numbers = words.get(RXNFC_RULES_AT + 1..RXNFC_RULES_AT + 1 + now.min(most));
        Ok(numbers.unwrap_or_default().to_vec())
    }

    /// The link-layer address.
    pub(crate) fn address(&self) -> io::Result<[u8; 6]> {
        // SAFETY: an all-zero `ifreq` is a valid one: integers, and a pointer that may be null.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        request.ifr_name = self.name;
        let socket = self.socket.as_fd().as_raw_fd();
        // SAFETY: the socket is open; `request` lives through the call and its name ends in a zero.
        if unsafe { libc::ioctl(socket, SIOCGIFHWADDR, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has written the address into this field of the union; it is all integers.
        let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
        Ok(std::array::from_fn(|i| data[i].to_ne_bytes()[0]))
    }

    /// The names of the features that are active, as `ethtool -k` names them in the kernel:
    /// `rx-lro`, `tx-checksum-ip-generic`.
    pub(crate) fn features(&self) -> io::Result<Vec<String>> {
        let active = self.feature_list()?.into_iter().filter(|f| f.is_active);
        Ok(active.map(|feature| feature.name).collect())
    }

    /// All features.
    pub(crate) fn feature_list(&self) -> io::Result<Vec<Feature>> {
        let names = self.feature_names()?;
        let blocks = names.len().div_ceil(32);
        // Each block: available, requested, active, never changed.
        let mut words = vec![0; 2 + 4 * blocks];
        words[0] = GFEATURES;
        words[1] = u32::try_from(blocks).map_err(|_| io::ErrorKind::InvalidData)?;
        self.request(&mut words)?;
        let bit =
            |index: usize, word: usize| words[2 + index / 32 * 4 + word] >> (index % 32) & 1 == 1;
        let list = names.into_iter().enumerate().map(|(index, name)| Feature {
            name,
            is_active: bit(index, 2),
            is_changeable: bit(index, 0) && !bit(index, 3),
        });
        Ok(list.filter(|feature| !feature.name.is_empty()).collect())
    }

    fn feature_names(&self) -> io::Result<Vec<String>> {
        let mut words = [0; SSET_INFO_WORDS];
        words[0] = GSSET_INFO;
        // The mask is 64 bits wide: 4 is in the half that comes first in memory or second.
        let mask = (1_u64 << SET_FEATURES).to_ne_bytes();
        words[2] = u32::from_ne_bytes([mask[0], mask[1], mask[2], mask[3]]);
        words[3] = u32::from_ne_bytes([mask[4], mask[5], mask[6], mask[7]]);
        self.request(&mut words)?;
        let count = usize::try_from(words[4]).unwrap_or(usize::MAX);
        if count > FEATURES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // Room for more than was announced: the kernel writes all it has.
        let mut words = vec![0; 3 + FEATURES_MAX * NAME_BYTES / 4];
        words[0] = GSTRINGS;
        words[1] = SET_FEATURES;
        words[2] = u32::try_from(count).map_err(|_| io::ErrorKind::InvalidData)?;
        self.request(&mut words)?;
        let bytes: Vec<u8> = words[3..]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        Ok(bytes
            .chunks_exact(NAME_BYTES)
            .take(count)
            .map(text)
            .collect())
    }

    /// Lets the kernel answer into `words`, whose first is the request's number.
    ///
    /// Callers give each request the room that its structure has: that is what keeps the kernel's
    /// writes inside `words`.
    fn request(&self, words: &mut [u32]) -> io::Result<()> {
        // SAFETY: an all-zero `ifreq` is a valid one: integers, and a pointer that may be null.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        request.ifr_name = self.name;
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        let socket = self.socket.as_fd().as_raw_fd();
        // SAFETY: the socket is open; `request` lives through the call and its name ends in a zero;
        // its data points to `words`, writable, aligned to 4 as the structures need from the kernel's
        // copying side, and as long as the structure of the request in `words[0]` (each caller).
        let result = unsafe { libc::ioctl(socket, SIOCETHTOOL, &raw mut request) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// A zero-terminated text in a field of fixed size.
fn text(field: &[u8]) -> String {
    let text = CStr::from_bytes_until_nul(field).map_or(field, CStr::to_bytes);
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_features_and_a_missing_interface_is_an_error() {
        let features = Ethtool::open("lo").unwrap().features().unwrap();
        assert!(
            features.iter().any(|name| name == "loopback"),
            "{features:?}"
        );
        assert_eq!(Ethtool::open("lo").unwrap().address().unwrap(), [0; 6]);
        let missing = Ethtool::open("virga-none").unwrap();
        assert!(missing.address().is_err() && missing.rings().is_err());
        assert!(missing.rules().is_err() && Ethtool::open("lo").unwrap().rules().is_err());
        assert_eq!(
            missing.driver().unwrap_err().raw_os_error(),
            Some(libc::ENODEV)
        );
        assert!(Ethtool::open("a-name-of-sixteen").is_err());
    }
}
