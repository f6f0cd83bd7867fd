//! What is known of network drivers and XDP: the profiles in `hw/nics/`, every fact with its source.
//!
//! A profile is read strictly: a field that is misspelt, a fact without a source or a value outside its
//! list is an error. What has no source is the word `unknown`.

mod files;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};
use std::{fmt, marker::PhantomData, sync::OnceLock};

/// One driver.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Its name, as `ethtool -i` prints it.
    pub driver: String,
    /// Other names that it has in sysfs or in other kernels.
    #[serde(default)]
    pub names: Vec<String>,
    /// Since when it runs programs natively.
    pub native: Fact<Since>,
    /// When it takes frames that were redirected to it.
    pub target: Fact<Target>,
    /// What redirecting to it wants of its queues.
    pub queues: Fact<Queues>,
    /// The largest MTU that it takes a program with, without fragments.
    pub mtu_max: Fact<MtuMax>,
    /// Since when programs see packets in several buffers.
    pub fragments: Fact<Since>,
    /// Since when AF_XDP works without a copy.
    pub zero_copy: Fact<Since>,
    /// What becomes of merged packets when a program is attached.
    pub lro: Fact<Lro>,
    /// Whether the card takes VLAN tags off before a program sees the frame.
    pub vlan_strip: Fact<VlanStrip>,
    /// What goes wrong beyond that.
    #[serde(default)]
    pub pitfalls: Vec<Pitfall>,
}

/// A fact: unknown, or a value with its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact<T> {
    /// Nobody has a source.
    Unknown,
    /// It has one.
    Known(Known<T>),
}

/// A value, and where it was read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known<T> {
    /// The value.
    pub value: T,
    /// Kernel source file and function, commit, or address.
    pub source: Source,
    /// What the value alone does not say.
    pub note: Option<String>,
}

impl<T> Fact<T> {
    /// The value, if there is one.
    #[must_use]
    pub const fn value(&self) -> Option<&T> {
        match self {
            Self::Unknown => None,
            Self::Known(known) => Some(&known.value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Fact<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FactVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for FactVisitor<T> {
            type Value = Fact<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the word unknown, or a table of value, source and note")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<Fact<T>, E> {
                match word {
                    "unknown" => Ok(Fact::Unknown),
                    _ => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Fact<T>, A::Error> {
                Known::deserialize(MapAccessDeserializer::new(map)).map(Fact::Known)
            }
        }
        deserializer.deserialize_any(FactVisitor(PhantomData))
    }
}

/// Where a fact was read: `Linux RELEASE, FILE FUNCTION`, `commit HASH`, or an `https` address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Source(String);

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Source {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        /// Digits of a shortened commit hash at the least.
        const HASH_DIGITS_MIN: usize = 7;
        let is_kernel = text.strip_prefix("Linux ").is_some_and(|rest| {
            let (release, file) = rest.split_once(", ").unwrap_or_default();
            Kernel::of_release(release).is_some() && file.contains('/')
        });
        let is_commit = text.strip_prefix("commit ").is_some_and(|rest| {
            let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
            digits >= HASH_DIGITS_MIN
        });
        if is_kernel || is_commit || text.starts_with("https://") {
            return Ok(Self(text));
        }
        Err(format!(
            "source \"{text}\": begin with `Linux RELEASE, FILE`, `commit HASH` or `https://`"
        ))
    }
}

/// Major and minor number of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(pub u32, pub u32);

impl Kernel {
    /// That of a release such as `6.1.0-25-amd64`.
    #[must_use]
    pub fn of_release(release: &str) -> Option<Self> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        Some(Self(
            parts.next()?.parse().ok()?,
            parts.next()?.parse().ok()?,
        ))
    }

    /// The one that runs.
    #[must_use]
    pub fn running() -> Option<Self> {
        Self::of_release(&rustix::system::uname().release().to_string_lossy())
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// From which kernel on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Since {
    /// Not in the kernels that were read.
    Never,
    /// From this one on.
    Kernel(Kernel),
}

impl Since {
    /// Whether a kernel has it.
    #[must_use]
    pub fn is_in(self, kernel: Kernel) -> bool {
        matches!(self, Self::Kernel(since) if kernel >= since)
    }
}

impl TryFrom<String> for Since {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "never" => Ok(Self::Never),
            text => match Kernel::of_release(text) {
                Some(kernel) if kernel.to_string() == text => Ok(Self::Kernel(kernel)),
                _ => Err(format!(
                    "\"{text}\" is no kernel such as 6.1, and not never"
                )),
            },
        }
    }
}

/// When a driver takes redirected frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Whether or not it has a program.
    Always,
    /// While it has a program of its own.
    WithProgram,
    /// While its other end has a program or GRO on.
    PeerReady,
    /// When every port of it does.
    AsPorts,
    /// It has no such function.
    Never,
}

/// What redirecting to a driver wants of its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Queues {
    /// One for each CPU: frames from a CPU without one are lost.
    OnePerCpu,
    /// Nothing: it makes its own, one a CPU.
    OwnPerCpu,
    /// At most half of what the card has: the other half is for redirected frames.
    AtMostHalf,
    /// One spare a CPU; without, send queues are shared under a lock.
    SparePerCpu,
    /// Any number: CPUs share them under a lock.
    Shared,
    /// No fewer receive queues than the other end has send queues.
    PeerSends,
}

/// The largest MTU with a program and without fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtuMax {
    /// The driver looks at something else, or at nothing.
    Unchecked,
    /// So many bytes.
    Bytes(u32),
    /// A page less so many.
    PageMinus(u32),
}

impl MtuMax {
    /// Bytes, where pages are that large.
    #[must_use]
    pub const fn bytes(self, page_bytes: u32) -> Option<u32> {
        match self {
            Self::Unchecked => None,
            Self::Bytes(bytes) => Some(bytes),
            Self::PageMinus(bytes) => Some(page_bytes.saturating_sub(bytes)),
        }
    }
}

impl<'de> Deserialize<'de> for MtuMax {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MtuVisitor;
        impl Visitor<'_> for MtuVisitor {
            type Value = MtuMax;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, `page - N`, or unchecked")
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<MtuMax, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Signed(bytes), &self);
                u32::try_from(bytes).map(MtuMax::Bytes).map_err(wrong)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MtuMax, E> {
                let less = text.strip_prefix("page - ").and_then(|n| n.parse().ok());
                match (text, less) {
                    ("unchecked", _) => Ok(MtuMax::Unchecked),
                    (_, Some(less)) => Ok(MtuMax::PageMinus(less)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(MtuVisitor)
    }
}

/// What becomes of large receive offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lro {
    /// A program is refused while it is on.
    Refused,
    /// The driver turns it off when a program comes.
    TurnedOff,
    /// The driver has none.
    None,
}

/// Whether VLAN tags are taken off frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VlanStrip {
    /// Unless switched off.
    On,
    /// Only when switched on.
    Off,
    /// The driver cannot.
    None,
}

/// A known pitfall.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pitfall {
    /// When it is met.
    pub touches: Touches,
    /// What happens.
    pub what: String,
    /// What to do.
    pub avoid: String,
    /// The oldest of the kernels read that is free of it; `never` where it is meant so.
    pub fixed_in: Since,
    /// Where it was read.
    pub source: Source,
}

/// When a pitfall is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Touches {
    /// When a program is attached or taken off.
    Attach,
    /// When frames are redirected.
    Redirect,
    /// With AF_XDP sockets that do not copy.
    ZeroCopy,
}

/// Reads one profile.
///
/// # Errors
/// What is wrong with it, and where.
pub fn parse(text: &str) -> Result<Profile, toml::de::Error> {
    toml::from_str(text)
}

/// All profiles.
#[must_use]
pub fn profiles() -> &'static [Profile] {
    static PROFILES: OnceLock<Vec<Profile>> = OnceLock::new();
    // A test reads each of them: none is left out.
    PROFILES.get_or_init(|| files::FILES.iter().filter_map(|t| parse(t).ok()).collect())
}

/// The profile of a driver, by any of its names.
#[must_use]
pub fn profile(driver: &str) -> Option<&'static Profile> {
    profiles()
        .iter()
        .find(|profile| profile.driver == driver || profile.names.iter().any(|n| n == driver))
}

/// Whether a driver's profile (hw/nics/) lists it as doing without copies on this kernel, with no known pitfall; why not.
pub(crate) fn may_not_copy(driver: &str, kernel: Option<Kernel>) -> Result<(), String> {
    let profile = profile(driver).ok_or_else(|| format!("there is no profile of {driver}"))?;
    let kernel = kernel.ok_or("this kernel's release is not a number")?;
    let since = profile.zero_copy.value();
    if !since.is_some_and(|since| since.is_in(kernel)) {
        return Err(format!(
            "its profile lists no kernel up to {kernel} in which {driver} can"
        ));
    }
    let is_open = |touches, fixed: Since| touches == Touches::ZeroCopy && !fixed.is_in(kernel);
    match profile
        .pitfalls
        .iter()
        .find(|p| is_open(p.touches, p.fixed_in))
    {
        Some(pitfall) => Err(format!("{} ({})", pitfall.what, pitfall.avoid)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
