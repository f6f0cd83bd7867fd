//! The systems.

#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "net-mesh")]
pub(crate) mod net_mesh;
pub(crate) mod plain;
#[cfg(feature = "quinn")]
pub(crate) mod quinn;
pub(crate) mod virga;
#[cfg(feature = "zenoh")]
pub(crate) mod zenoh;

/// A system's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// Ours.
    Virga,
    NetMesh,
    Zenoh,
    Nats,
    Quinn,
    /// A tunnel between two hosts, and bare UDP and TCP through it.
    Nebula,
    /// Bare UDP and TCP, nothing encrypted.
    Plain,
}

impl Name {
    /// As entries name it.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Virga => "virga",
            Self::NetMesh => "net_mesh",
            Self::Zenoh => "zenoh",
            Self::Nats => "nats",
            Self::Quinn => "quinn",
            Self::Nebula => "nebula",
            Self::Plain => "plain",
        }
    }

    /// Whether its crates were built in.
    pub(crate) const fn is_built(self) -> bool {
        match self {
            Self::Virga | Self::Nebula | Self::Plain => true,
            Self::NetMesh => cfg!(feature = "net-mesh"),
            Self::Zenoh => cfg!(feature = "zenoh"),
            Self::Nats => cfg!(feature = "nats"),
            Self::Quinn => cfg!(feature = "quinn"),
        }
    }
}
