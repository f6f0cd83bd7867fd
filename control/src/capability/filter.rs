//! Filters: what a channel asks of whoever wants to publish or subscribe.
//!
//! ```text
//! filter    = all { "or" all }                      and binds closer than or
//! all       = one { "and" one }
//! one       = "not" one | "(" filter ")" | key [ operator value ]
//! operator  = "=" | "!=" | "<" | "<=" | ">" | ">="
//! key       = levels of a-z 0-9 - _ with single dots between
//! value     = A-Z a-z 0-9 . _ + - | '"' text '"', with \" and \\ in it
//! ```
//! A key alone asks that it is there, with a value or without. A comparison asks that it is there with a
//! value that compares so; a value that has nothing in common with the filter's is unequal to it, and
//! neither less nor greater. `not` holds where its part does not, also for whoever has no such key: what
//! nobody vouches for is not there, so whoever must be kept out is better asked for what it lacks.
//!
//! A filter is parsed once into nodes that lie one behind the other, each after its parts. Asking it
//! allocates nothing.

use super::value::{Capabilities, CapabilityError, Key, Value, is_keyword};
use std::{cmp::Ordering, fmt};

/// Bytes of the longest filter.
pub const FILTER_BYTES_MAX: usize = 1_024;
/// Keys, comparisons, `and`, `or` and `not` of the largest one.
pub const NODES_MAX: usize = 128;
/// How deep parentheses and `not` may lie in each other.
pub const DEPTH_MAX: usize = 16;

const _: () = assert!(NODES_MAX <= u8::MAX as usize);

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    /// Where, in characters from 1; one behind the last where something is missing there.
    pub column: usize,
    /// What was expected, and what stands there.
    pub what: String,
    /// The text, on one line.
    text: String,
}

impl std::error::Error for FilterError {}

impl fmt::Display for FilterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { column, what, text } = self;
        writeln!(f, "column {column}: {what}")?;
        writeln!(f, "    {text}")?;
        write!(f, "    {:>column$}", "^")
    }
}

/// What is known of an entity.
pub trait Known {
    /// Whether something that is called so satisfies the question; a tag has no value.
    fn any(&self, key: &Key, is_meant: impl FnMut(Option<&Value>) -> bool) -> bool;
}

impl Known for Capabilities {
    fn any(&self, key: &Key, mut is_meant: impl FnMut(Option<&Value>) -> bool) -> bool {
        self.of(key).is_some_and(|one| is_meant(one.value.as_ref()))
    }
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Box<[Node]>);

/// Its parts, by their places, lie before it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Has(Key),
    Compare(Key, Operator, Value),
    Not(u8),
    And(u8, u8),
    Or(u8, u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl Operator {
    /// The longer ones first.
    const ALL: [Self; 6] = [
        Self::Unequal,
        Self::AtMost,
        Self::AtLeast,
        Self::Equal,
        Self::Less,
        Self::Greater,
    ];

    const fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::Unequal => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        }
    }

    const fn is_of_order(self) -> bool {
        !matches!(self, Self::Equal | Self::Unequal)
    }

    fn holds(self, found: Option<Ordering>) -> bool {
        match self {
            Self::Equal => found == Some(Ordering::Equal),
            Self::Unequal => found != Some(Ordering::Equal),
            Self::Less => found == Some(Ordering::Less),
            Self::AtMost => matches!(found, Some(Ordering::Less | Ordering::Equal)),
            Self::Greater => found == Some(Ordering::Greater),
            Self::AtLeast => matches!(found, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// [`FilterError`]: what is wrong, and at which column.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let mut parser = Parser {
            text,
            at: 0,
            depth: 0,
            nodes: Vec::new(),
        };
        if text.len() > FILTER_BYTES_MAX {
            let what = format!("a filter has at most {FILTER_BYTES_MAX} bytes");
            // The caret stands under the first character that is too much.
            let fits = (0..=FILTER_BYTES_MAX).rev();
            parser.at = fits
                .into_iter()
                .find(|&at| text.is_char_boundary(at))
                .unwrap_or(0);
            return Err(parser.wrong(what));
        }
        parser.filter()?;
        match parser.next_char() {
            None => Ok(Self(parser.nodes.into())),
            Some(')') => Err(parser.wrong("nothing opens this parenthesis")),
            Some(_) => Err(parser.expected("`and`, `or` or the end")),
        }
    }

    /// Both at once; `None` where that would be too large.
    #[must_use]
    pub fn and(self, other: Self) -> Option<Self> {
        let first = u8::try_from(self.0.len()).ok()?;
        let mut nodes = self.0.into_vec();
        for node in other.0 {
            nodes.push(match node {
                Node::Not(one) => Node::Not(one.checked_add(first)?),
                Node::And(left, right) => {
                    Node::And(left.checked_add(first)?, right.checked_add(first)?)
                }
                Node::Or(left, right) => {
                    Node::Or(left.checked_add(first)?, right.checked_add(first)?)
                }
                leaf @ (Node::Has(_) | Node::Compare(..)) => leaf,
            });
        }
        let last = u8::try_from(nodes.len()).ok()?.checked_sub(1)?;
        nodes.push(Node::And(first.checked_sub(1)?, last));
        (nodes.len() <= NODES_MAX).then(|| Self(nodes.into()))
    }

    /// Whether an entity of which this is known has what it takes.
    #[must_use]
    pub fn holds(&self, known: &impl Known) -> bool {
        self.holds_at(self.root(), known)
    }

    /// The part that an entity lacks, or nothing.
    #[must_use]
    pub fn lacking(&self, known: &impl Known) -> Option<Part<'_>> {
        let mut at = self.root();
        if self.holds_at(at, known) {
            return None;
        }
        // Of parts that must all hold, the first that does not; any other part fails as a whole.
        while let Some(Node::And(left, right)) = self.0.get(usize::from(at)) {
            at = if self.holds_at(*left, known) {
                *right
            } else {
                *left
            };
        }
        Some(Part { filter: self, at })
    }

    fn root(&self) -> u8 {
        // There is one node at least, and no more than fit.
        u8::try_from(self.0.len().saturating_sub(1)).unwrap_or(u8::MAX)
    }

    fn holds_at(&self, at: u8, known: &impl Known) -> bool {
        match self.0.get(usize::from(at)) {
            Some(Node::Has(key)) => known.any(key, |_| true),
            Some(Node::Compare(key, operator, wanted)) => known.any(key, |found| {
                found.is_some_and(|found| operator.holds(found.compare(wanted)))
            }),
            Some(Node::Not(one)) => !self.holds_at(*one, known),
            Some(Node::And(left, right)) => {
                self.holds_at(*left, known) && self.holds_at(*right, known)
            }
            Some(Node::Or(left, right)) => {
                self.holds_at(*left, known) || self.holds_at(*right, known)
            }
            None => false,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.root();
        write!(f, "{}", Part { filter: self, at })
    }
}

/// A part of a filter, to be shown.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    filter: &'a Filter,
    at: u8,
}

impl Part<'_> {
    /// Whether it holds, of something else that is known.
    #[must_use]
    pub fn holds(&self, known: &impl Known) -> bool {
        self.filter.holds_at(self.at, known)
    }

    /// The keys that it names, with what is known of each: `software.cuda is 11.8`.
    #[must_use]
    pub fn found(&self, known: &impl Known) -> String {
        let mut told = Vec::new();
        self.tell(known, &mut told);
        told.dedup();
        told.join(", ")
    }

    fn tell(&self, known: &impl Known, told: &mut Vec<String>) {
        let of = |at| Part { at, ..*self };
        match self.node() {
            Some(Node::Has(key) | Node::Compare(key, ..)) => {
                let mut values = Vec::new();
                known.any(key, |value| {
                    values.push(value.map_or("there".to_owned(), Value::to_string));
                    false
                });
                match values.as_slice() {
                    [] => told.push(format!("{key} is not there")),
                    values => told.push(format!("{key} is {}", values.join(" and "))),
                }
            }
            Some(Node::Not(one)) => of(*one).tell(known, told),
            Some(Node::And(left, right) | Node::Or(left, right)) => {
                of(*left).tell(known, told);
                of(*right).tell(known, told);
            }
            None => {}
        }
    }

    fn node(&self) -> Option<&Node> {
        self.filter.0.get(usize::from(self.at))
    }

    /// Writes a part of this one, in parentheses where it would bind otherwise without.
    fn write(&self, f: &mut fmt::Formatter<'_>, at: u8, is_bare: fn(&Node) -> bool) -> fmt::Result {
        let part = Part { at, ..*self };
        match part.node().is_some_and(is_bare) {
            true => write!(f, "{part}"),
            false => write!(f, "({part})"),
        }
    }
}

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_one = |node: &Node| !matches!(node, Node::And(..) | Node::Or(..));
        match self.node() {
            Some(Node::Has(key)) => write!(f, "{key}"),
            Some(Node::Compare(key, operator, value)) => {
                write!(f, "{key} {} ", operator.sign())?;
                write_value(f, value)
            }
            Some(Node::Not(one)) => {
                f.write_str("not ")?;
                self.write(f, *one, is_one)
            }
            Some(Node::And(left, right)) => {
                self.write(f, *left, |node| !matches!(node, Node::Or(..)))?;
                f.write_str(" and ")?;
                self.write(f, *right, is_one)
            }
            Some(Node::Or(left, right)) => {
                self.write(f, *left, |_| true)?;
                f.write_str(" or ")?;
                self.write(f, *right, |node| !matches!(node, Node::Or(..)))
            }
            None => Ok(()),
        }
    }
}

fn write_value(f: &mut fmt::Formatter<'_>, value: &Value) -> fmt::Result {
    let text = value.as_str();
    if text.chars().all(is_of_word) && !is_keyword(text) {
        return f.write_str(text);
    }
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"");
    write!(f, "\"{escaped}\"")
}

const fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-')
}

/// Reads from left to right; each node is written after its parts.
struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    nodes: Vec<Node>,
}

impl<'t> Parser<'t> {
    fn filter(&mut self) -> Result<u8, FilterError> {
        let mut left = self.all()?;
        while self.takes_word("or") {
            let right = self.all()?;
            left = self.push(Node::Or(left, right))?;
        }
        Ok(left)
    }

    fn all(&mut self) -> Result<u8, FilterError> {
        let mut left = self.one()?;
        while self.takes_word("and") {
            let right = self.one()?;
            left = self.push(Node::And(left, right))?;
        }
        Ok(left)
    }

    fn one(&mut self) -> Result<u8, FilterError> {
        if self.next_char() == Some('(') {
            self.descend()?;
            let opened = self.at;
            self.at += 1;
            let inner = self.filter()?;
            match self.next_char() {
                Some(')') => self.at += 1,
                None => {
                    self.at = opened;
                    return Err(self.wrong("nothing closes this parenthesis"));
                }
                Some(_) => return Err(self.expected("`and`, `or` or `)`")),
            }
            self.depth -= 1;
            return Ok(inner);
        }
        if self.peek_word() == "not" {
            self.descend()?;
            self.takes_word("not");
            let inner = self.one()?;
            self.depth -= 1;
            return self.push(Node::Not(inner));
        }
        let key = self.key()?;
        match self.operator() {
            Some(operator) => {
                let value = self.value(operator)?;
                self.push(Node::Compare(key, operator, value))
            }
            None => self.push(Node::Has(key)),
        }
    }

    fn descend(&mut self) -> Result<(), FilterError> {
        self.depth += 1;
        match self.depth > DEPTH_MAX {
            true => Err(self.wrong(format!(
                "parentheses and `not` may lie {DEPTH_MAX} deep in each other"
            ))),
            false => Ok(()),
        }
    }

    fn push(&mut self, node: Node) -> Result<u8, FilterError> {
        if self.nodes.len() == NODES_MAX {
            let what = format!("a filter has at most {NODES_MAX} parts");
            return Err(self.wrong(what));
        }
        self.nodes.push(node);
        // NODES_MAX fit.
        Ok(u8::try_from(self.nodes.len() - 1).unwrap_or(u8::MAX))
    }

    fn key(&mut self) -> Result<Key, FilterError> {
        let word = self.peek_word();
        if word.is_empty() || is_keyword(word) {
            return Err(self.expected("a key such as hardware.gpu, `not` or `(`"));
        }
        let key = Key::parse(word).map_err(|error| self.wrong(error.to_string()))?;
        self.at += word.len();
        Ok(key)
    }

    fn operator(&mut self) -> Option<Operator> {
        self.skip_space();
        let rest = &self.text[self.at..];
        let operator = Operator::ALL
            .into_iter()
            .find(|operator| rest.starts_with(operator.sign()))?;
        self.at += operator.sign().len();
        Some(operator)
    }

    fn value(&mut self, operator: Operator) -> Result<Value, FilterError> {
        let sign = operator.sign();
        if self.next_char() == Some('=') {
            return Err(self.wrong(format!("expected a value; `{sign}` has no second `=`")));
        }
        let begin = self.at;
        let text = match self.next_char() {
            Some('"') => self.quoted()?,
            _ => {
                let word = self.peek_word();
                if word.is_empty() || is_keyword(word) {
                    return Err(self.expected(&format!("a value after `{sign}`")));
                }
                self.at += word.len();
                word.to_owned()
            }
        };
        let end = std::mem::replace(&mut self.at, begin);
        let value =
            Value::parse(&text).map_err(|error: CapabilityError| self.wrong(error.to_string()))?;
        if operator.is_of_order() && !value.is_ordered() {
            let what = format!("`{sign}` compares numbers and versions, and {text:?} is neither");
            return Err(self.wrong(what));
        }
        self.at = end;
        Ok(value)
    }

    fn quoted(&mut self) -> Result<String, FilterError> {
        let mut text = String::new();
        let mut chars = self.text[self.at..].char_indices().skip(1);
        while let Some((offset, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += offset + 1;
                    return Ok(text);
                }
                '\\' => match chars.next() {
                    Some((_, escaped @ ('"' | '\\'))) => text.push(escaped),
                    _ => {
                        self.at += offset;
                        return Err(self.wrong("expected \\\" or \\\\"));
                    }
                },
                c => text.push(c),
            }
        }
        Err(self.wrong("nothing closes this quotation mark"))
    }

    fn takes_word(&mut self, wanted: &str) -> bool {
        let word = self.peek_word();
        if word == wanted {
            self.at += word.len();
        }
        word == wanted
    }

    fn peek_word(&mut self) -> &'t str {
        self.skip_space();
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        &rest[..end]
    }

    fn next_char(&mut self) -> Option<char> {
        self.skip_space();
        self.text[self.at..].chars().next()
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn expected(&mut self, what: &str) -> FilterError {
        let word = self.peek_word();
        let found = match (word, self.next_char()) {
            ("", None) => "the end".to_owned(),
            ("", Some(c)) => format!("{c:?}"),
            (word, _) => format!("{word:?}"),
        };
        self.wrong(format!("expected {what}, found {found}"))
    }

    fn wrong(&self, what: impl Into<String>) -> FilterError {
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        FilterError {
            column: self.text[..self.at].chars().count() + 1,
            what: what.into(),
            text: self.text.chars().map(shown).collect(),
        }
    }
}
