//! Nodes behind simulated NATs of every kind of RFC 4787, with a relay between them: who can be reached is, who cannot
//! stays relayed, and nobody is made to send more than there are bounds for.

mod hostile;
mod mapped;
mod pairs;
mod world;
