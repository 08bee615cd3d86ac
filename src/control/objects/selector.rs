//! Selectors: which labels an object must have.
//!
//! ```text
//! selector = term *("," term)
//! term     = key "=" value | key "!=" value | key "in" "(" value *("," value) ")"
//!          | key "notin" "(" value *("," value) ")" | key | "!" key
//! ```
//!
//! Spaces between the parts are allowed. A label that is not there differs from every value: `a!=b`
//! and `a notin (b)` hold without `a`. An empty text selects everything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Longest selector in bytes.
const SELECTOR_BYTES_MAX: usize = 1024;
/// Longest key of a label in bytes.
const KEY_BYTES_MAX: usize = 128;
/// Longest value of a label in bytes.
const VALUE_BYTES_MAX: usize = 63;
/// Most labels of one object.
pub const LABELS_MAX: usize = 32;

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    #[error("a selector has at most {SELECTOR_BYTES_MAX} bytes")]
    Length,
    #[error("expected {expected} at position {at} of the selector {text:?}")]
    Syntax { text: String, at: usize, expected: &'static str },
    #[error(transparent)]
    Label(#[from] LabelError),
}

/// Why a text is no label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    #[error(
        "{key:?} is no key of a label: 1 to {KEY_BYTES_MAX} of a-z A-Z 0-9 . _ / -, with a letter \
         or digit at both ends"
    )]
    Key { key: String },
    #[error(
        "{value:?} is no value of label {key}: at most {VALUE_BYTES_MAX} of a-z A-Z 0-9 . _ -, \
         with a letter or digit at both ends"
    )]
    Value { key: String, value: String },
    #[error("an object has at most {LABELS_MAX} labels, not {count}")]
    Count { count: usize },
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    Has(String),
    HasNot(String),
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
}

/// Checks the labels that somebody gives an object.
pub fn check_labels(labels: &Labels) -> Result<(), LabelError> {
    if labels.len() > LABELS_MAX {
        return Err(LabelError::Count { count: labels.len() });
    }
    labels.iter().try_for_each(|(key, value)| {
        check_key(key)?;
        check_value(key, value)
    })
}

fn check_key(key: &str) -> Result<(), LabelError> {
    let fits = (1..=KEY_BYTES_MAX).contains(&key.len()) && is_word(key, "._/-");
    if fits { Ok(()) } else { Err(LabelError::Key { key: key.to_owned() }) }
}

fn check_value(key: &str, value: &str) -> Result<(), LabelError> {
    let fits = value.is_empty() || (value.len() <= VALUE_BYTES_MAX && is_word(value, "._-"));
    let error = || LabelError::Value { key: key.to_owned(), value: value.to_owned() };
    if fits { Ok(()) } else { Err(error()) }
}

/// True for letters, digits and `others`, with a letter or digit at both ends.
fn is_word(text: &str, others: &str) -> bool {
    let ends = [text.chars().next(), text.chars().next_back()];
    ends.iter().all(|end| end.is_some_and(|c| c.is_ascii_alphanumeric()))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

impl Selector {
    /// Parses a selector.
    pub fn parse(text: &str) -> Result<Selector, SelectorError> {
        if text.len() > SELECTOR_BYTES_MAX {
            return Err(SelectorError::Length);
        }
        let mut parser = Parser { text, at: 0 };
        let mut terms = Vec::new();
        if parser.peek().is_none() {
            return Ok(Selector { terms });
        }
        loop {
            terms.push(parser.term()?);
            match parser.peek() {
                None => return Ok(Selector { terms }),
                Some(',') => parser.take(),
                Some(_) => return Err(parser.expected("a comma or the end")),
            }
        }
    }

    /// True when these labels are selected.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.terms.iter().all(|term| match term {
            Term::Has(key) => labels.contains_key(key),
            Term::HasNot(key) => !labels.contains_key(key),
            Term::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Term::NotIn(key, values) => {
                !labels.get(key).is_some_and(|value| values.contains(value))
            }
        })
    }
}

/// The selector in its shortest form, which [`Selector::parse`] understands.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, term) in self.terms.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            let (key, word, values) = match term {
                Term::Has(key) => {
                    f.write_str(key)?;
                    continue;
                }
                Term::HasNot(key) => {
                    write!(f, "!{key}")?;
                    continue;
                }
                Term::In(key, values) => (key, "in", values),
                Term::NotIn(key, values) => (key, "notin", values),
            };
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            match (word, values.as_slice()) {
                ("in", [value]) => write!(f, "{key}={value}")?,
                ("notin", [value]) => write!(f, "{key}!={value}")?,
                _ => write!(f, "{key} {word} ({})", values.join(","))?,
            }
        }
        Ok(())
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    /// The next character that is no space; nothing is taken but spaces.
    fn peek(&mut self) -> Option<char> {
        let rest = self.text[self.at..].trim_start_matches(' ');
        self.at = self.text.len() - rest.len();
        rest.chars().next()
    }

    /// Takes the character that [`Parser::peek`] has shown.
    fn take(&mut self) {
        self.at += self.text[self.at..].chars().next().map_or(0, char::len_utf8);
    }

    /// The next letters, digits and signs of a label; may be empty.
    fn word(&mut self) -> &'a str {
        self.peek();
        let rest = &self.text[self.at..];
        let is_in = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
        let word = &rest[..rest.find(|c| !is_in(c)).unwrap_or(rest.len())];
        self.at += word.len();
        word
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let word = self.word();
        if word.is_empty() {
            return Err(self.expected("the key of a label"));
        }
        check_key(word)?;
        Ok(word.to_owned())
    }

    fn value(&mut self, key: &str) -> Result<String, SelectorError> {
        let word = self.word();
        check_value(key, word)?;
        Ok(word.to_owned())
    }

    fn term(&mut self) -> Result<Term, SelectorError> {
        if self.peek() == Some('!') {
            self.take();
            return Ok(Term::HasNot(self.key()?));
        }
        let key = self.key()?;
        match self.peek() {
            Some('=') => {
                self.take();
                let value = self.value(&key)?;
                Ok(Term::In(key, BTreeSet::from([value])))
            }
            Some('!') => {
                self.take();
                self.one('=', "`=` after `!`")?;
                let value = self.value(&key)?;
                Ok(Term::NotIn(key, BTreeSet::from([value])))
            }
            Some(c) if c.is_ascii_alphabetic() => {
                let before = self.at;
                match self.word() {
                    "in" => Ok(Term::In(key.clone(), self.values(&key)?)),
                    "notin" => Ok(Term::NotIn(key.clone(), self.values(&key)?)),
                    _ => {
                        self.at = before;
                        Err(self.expected("`=`, `!=`, `in` or `notin`"))
                    }
                }
            }
            _ => Ok(Term::Has(key)),
        }
    }

    /// A list of values in parentheses.
    fn values(&mut self, key: &str) -> Result<BTreeSet<String>, SelectorError> {
        self.one('(', "`(`")?;
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value(key)?);
            match self.peek() {
                Some(',') => self.take(),
                Some(')') => {
                    self.take();
                    return Ok(values);
                }
                _ => return Err(self.expected("`,` or `)`")),
            }
        }
    }

    fn one(&mut self, wanted: char, expected: &'static str) -> Result<(), SelectorError> {
        if self.peek() != Some(wanted) {
            return Err(self.expected(expected));
        }
        self.take();
        Ok(())
    }

    fn expected(&self, expected: &'static str) -> SelectorError {
        SelectorError::Syntax { text: self.text.to_owned(), at: self.at, expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn selectors_select_what_they_say() {
        let of = labels(&[("zone", "a"), ("team/tier", "gold"), ("empty", "")]);
        for (text, selects) in [
            ("", true),
            ("  ", true),
            ("zone=a", true),
            ("zone = a , team/tier", true),
            ("zone=b", false),
            ("zone!=b", true),
            ("zone!=a", false),
            ("rack!=1", true),
            ("zone in (a,b)", true),
            ("zone in ( b , c )", false),
            ("zone notin (b)", true),
            ("rack notin (b)", true),
            ("rack", false),
            ("!rack", true),
            ("!zone", false),
            ("empty=", true),
            ("empty in (,x)", true),
            ("zone=a,!rack,team/tier in (gold)", true),
            ("zone=a,rack", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().selects(&of), selects, "{text}");
        }
    }

    #[test]
    fn wrong_selectors_are_refused_with_the_place() {
        for (text, says) in [
            (",", "the key of a label at position 0"),
            ("a,", "the key of a label at position 2"),
            ("a!b", "`=` after `!` at position 2"),
            ("a b", "`=`, `!=`, `in` or `notin` at position 2"),
            ("a in b", "`(` at position 5"),
            ("a in (b", "`,` or `)` at position 7"),
            ("a=b c", "a comma or the end at position 4"),
            ("a==b", "a comma or the end at position 2"),
            ("ä=b", "the key of a label at position 0"),
            ("-a=b", "is no key"),
            ("a=b/c", "is no value"),
        ] {
            let error = Selector::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        assert_eq!(Selector::parse(&"a,".repeat(600)), Err(SelectorError::Length));
    }

    #[test]
    fn labels_are_checked() {
        check_labels(&labels(&[("a.b/c-d_e", "x.Y-z_1"), ("a", "")])).unwrap();
        for (key, value) in [("", "a"), ("a b", "a"), ("/a", "b"), ("a", "b/c"), ("a", "-")] {
            assert!(check_labels(&labels(&[(key, value)])).is_err(), "{key}={value}");
        }
        let many = (0..=LABELS_MAX).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(check_labels(&many), Err(LabelError::Count { count: LABELS_MAX + 1 }));
    }

    /// Few keys and values, so that terms and labels meet.
    fn term() -> impl Strategy<Value = Term> {
        let values = || proptest::collection::btree_set("[xyz]|x-y|", 1..3);
        prop_oneof![
            "[abc]".prop_map(Term::Has),
            "[abc]".prop_map(Term::HasNot),
            ("[abc]", values()).prop_map(|(key, values)| Term::In(key, values)),
            ("[abc]", values()).prop_map(|(key, values)| Term::NotIn(key, values)),
        ]
    }

    proptest! {
        #[test]
        fn a_selector_survives_its_text(terms in proptest::collection::vec(term(), 0..5)) {
            let selector = Selector { terms };
            prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
        }

        #[test]
        fn opposite_terms_select_opposite_labels(
            term in term(),
            labels in proptest::collection::btree_map("[abc]", "[xyz]|x-y|", 0..3),
        ) {
            let opposite = match term.clone() {
                Term::Has(key) => Term::HasNot(key),
                Term::HasNot(key) => Term::Has(key),
                Term::In(key, values) => Term::NotIn(key, values),
                Term::NotIn(key, values) => Term::In(key, values),
            };
            let selects = |term| Selector { terms: vec![term] }.selects(&labels);
            prop_assert_ne!(selects(term.clone()), selects(opposite.clone()));
            let both = Selector { terms: vec![term, opposite] };
            prop_assert!(!both.selects(&labels));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-c =!,()ä/-]{0,24}|.{0,24}") {
            if let Ok(selector) = Selector::parse(&text) {
                prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
            }
        }
    }
}
