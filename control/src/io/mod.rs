//! The few system calls that no safe interface covers.
#![allow(unsafe_code)]

pub(crate) mod ethtool;
pub(crate) mod probe;
