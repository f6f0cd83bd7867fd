//! What a network driver says of itself: the `SIOCETHTOOL` requests that only read.

use std::{
    ffi::CStr,
    io, mem,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd as _},
};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GDRVINFO: u32 = 0x03;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const GCHANNELS: u32 = 0x3c;
/// Number of the set of strings that names the features.
const SET_FEATURES: u32 = 4;
/// Words of the largest fixed structure, `ethtool_drvinfo`.
const DRVINFO_WORDS: usize = 49;
/// Words of `ethtool_channels`.
const CHANNELS_WORDS: usize = 9;
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

    /// The names of the features that are active, as `ethtool -k` names them in the kernel:
    /// `rx-lro`, `tx-checksum-ip-generic`.
    pub(crate) fn features(&self) -> io::Result<Vec<String>> {
        let names = self.feature_names()?;
        let blocks = names.len().div_ceil(32);
        // Each block: available, requested, active, never changed.
        let mut words = vec![0; 2 + 4 * blocks];
        words[0] = GFEATURES;
        words[1] = u32::try_from(blocks).map_err(|_| io::ErrorKind::InvalidData)?;
        self.request(&mut words)?;
        let is_active = |index: usize| words[2 + index / 32 * 4 + 2] >> (index % 32) & 1 == 1;
        let active = names
            .into_iter()
            .enumerate()
            .filter(|(index, _)| is_active(*index));
        Ok(active
            .map(|(_, name)| name)
            .filter(|name| !name.is_empty())
            .collect())
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
        let missing = Ethtool::open("virga-none").unwrap();
        assert_eq!(
            missing.driver().unwrap_err().raw_os_error(),
            Some(libc::ENODEV)
        );
        assert!(Ethtool::open("a-name-of-sixteen").is_err());
    }
}
