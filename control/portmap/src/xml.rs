//! A router's documents, read once from front to end: elements by their local names, and what stands in them.
//!
//! No entities but XML's own five and characters by number, no document type, so many levels, and so many bytes in an
//! element: what is read is never longer than what was sent.

use crate::{
    Failure,
    limits::{XML_DEPTH_MAX, XML_TEXT_BYTES_MAX},
};
use quick_xml::{Reader, events::Event};

/// Reads a document, and gives each element without others in it: the names from the outermost to its own, and its text;
/// each other one without text, once it ends.
///
/// # Errors
/// It is not well-formed, or goes beyond what is read.
pub fn read(document: &str, mut found: impl FnMut(&[String], &str)) -> Result<(), Failure> {
    let mut reader = Reader::from_str(document);
    let (mut names, mut text) = (Vec::<String>::new(), String::new());
    loop {
        match reader
            .read_event()
            .map_err(|_| wrong("it is not well-formed"))?
        {
            Event::Start(element) => {
                names.push(element.local_name().as_ref().to_owned());
                if names.len() > XML_DEPTH_MAX {
                    return Err(wrong("it has too many levels"));
                }
                text.clear();
            }
            Event::End(_) => {
                found(&names, text.trim());
                names.pop();
                text.clear();
            }
            Event::Text(piece) => text += &piece,
            Event::CData(piece) => text += &piece,
            Event::GeneralRef(reference) => {
                let number = reference
                    .resolve_char_ref()
                    .map_err(|_| wrong("it has a character that is none"))?;
                let character = number.or_else(|| named(&reference));
                text.push(character.ok_or_else(|| wrong("it has an entity of its own"))?);
            }
            Event::DocType(_) => return Err(wrong("it has a document type")),
            Event::Eof if names.is_empty() => return Ok(()),
            Event::Eof => return Err(wrong("it ends too soon")),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
        if text.len() > XML_TEXT_BYTES_MAX {
            return Err(wrong("an element of it is too long"));
        }
    }
}

/// In words of this node's own: a document's are nothing for a log or a terminal.
fn wrong(why: &'static str) -> Failure {
    Failure::Malformed(why.into())
}

/// XML's own entities.
fn named(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BODY_BYTES_MAX;
    use proptest::prelude::*;

    fn texts(document: &str) -> Result<Vec<(String, String)>, Failure> {
        let mut all = Vec::new();
        read(document, |names, text| {
            all.push((names.join("/"), text.to_owned()));
        })?;
        Ok(all)
    }

    #[test]
    fn elements_are_given_with_what_is_in_them() {
        let all = texts(
            "<?xml version=\"1.0\"?><a xmlns:u=\"x\"><u:b> 1 &amp;&#50; </u:b><!-- c --><d/><e><![CDATA[<f>]]></e></a>",
        );
        let all = all.unwrap();
        let all: Vec<(&str, &str)> = all.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(all, [("a/b", "1 &2"), ("a/e", "<f>"), ("a", "")]);
    }

    #[test]
    fn bombs_and_what_is_not_well_formed_are_refused() {
        let bomb = "<!DOCTYPE a [<!ENTITY b \"bbbbbbbb\"><!ENTITY c \"&b;&b;&b;&b;\">]><a>&c;</a>";
        let deep = "<a>".repeat(100) + &"</a>".repeat(100);
        let long = format!("<a>{}</a>", "&#97;".repeat(BODY_BYTES_MAX / 8));
        for document in [
            bomb,
            &deep,
            &long,
            "<a>&b;</a>",
            "<a>&#x110000;</a>",
            "<a></b>",
            "<a>",
            "</a>",
            "<a",
        ] {
            assert!(texts(document).is_err(), "{document:.60}");
        }
    }

    #[test]
    fn what_a_document_says_is_in_no_error() {
        let hostile = "\u{1b}]0;forged";
        for document in [
            format!("<a></{hostile}>"),
            format!("<a>&{hostile};</a>"),
            format!("<a>&#{hostile};</a>"),
            format!("<{hostile}"),
        ] {
            let told = texts(&document).unwrap_err().to_string();
            assert!(
                !told.contains("forged") && !told.contains('\u{1b}'),
                "{told:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_document_gives_more_than_it_has(document in "[<>/&;#!\\[\\]a-c\"= -]{0,200}") {
            if let Ok(all) = texts(&document) {
                let bytes: usize = all.iter().map(|(_, text)| text.len()).sum();
                prop_assert!(bytes <= document.len());
            }
        }
    }
}
