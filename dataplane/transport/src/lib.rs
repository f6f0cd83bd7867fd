//! Encrypted bytes between nodes.
