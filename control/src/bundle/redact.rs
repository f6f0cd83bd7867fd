//! Takes keys out of what goes into a bundle, whatever file or log line they are in.

use crate::keys::KeyKind;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde_json::Value;
use std::fmt::Write as _;
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
    bytes: Zeroizing<Vec<u8>>,
    /// Hex digits are of either case.
    any_case: bool,
}

/// The secrets that are looked for.
#[derive(Default)]
pub struct Redactor {
    forms: Vec<Form>,
}

impl Redactor {
    /// Looks for a secret as bytes, hex digits and base64.
    pub fn learn(&mut self, secret: &[u8]) {
        if secret.iter().all(|byte| *byte == 0) {
            return;
        }
        let mut digits = Zeroizing::new(String::with_capacity(2 * secret.len()));
        for byte in secret {
            // A string takes what is written to it.
            let _written = write!(digits, "{byte:02x}");
        }
        let exact = |bytes: Vec<u8>| Form {
            bytes: Zeroizing::new(bytes),
            any_case: false,
        };
        self.forms.push(exact(secret.to_vec()));
        self.forms.push(Form {
            bytes: Zeroizing::new(digits.as_bytes().to_vec()),
            any_case: true,
        });
        for base64 in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            self.forms.push(exact(base64.encode(secret).into_bytes()));
        }
    }

    /// The content without what is known to be secret, and without whatever a key file's label stands before.
    #[must_use]
    pub fn clean(&self, content: &[u8]) -> Vec<u8> {
        let labels = [KeyKind::Node, KeyKind::Entity, KeyKind::Psk].map(KeyKind::label);
        let mut out = Vec::with_capacity(content.len());
        let mut rest = content;
        while let Some(&byte) = rest.first() {
            let form = self.forms.iter().find(|form| form.begins(rest));
            let label = labels.iter().find(|l| rest.starts_with(l.as_bytes()));
            if let Some(form) = form {
                out.extend_from_slice(INSTEAD.as_bytes());
                rest = &rest[form.bytes.len()..];
            } else if let Some(label) = label {
                out.extend_from_slice(label.as_bytes());
                rest = &rest[label.len()..];
                let is_key = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(byte);
                let spaces = rest.iter().take_while(|b| b" \t\"'=:".contains(b)).count();
                let key = rest[spaces..].iter().take_while(|b| is_key(b)).count();
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

impl Form {
    fn begins(&self, content: &[u8]) -> bool {
        let Some(begin) = content.get(..self.bytes.len()) else {
            return false;
        };
        match self.any_case {
            true => begin.eq_ignore_ascii_case(&self.bytes),
            false => begin == self.bytes.as_slice(),
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

    fn secret() -> [u8; 32] {
        std::array::from_fn(|n| 0xe0 ^ u8::try_from(n).unwrap())
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
