//! The systems.

pub(crate) mod nats;
pub(crate) mod plain;
pub(crate) mod quinn;
pub(crate) mod virga;

/// A system's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Name {
    /// Ours.
    Virga,
    Nats,
    Quinn,
    /// Bare UDP and TCP, nothing encrypted.
    Plain,
}

impl Name {
    /// As entries name it.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Virga => "virga",
            Self::Nats => "nats",
            Self::Quinn => "quinn",
            Self::Plain => "plain",
        }
    }
}
