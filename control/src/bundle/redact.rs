//! Takes keys out of what goes into a bundle, whatever file or log line they are in.

use crate::{enrol::line, keys::KeyKind};
use base64::{
    Engine as _,
    engine::general_purpose::{GeneralPurpose, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};
use zeroize::Zeroizing;

/// What stands in a key's place.
pub const INSTEAD: &str = "[left out]";

/// Keys of the configuration whose values are public keys.
const PUBLIC: [&str; 7] = [
    "node_key",
    "entity_key",
    "entity",
    "publish",
    "subscribe",
    "issuers",
    "capability_issuers",
];

/// One way to write a secret.
struct Form {
    kind: Kind,
    bytes: Zeroizing<Vec<u8>>,
}

/// How the bytes of a form stand in a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As they are.
    Exact,
    /// As they are, over several lines, too.
    Wrapped,
    /// Two hex digits each, of either case, with or without something between.
    Hex,
    /// Decimal numbers, as a list.
    Decimal,
}

/// Most characters between two bytes of a list.
const BETWEEN_MAX: usize = 64;

/// The secrets that are looked for.
#[derive(Default)]
pub struct Redactor {
    forms: Vec<Form>,
    /// By a byte, the forms that can begin with it.
    by_first: BTreeMap<u8, Vec<usize>>,
}

impl Redactor {
    /// Looks for a secret as bytes; as hex digits, together or apart; as a list of numbers; and as base64, of it or of
    /// its hex digits, alone or within something longer, on one line or more.
    pub fn learn(&mut self, secret: &[u8]) {
        if secret.iter().all(|byte| *byte == 0) {
            return;
        }
        let mut digits = Zeroizing::new(String::with_capacity(2 * secret.len()));
        for byte in secret {
            // A string takes what is written to it.
            let _written = write!(digits, "{byte:02x}");
        }
        for kind in [Kind::Exact, Kind::Hex, Kind::Decimal] {
            self.put(kind, secret.to_vec());
        }
        self.put(Kind::Exact, secret.escape_ascii().collect());
        for base64 in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            self.put(Kind::Wrapped, base64.encode(secret).into_bytes());
            for inner in [secret, digits.as_bytes()] {
                for before in 0..3 {
                    self.put(Kind::Wrapped, within(&base64, inner, before));
                }
            }
        }
    }

    /// Looks for a text, such as a line of a PEM file.
    pub fn learn_text(&mut self, text: &str) {
        if text.len() >= TEXT_BYTES_MIN {
            self.put(Kind::Exact, text.as_bytes().to_vec());
        }
    }

    fn put(&mut self, kind: Kind, bytes: Vec<u8>) {
        let Some(&first) = bytes.first() else { return };
        let number = self.forms.len();
        let written = match kind {
            Kind::Exact | Kind::Wrapped => vec![first],
            Kind::Hex => format!("{first:02x}").into_bytes(),
            Kind::Decimal => first.to_string().into_bytes(),
        };
        let mut firsts = BTreeSet::from([written[0]]);
        if kind == Kind::Hex {
            // A small number of a list may have one digit.
            let digits = &written[..if first < 16 { 2 } else { 1 }];
            firsts.extend(
                digits
                    .iter()
                    .flat_map(|d| [d.to_ascii_lowercase(), d.to_ascii_uppercase()]),
            );
        }
        for first in firsts {
            self.by_first.entry(first).or_default().push(number);
        }
        let bytes = Zeroizing::new(bytes);
        self.forms.push(Form { kind, bytes });
    }

    /// How many bytes of the content's beginning are a secret, the most that any form says; none where it is none.
    fn begins(&self, content: &[u8]) -> Option<usize> {
        let forms = self.by_first.get(content.first()?)?;
        let found = forms
            .iter()
            .filter_map(|number| self.forms[*number].begins(content));
        found.max()
    }

    /// The content without what is known to be secret, and without whatever a key file's label stands before.
    #[must_use]
    pub fn clean(&self, content: &[u8]) -> Vec<u8> {
        let labels = [KeyKind::Node, KeyKind::Entity, KeyKind::Psk].map(KeyKind::label);
        let mut out = Vec::with_capacity(content.len());
        let mut rest = content;
        while let Some(&byte) = rest.first() {
            let label = labels.iter().find(|l| rest.starts_with(l.as_bytes()));
            if let Some(length) = self.begins(rest).or_else(|| invitation(rest)) {
                out.extend_from_slice(INSTEAD.as_bytes());
                rest = &rest[length..];
            } else if let Some(length) = private_key(rest) {
                out.extend_from_slice(INSTEAD.as_bytes());
                rest = &rest[length..];
            } else if let Some(label) = label {
                out.extend_from_slice(label.as_bytes());
                rest = &rest[label.len()..];
                let spaces = rest.iter().take_while(|b| b" \t\"'=:".contains(b)).count();
                let key = digits(&rest[spaces..]);
                if spaces > 0 && key > 0 {
                    out.extend_from_slice(&rest[..spaces]);
                    out.extend_from_slice(INSTEAD.as_bytes());
                    rest = &rest[spaces + key..];
                }
            } else {
                out.push(byte);
                rest = &rest[1..];
            }
        }
        out
    }
}

/// Shorter texts may be anything.
const TEXT_BYTES_MIN: usize = 16;

/// The characters of a base64 text that depend on `inner` alone, where so many other bytes stand before it.
fn within(base64: &GeneralPurpose, inner: &[u8], before: usize) -> Vec<u8> {
    let bytes = Zeroizing::new([&[0; 2][..before], inner].concat());
    let text = base64.encode(&*bytes).into_bytes();
    let from = (before * 8).div_ceil(6);
    text[from..bytes.len() * 8 / 6].to_vec()
}

/// How many characters of base64 or hex a text begins with.
fn digits(text: &[u8]) -> usize {
    let is_digit = |byte: &&u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(byte);
    text.iter().take_while(is_digit).count()
}

/// The length of a line of `virga invite`, which lets whoever has it join.
fn invitation(text: &[u8]) -> Option<usize> {
    let after = text.strip_prefix(line::LABEL.as_bytes())?;
    Some(line::LABEL.len() + digits(after)).filter(|length| *length > line::LABEL.len())
}

/// The length of a private key as PEM (RFC 7468), to its end or the text's.
fn private_key(text: &[u8]) -> Option<usize> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    const KEY: &[u8] = b"PRIVATE KEY-----";
    const END: &[u8] = b"-----END ";
    let find = |text: &[u8], what: &[u8]| text.windows(what.len()).position(|part| part == what);
    let after = text.strip_prefix(BEGIN)?;
    // The kind of key before it is some words.
    let kind = find(&after[..after.len().min(64)], KEY)?;
    let body = BEGIN.len() + kind + KEY.len();
    let Some(end) = find(&text[body..], END) else {
        return Some(text.len());
    };
    let end = body + end + END.len();
    let tail = find(&text[end..], b"-----").map_or(0, |tail| tail + 5);
    Some(end + tail)
}

impl Form {
    /// How many bytes of the content's beginning are this form.
    fn begins(&self, content: &[u8]) -> Option<usize> {
        let mut at = 0;
        for (number, byte) in self.bytes.iter().enumerate() {
            if number > 0 {
                at += self.between(&content[at..]);
            }
            let rest = &content[at..];
            at += match self.kind {
                Kind::Exact | Kind::Wrapped => (rest.first()? == byte).then_some(1)?,
                Kind::Hex => {
                    let digits = format!("{byte:02x}");
                    let begins = |digits: &str| {
                        let begin = rest.get(..digits.len());
                        begin.is_some_and(|it| it.eq_ignore_ascii_case(digits.as_bytes()))
                    };
                    // In a list, a small number may have one digit.
                    let is_alone = !rest.get(1).is_some_and(u8::is_ascii_hexdigit);
                    match begins(&digits) {
                        true => 2,
                        false if *byte < 16 && is_alone && begins(&digits[1..]) => 1,
                        false => return None,
                    }
                }
                Kind::Decimal => {
                    let digits = byte.to_string();
                    let after = rest.strip_prefix(digits.as_bytes())?;
                    let is_whole = !after.first().is_some_and(u8::is_ascii_digit);
                    is_whole.then_some(digits.len())?
                }
            };
        }
        Some(at)
    }

    /// How many bytes stand between two of the form's.
    fn between(&self, rest: &[u8]) -> usize {
        let are = |set: &[u8]| {
            let near = &rest[..rest.len().min(BETWEEN_MAX)];
            near.iter().take_while(|byte| set.contains(byte)).count()
        };
        match self.kind {
            Kind::Exact => 0,
            Kind::Wrapped => are(b"\r\n"),
            Kind::Decimal => are(b" ,;\t\r\n"),
            Kind::Hex => {
                let apart = are(b" ,;:.-_\\\t\r\n");
                let marked = [&b"0x"[..], b"0X", b"x"];
                let mark = marked.iter().find(|mark| rest[apart..].starts_with(mark));
                apart + mark.map_or(0, |mark| mark.len())
            }
        }
    }
}

/// A configuration as JSON: without comments, and without what looks like a key where no public one belongs.
#[must_use]
pub fn configuration(text: &str) -> Option<Value> {
    let table: toml::Table = text.parse().ok()?;
    let mut value = serde_json::to_value(table).ok()?;
    hide("", &mut value);
    Some(value)
}

fn hide(key: &str, value: &mut Value) {
    match value {
        Value::String(text) if !PUBLIC.contains(&key) && looks_like_a_key(text) => {
            *text = INSTEAD.to_owned();
        }
        Value::Array(values) => values.iter_mut().for_each(|value| hide(key, value)),
        Value::Object(section) => section.iter_mut().for_each(|(key, value)| hide(key, value)),
        _ => {}
    }
}

/// Whether a text is 16 bytes or more in hex, or 32 or 64 in base64.
fn looks_like_a_key(text: &str) -> bool {
    let text = text.trim();
    let is_hex = text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bare = text.trim_end_matches('=');
    let decoded = STANDARD_NO_PAD
        .decode(bare)
        .or_else(|_| URL_SAFE_NO_PAD.decode(bare));
    is_hex || decoded.is_ok_and(|bytes| bytes.len() == 32 || bytes.len() == 64)
}

/// A text in which every long run of hex or base64 digits is left out: a complaint may repeat what it is about.
#[must_use]
pub fn without_long_runs(text: &str) -> String {
    let is_digit = |c: char| c.is_ascii_alphanumeric() || "+/=-_".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_run = is_digit(first);
        let end = rest.find(|c| is_digit(c) != is_run).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        out.push_str(match is_run && run.len() >= 32 && !run.contains('/') {
            true => INSTEAD,
            false => run,
        });
        rest = after;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of every kind: high ones, those with one hex digit, and those that can be printed.
    fn secret() -> [u8; 32] {
        std::array::from_fn(|n| {
            let n = u8::try_from(n).unwrap();
            [0xfa, 0x01, 0x41][usize::from(n % 3)] ^ (n / 3)
        })
    }

    #[derive(Debug)]
    #[expect(dead_code, reason = "printed")]
    struct Held {
        key: [u8; 32],
    }

    fn redactor() -> Redactor {
        let mut redactor = Redactor::default();
        redactor.learn(&secret());
        redactor
    }

    fn clean(text: &str) -> String {
        String::from_utf8(redactor().clean(text.as_bytes())).unwrap()
    }

    #[test]
    fn a_secret_is_found_in_each_way_to_write_it() {
        let secret = secret();
        let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
        let (standard, url) = (
            STANDARD_NO_PAD.encode(secret),
            URL_SAFE_NO_PAD.encode(secret),
        );
        assert_ne!(standard, url);
        for form in [&hex, &hex.to_uppercase(), &standard, &url] {
            assert_eq!(clean(&format!("a{form}b")), format!("a{INSTEAD}b"));
            assert_eq!(clean(&form[1..]), form[1..], "a part of it is another text");
        }
        let raw = [&b"a"[..], &secret, b"b"].concat();
        let expected = format!("a{INSTEAD}b");
        assert_eq!(redactor().clean(&raw), expected.as_bytes());
    }

    #[test]
    fn a_secret_is_found_apart_within_something_and_over_lines() {
        let secret = secret();
        let apart = |word: fn(&u8) -> String, between: &str| {
            let words: Vec<String> = secret.iter().map(word).collect();
            words.join(between)
        };
        let hex = |byte: &u8| format!("{byte:02x}");
        for written in [
            format!("{secret:?}"),
            format!("{secret:x?}"),
            format!("{secret:#x?}"),
            format!("{:?}", secret.escape_ascii().to_string()).replace("\\\\", "\\"),
            apart(u8::to_string, ",\n    "),
            apart(hex, ":"),
            apart(|byte| format!("{byte:02X}"), " "),
            apart(|byte| format!("0x{byte:02x}"), ", "),
            apart(|byte| format!("\\x{byte:02x}"), ""),
        ] {
            let cleaned = clean(&format!("key {written} end"));
            assert!(cleaned.contains(INSTEAD), "{written}: {cleaned}");
            assert!(cleaned.len() < 32, "{written}: {cleaned}");
        }
        let digits = apart(hex, "");
        for inner in [&secret[..], digits.as_bytes()] {
            for before in 0..5 {
                let whole = [&b"abcde"[..before], inner, b" and more"].concat();
                for base64 in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                    let line = base64.encode(&whole);
                    let (left, right) = line.split_at(30);
                    for text in [line.clone(), format!("{left}\r\n{right}")] {
                        let cleaned = clean(&text);
                        let rest = line.len() - inner.len() * 8 / 6;
                        assert!(cleaned.contains(INSTEAD), "{text}: {cleaned}");
                        assert!(
                            cleaned.len() <= rest + INSTEAD.len() + 2,
                            "{text}: {cleaned}"
                        );
                    }
                }
            }
        }
        let cleaned = clean(&format!("{:#?}", [Held { key: secret }]));
        assert!(cleaned.contains(INSTEAD) && cleaned.len() < 80, "{cleaned}");
        // Other numbers are others' own.
        let mut other = secret;
        other[31] ^= 1;
        assert_eq!(clean(&format!("{other:?}")), format!("{other:?}"));
        assert_eq!(clean(&format!("{other:x?}")), format!("{other:x?}"));
    }

    #[test]
    fn private_keys_and_invitations_go_though_nobody_knows_them() {
        let pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----";
        assert_eq!(clean(&format!("a {pem} b")), format!("a {INSTEAD} b"));
        let (begun, _) = pem.split_at(40);
        assert_eq!(clean(&format!("a {begun}")), format!("a {INSTEAD}"));
        let certificate = "-----BEGIN CERTIFICATE-----\nMHcCAQEE\n-----END CERTIFICATE-----";
        assert_eq!(clean(certificate), certificate);
        assert_eq!(
            clean("join virga1:AbC-_9 now"),
            format!("join {INSTEAD} now")
        );
        assert_eq!(
            clean("virga1: is how it begins"),
            "virga1: is how it begins"
        );
        let mut redactor = Redactor::default();
        redactor.learn_text("MHcCAQEEIHexampleexample");
        let cleaned = redactor.clean(b"x MHcCAQEEIHexampleexample y");
        assert_eq!(cleaned, format!("x {INSTEAD} y").as_bytes());
    }

    #[test]
    fn what_a_label_stands_before_goes_though_nobody_knows_it() {
        let digits = "17".repeat(32);
        let line = format!("virga-network-psk-v1 {digits} and more");
        let expected = format!("virga-network-psk-v1 {INSTEAD} and more");
        assert_eq!(clean(&line), expected);
        assert_eq!(clean("virga-node-key-v1"), "virga-node-key-v1");
        assert_eq!(clean("virga-node-key-v1 "), "virga-node-key-v1 ");
    }

    #[test]
    fn a_configuration_keeps_public_keys_and_nothing_else_that_looks_like_one() {
        let key = "ab".repeat(32);
        let base64 = STANDARD_NO_PAD.encode([0xab; 32]) + "=";
        let text = format!(
            "# {key}\n[node]\nname = \"a\"\npsk_file = \"{key}\"\npsk = \"{base64}\"\n\
             [[peers]]\nnode_key = \"{key}\"\nhint = [\"{key}\", \"x\"]\n"
        );
        let shown = configuration(&text).unwrap();
        assert_eq!(shown["node"]["name"], "a");
        assert_eq!(shown["node"]["psk_file"], INSTEAD);
        assert_eq!(shown["node"]["psk"], INSTEAD);
        assert_eq!(shown["peers"][0]["node_key"], key.as_str());
        assert_eq!(shown["peers"][0]["hint"][0], INSTEAD);
        assert_eq!(shown["peers"][0]["hint"][1], "x");
        assert_eq!(shown.to_string().matches(&key).count(), 1);
        assert_eq!(configuration("no = = toml"), None);
        let complaint = format!("line 3: {key} is no name in /etc/virga/node.toml");
        let expected = format!("line 3: {INSTEAD} is no name in /etc/virga/node.toml");
        assert_eq!(without_long_runs(&complaint), expected);
    }
}
