//! Key templates: which requests of a hook belong together, and so run one after the other.
//!
//! Invariant: different ids never make one key. Ids come into a key in their percent-encoded form, and whatever the
//! template itself puts between two ids is escaped within them, so that a key can be taken apart again in one way only.

use std::borrow::Cow;
use std::fmt::Write as _;

use percent_encoding::percent_decode_str;

use super::pattern::{Pattern, PatternError, is_name};
use crate::path::Path;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Id(String),
}

/// A parsed key template: `{store}`, `{region}/{store}`, or a text without ids for one key in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    text: String,
    pieces: Vec<Piece>,
    /// What is escaped within ids, beyond what percent-encoding escapes anyway.
    separators: Vec<u8>,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Which part is malformed, and why.
    pub(crate) fn parse(text: &str) -> Result<Template, PatternError> {
        let fault =
            |found: &str, reason| PatternError::Template { template: text.to_owned(), found: found.to_owned(), reason };
        let mut pieces: Vec<Piece> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(inner) = rest.strip_prefix('{') {
                let Some((name, behind)) = inner.split_once('}') else {
                    return Err(fault(rest, "the brace is not closed"));
                };
                if !is_name(name) {
                    return Err(fault(name, "a name has lower-case letters, digits and underscores"));
                }
                if matches!(pieces.last(), Some(Piece::Id(_))) {
                    return Err(fault(rest, "two ids need something between them"));
                }
                pieces.push(Piece::Id(name.to_owned()));
                rest = behind;
            } else {
                let end = rest.find('{').unwrap_or(rest.len());
                let (literal, behind) = rest.split_at(end);
                if literal.contains(['%', '}'])
                    || !literal.is_ascii()
                    || literal.contains(|c: char| c.is_ascii_control())
                {
                    return Err(fault(literal, "the text around ids is printable ASCII without % and }"));
                }
                let between = !pieces.is_empty() && !behind.is_empty();
                if between && literal.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                    return Err(fault(literal, "between two ids stands more than letters and digits"));
                }
                pieces.push(Piece::Literal(literal.to_owned()));
                rest = behind;
            }
        }
        if pieces.is_empty() {
            return Err(fault("", "a key is not empty"));
        }
        let mut separators: Vec<u8> = Vec::new();
        for piece in &pieces {
            if let Piece::Literal(literal) = piece {
                separators.extend(literal.bytes().filter(|byte| !byte.is_ascii_alphanumeric()));
            }
        }
        separators.sort_unstable();
        separators.dedup();
        Ok(Template { text: text.to_owned(), pieces, separators })
    }

    /// Fits the template to a pattern.
    ///
    /// # Errors
    /// The id that the pattern does not bind.
    pub(crate) fn bind(&self, pattern: &Pattern) -> Result<BoundTemplate, PatternError> {
        let mut pieces = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            pieces.push(match piece {
                Piece::Literal(text) => BoundPiece::Literal(text.clone()),
                Piece::Id(name) => match pattern.position_of(name) {
                    Some(pair) => BoundPiece::Id { name: name.clone(), pair },
                    None => {
                        return Err(PatternError::Unbound {
                            template: self.text.clone(),
                            id: name.clone(),
                            pattern: pattern.as_str().to_owned(),
                        });
                    }
                },
            });
        }
        Ok(BoundTemplate { pieces, separators: self.separators.clone() })
    }

    /// Takes a key apart: the decoded ids by name.
    pub(crate) fn ids<'k>(&self, key: &'k str) -> Vec<(String, Cow<'k, str>)> {
        let mut found = Vec::new();
        let mut rest = key;
        for (place, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Literal(text) => rest = rest.strip_prefix(text.as_str()).unwrap_or(rest),
                Piece::Id(name) => {
                    let end = match self.pieces.get(place + 1) {
                        Some(Piece::Literal(text)) if place + 2 == self.pieces.len() => {
                            rest.len().saturating_sub(text.len())
                        }
                        // The separator within the literal occurs in no id, so its first occurrence is its own.
                        Some(Piece::Literal(text)) => {
                            let within = text.bytes().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(0);
                            let separator = text.as_bytes()[within];
                            let at = rest.bytes().position(|byte| byte == separator).unwrap_or(rest.len());
                            at.saturating_sub(within)
                        }
                        Some(Piece::Id(_)) | None => rest.len(),
                    };
                    let (id, behind) = rest.split_at(end);
                    found.push((name.clone(), percent_decode_str(id).decode_utf8_lossy()));
                    rest = behind;
                }
            }
        }
        found
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum BoundPiece {
    Literal(String),
    Id { name: String, pair: usize },
}

/// A template fitted to one pattern: makes keys out of paths that match it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BoundTemplate {
    pieces: Vec<BoundPiece>,
    separators: Vec<u8>,
}

impl BoundTemplate {
    /// The key of a path that the pattern matches. Borrows from the path where the key is one id.
    pub(crate) fn key<'p>(&self, path: &'p Path) -> Cow<'p, str> {
        if let [BoundPiece::Id { pair, .. }] = &self.pieces[..] {
            return Cow::Borrowed(encoded_id(path, *pair));
        }
        let mut key = String::new();
        for piece in &self.pieces {
            match piece {
                BoundPiece::Literal(text) => key.push_str(text),
                BoundPiece::Id { pair, .. } => {
                    for byte in encoded_id(path, *pair).bytes() {
                        if self.separators.binary_search(&byte).is_ok() {
                            let _ = write!(key, "%{byte:02X}");
                        } else {
                            key.push(char::from(byte));
                        }
                    }
                }
            }
        }
        Cow::Owned(key)
    }
}

fn encoded_id(path: &Path, pair: usize) -> &str {
    path.as_str().split('/').nth(pair * 2 + 2).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn k36_a_malformed_template_is_refused_with_the_part_that_is_wrong() {
        for template in ["", "{a", "{a}{b}", "{a}x{b}", "{A}", "{}", "a%{b}", "a}b", "é{a}"] {
            assert!(matches!(Template::parse(template), Err(PatternError::Template { .. })), "{template}");
        }
    }

    #[test]
    fn k36_a_template_with_an_id_that_a_pattern_lacks_names_pattern_and_id() {
        let template = Template::parse("{store}").unwrap();
        let error = template.bind(&Pattern::parse("/regions/{region}/reports/*").unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "key template \"{store}\" uses {store}, which pattern \"/regions/{region}/reports/*\" does not bind"
        );
    }

    #[test]
    fn k37_two_patterns_give_one_key() {
        let template = Template::parse("{store}").unwrap();
        let pushes = template.bind(&Pattern::parse("/stores/{store}/pushes/{push}").unwrap()).unwrap();
        let reports = template.bind(&Pattern::parse("/regions/*/reports/{store}").unwrap()).unwrap();
        assert_eq!(pushes.key(&Path::parse("/stores/a%20b/pushes/9").unwrap()), "a%20b");
        assert_eq!(reports.key(&Path::parse("/regions/x/reports/a%20b").unwrap()), "a%20b");
    }

    #[test]
    fn a_template_without_ids_makes_one_key_for_all() {
        let template = Template::parse("all").unwrap();
        let bound = template.bind(&Pattern::parse("/stores/*").unwrap()).unwrap();
        assert_eq!(bound.key(&Path::parse("/stores/x").unwrap()), "all");
        assert!(template.ids("all").is_empty());
    }

    proptest! {
        #[test]
        fn k36_different_ids_never_make_one_key(
            pairs in proptest::collection::vec(("[-%/a-c.]{1,5}", "[-%/a-c.]{1,5}"), 2..40),
            text in prop_oneof![Just("{a}-{b}"), Just("x{a}/{b}"), Just("{b}-.{a}y"), Just("{a}c-{b}")],
        ) {
            let template = Template::parse(text).unwrap();
            let bound = template.bind(&Pattern::parse("/stores/{a}/versions/{b}").unwrap()).unwrap();
            let mut keys: HashMap<String, (String, String)> = HashMap::new();
            for (a, b) in pairs {
                let path = Path::root().child("stores", &a).unwrap().child("versions", &b).unwrap();
                let key = bound.key(&path).into_owned();
                let ids: HashMap<_, _> = template.ids(&key).into_iter().map(|(n, id)| (n, id.into_owned())).collect();
                prop_assert_eq!(&ids["a"], &a, "key {}", key);
                prop_assert_eq!(&ids["b"], &b, "key {}", key);
                if let Some(earlier) = keys.insert(key, (a.clone(), b.clone())) {
                    prop_assert_eq!(earlier, (a, b));
                }
            }
        }
    }
}
