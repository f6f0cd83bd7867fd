//! The tables' values as map values.
#![allow(unsafe_code)]

use virga_ebpf::{
    reason::Counter,
    sample::{Order, Tally},
    sink::Counts,
    subnet::Exports,
    tables::{
        ChannelPolicy, Echo, Filter, GuardInfo, Neighbour, NextHop, Pair, Route, Settings, XskPort,
    },
    workload::{Captured, Lane, Workload},
};

/// A table's value, as the bytes that a map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

macro_rules! plain {
    ($($value:ty),* $(,)?) => {
        $(
            // SAFETY: `repr(C)`, integers only, without padding (its size is asserted where it is
            // defined), so any bytes are a value and all its bytes are initialised.
            unsafe impl aya::Pod for Plain<$value> {}
        )*
    };
}
plain!(
    Settings,
    Neighbour,
    GuardInfo,
    Pair,
    ChannelPolicy,
    Echo,
    Exports,
    Filter,
    Route,
    NextHop,
    XskPort,
    Order,
    Tally,
    Counter,
    Workload,
    Lane,
    Captured,
    Counts
);
