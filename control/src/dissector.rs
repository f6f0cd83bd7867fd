//! A Wireshark dissector for mesh headers, in Lua, made of the header's own definition: where each field is, and how
//! large, is read off [`Header::encode`], and flags are asked of [`Flags`].

use std::fmt::Write as _;
use virga_ebpf::{
    header::{ChannelHash, Flags, Header, MAGIC, NodeId, OriginHash, SessionId, StreamId, Subnet},
    limits::HEADER_BYTES,
};

/// How a field's value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    /// As a count.
    Decimal,
    /// As ids and hashes are written everywhere else.
    Hex,
    /// As a subnet: four levels.
    Levels,
}

/// One field of the header.
#[derive(Debug)]
struct Field {
    name: &'static str,
    base: Base,
    /// A header in which this field alone is not 0, and has all bits set.
    all_ones: Header,
}

const FLAGS: [(&str, Flags); 5] = [
    ("handshake", Flags::HANDSHAKE),
    ("control", Flags::CONTROL),
    ("reliable", Flags::RELIABLE),
    ("fin", Flags::FIN),
    ("echo", Flags::ECHO),
];

/// Every field, in the header's order.
fn fields() -> Vec<Field> {
    let none = Header::decode(&[0; HEADER_BYTES]);
    // A field that is added to the header is missing here, and the compiler says so.
    let Header {
        magic: _,
        version: _,
        flags: _,
        priority: _,
        hop_limit: _,
        hop_count: _,
        key_phase: _,
        subprotocol: _,
        channel_hash: _,
        subnet: _,
        destination: _,
        origin_hash: _,
        session_id: _,
        stream_id: _,
        payload_len: _,
        event_count: _,
        sequence: _,
        link_tag: _,
    } = none;
    let field = |name, base, all_ones| Field {
        name,
        base,
        all_ones,
    };
    macro_rules! each {
        ($($name:ident: $base:ident, $ones:expr;)*) => {
            vec![$(field(stringify!($name), Base::$base, Header { $name: $ones, ..none })),*]
        };
    }
    each! {
        magic: Hex, u16::MAX;
        version: Decimal, u8::MAX;
        flags: Hex, Flags(u8::MAX);
        priority: Decimal, u8::MAX;
        hop_limit: Decimal, u8::MAX;
        hop_count: Decimal, u8::MAX;
        key_phase: Decimal, u8::MAX;
        subprotocol: Decimal, u16::MAX;
        channel_hash: Hex, ChannelHash(u16::MAX);
        subnet: Levels, Subnet(u32::MAX);
        destination: Hex, NodeId(u64::MAX);
        origin_hash: Hex, OriginHash(u64::MAX);
        session_id: Hex, SessionId(u64::MAX);
        stream_id: Hex, StreamId(u32::MAX);
        payload_len: Decimal, u16::MAX;
        event_count: Decimal, u16::MAX;
        sequence: Decimal, u64::MAX;
        link_tag: Hex, u64::MAX;
    }
}

impl Field {
    /// Where it is: the first byte, and how many.
    fn place(&self) -> (usize, usize) {
        let bytes = self.all_ones.encode();
        let at = bytes.iter().position(|byte| *byte != 0).unwrap_or(0);
        (at, bytes.iter().filter(|byte| **byte != 0).count())
    }

    /// Its line in the dissector's list.
    fn declaration(&self) -> String {
        let Self { name, base, .. } = self;
        let (_, bytes) = self.place();
        let bits = 8 * bytes;
        match base {
            Base::Decimal => format!("ProtoField.uint{bits}(\"virga.{name}\", \"{name}\")"),
            Base::Hex => format!("ProtoField.uint{bits}(\"virga.{name}\", \"{name}\", base.HEX)"),
            Base::Levels => format!("ProtoField.ipv4(\"virga.{name}\", \"{name}\")"),
        }
    }
}

/// The dissector, for packets to and from a UDP port.
#[must_use]
pub fn lua(port: u16) -> String {
    let mut declared = String::new();
    let mut shown = String::new();
    for field in fields() {
        let (at, bytes) = field.place();
        let name = field.name;
        // A string takes what is written to it.
        let _written = writeln!(declared, "fields.{name} = {}", field.declaration());
        let item = match name {
            "flags" => "local flags = ",
            _ => "",
        };
        let _written = writeln!(
            shown,
            "    {item}header:add(fields.{name}, buffer({at}, {bytes}))"
        );
        if name == "flags" {
            for (flag, Flags(bit)) in FLAGS {
                let _written = writeln!(
                    declared,
                    "fields.flags_{flag} = ProtoField.bool(\"virga.flags.{flag}\", \"{flag}\", 8, nil, {bit:#04x})"
                );
                let _written = writeln!(
                    shown,
                    "    flags:add(fields.flags_{flag}, buffer({at}, {bytes}))"
                );
            }
        }
    }
    format!(
        r#"-- Mesh headers of Virga, for Wireshark and tshark: made by `virga dissector` of version {version}.
-- Put it into Wireshark's folder of Lua plugins, or load it once: tshark -X lua_script:virga.lua -r FILE

local virga = Proto("virga", "Virga mesh")
local fields = virga.fields
{declared}fields.payload = ProtoField.bytes("virga.payload", "payload, sealed")

function virga.dissector(buffer, packet, tree)
    if buffer:len() < {HEADER_BYTES} or buffer(0, 2):uint() ~= {MAGIC:#06x} then
        return 0
    end
    packet.cols.protocol = "Virga"
    local header = tree:add(virga, buffer(0, {HEADER_BYTES}))
{shown}    if buffer:len() > {HEADER_BYTES} then
        tree:add(virga, buffer({HEADER_BYTES})):add(fields.payload, buffer({HEADER_BYTES}))
    end
    return buffer:len()
end

DissectorTable.get("udp.port"):add({port}, virga)
"#,
        version = env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_the_whole_header_in_its_order() {
        let mut next = 0;
        for field in fields() {
            let (at, bytes) = field.place();
            assert_eq!(at, next, "{}", field.name);
            assert!(field.base != Base::Levels || bytes == 4);
            next += bytes;
        }
        assert_eq!(next, HEADER_BYTES);
    }
}
