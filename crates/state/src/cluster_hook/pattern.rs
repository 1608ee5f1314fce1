//! Path patterns: which changes a hook is for, and which ids of a path its key is made from.
//!
//! A pattern looks like a path. In the place of an id it may have `{name}`, which matches any id and binds it, or `*`,
//! which matches any id; a trailing `/**` matches the entity and all that lies below it.

use std::fmt;

use crate::path::{DEPTH_MAX, Path};

/// How a pattern or a key's template is malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A segment of a pattern is not what may stand there.
    #[error("pattern {pattern:?}, segment {segment}: {found:?}: {reason}")]
    Segment {
        /// The whole pattern.
        pattern: String,
        /// Which segment, counted from 1.
        segment: usize,
        /// What stands there.
        found: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A registration without patterns would never run.
    #[error("the registration has no pattern, so it would never run")]
    NoPattern,
    /// A key's template is malformed.
    #[error("key template {template:?}, at {found:?}: {reason}")]
    Template {
        /// The whole template.
        template: String,
        /// The part that is wrong.
        found: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A template uses an id that one of the patterns does not bind.
    #[error("key template {template:?} uses {{{id}}}, which pattern {pattern:?} does not bind")]
    Unbound {
        /// The template.
        template: String,
        /// The id.
        id: String,
        /// The pattern that lacks it.
        pattern: String,
    },
}

/// What stands in the place of an id.
#[derive(Debug, Clone, PartialEq, Eq)]
enum IdPart {
    /// Any id.
    Any,
    /// Any id, under a name.
    Bound(String),
    /// Exactly this id, in its percent-encoded form.
    Literal(String),
}

/// A parsed path pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<(String, IdPart)>,
    below: bool,
}

impl Pattern {
    /// Parses `/stores/{store}/versions/*` and the like.
    ///
    /// # Errors
    /// Which segment is malformed, and why.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        let fault = |segment: usize, found: &str, reason: &'static str| PatternError::Segment {
            pattern: text.to_owned(),
            segment,
            found: found.to_owned(),
            reason,
        };
        let Some(rest) = text.strip_prefix('/') else {
            return Err(fault(1, text, "a pattern begins with a slash"));
        };
        let (rest, below) = match rest.strip_suffix("**") {
            Some("") => return Ok(Pattern { text: text.to_owned(), parts: Vec::new(), below: true }),
            Some(above) if above.ends_with('/') => (&above[..above.len() - 1], true),
            Some(_) | None => (rest, false),
        };
        let segments: Vec<&str> = rest.split('/').collect();
        if segments.len() > DEPTH_MAX * 2 {
            return Err(fault(DEPTH_MAX * 2 + 1, segments[DEPTH_MAX * 2], "no path is as deep as that"));
        }
        if below && segments.len() % 2 == 1 {
            return Err(fault(segments.len() + 1, "**", "`**` stands after an id, not in the place of one"));
        }
        let mut parts: Vec<(String, IdPart)> = Vec::with_capacity(segments.len() / 2);
        for (place, pair) in segments.chunks(2).enumerate() {
            let (at, collection) = (place * 2 + 1, pair[0]);
            let named = !collection.is_empty()
                && collection.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
            if !named {
                return Err(fault(at, collection, "a collection's name has lower-case letters, digits and dashes"));
            }
            let Some(id) = pair.get(1) else {
                return Err(fault(at + 1, "", "a collection is followed by an id, {name} or *"));
            };
            let part = parse_id(id).map_err(|reason| fault(at + 1, id, reason))?;
            if let IdPart::Bound(name) = &part
                && parts.iter().any(|(_, earlier)| matches!(earlier, IdPart::Bound(other) if other == name))
            {
                return Err(fault(at + 1, id, "this name is bound twice"));
            }
            if let IdPart::Literal(encoded) = &part
                && Path::parse(&format!("/{collection}/{encoded}")).is_err()
            {
                return Err(fault(at + 1, id, "not a percent-encoded id in its usual form"));
            }
            parts.push((collection.to_owned(), part));
        }
        Ok(Pattern { text: text.to_owned(), parts, below })
    }

    /// The text that it was parsed from.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The collections from the top down, for the matcher.
    pub(crate) fn collections(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(collection, _)| collection.as_str())
    }

    /// Whether it ends with `/**`.
    pub(crate) fn reaches_below(&self) -> bool {
        self.below
    }

    /// Which pair of a matching path has the id of this name, counted from 0.
    pub(crate) fn position_of(&self, name: &str) -> Option<usize> {
        self.parts.iter().position(|(_, part)| matches!(part, IdPart::Bound(bound) if bound == name))
    }

    /// Whether the pattern covers the path.
    #[must_use]
    pub fn matches(&self, path: &Path) -> bool {
        let fits = if self.below { path.depth() >= self.parts.len() } else { path.depth() == self.parts.len() };
        if !fits || path.depth() == 0 {
            return false;
        }
        let mut segments = path.as_str().split('/').skip(1);
        self.parts.iter().all(|(collection, part)| {
            let same = segments.next() == Some(collection.as_str());
            let id = segments.next();
            same && match part {
                IdPart::Any | IdPart::Bound(_) => true,
                IdPart::Literal(literal) => id == Some(literal.as_str()),
            }
        })
    }

    /// Whether a path whose collections fit also has the ids that the pattern spells out.
    pub(crate) fn ids_match(&self, path: &Path) -> bool {
        let literal_free = self.parts.iter().all(|(_, part)| !matches!(part, IdPart::Literal(_)));
        literal_free || self.matches(path)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

fn parse_id(text: &str) -> Result<IdPart, &'static str> {
    if text.is_empty() {
        return Err("an id is missing");
    }
    if text == "*" {
        return Ok(IdPart::Any);
    }
    if let Some(inner) = text.strip_prefix('{') {
        let Some(name) = inner.strip_suffix('}') else {
            return Err("the brace is not closed");
        };
        return if is_name(name) {
            Ok(IdPart::Bound(name.to_owned()))
        } else {
            Err("a name has lower-case letters, digits and underscores")
        };
    }
    if text.contains(['{', '}', '*']) {
        return Err("an id is bound whole: {name}, or matched whole: *");
    }
    Ok(IdPart::Literal(text.to_owned()))
}

/// Whether a text can name an id in patterns and templates.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k36_malformed_patterns_name_the_segment() {
        for (pattern, segment) in [
            ("stores/{store}", 1),
            ("/", 1),
            ("/stores", 2),
            ("/stores/", 2),
            ("/Stores/{store}", 1),
            ("/stores/{store", 2),
            ("/stores/{}", 2),
            ("/stores/{Store}", 2),
            ("/stores/a*", 2),
            ("/stores/{a}b", 2),
            ("/stores/%zz", 2),
            ("/stores/{a}//x", 3),
            ("/stores/{a}/versions/{a}", 4),
            ("/stores/**", 2),
            ("/stores/{a}**", 2),
            ("/**/stores/{a}", 1),
        ] {
            match Pattern::parse(pattern) {
                Err(PatternError::Segment { segment: found, .. }) => assert_eq!(found, segment, "{pattern}"),
                other => panic!("{pattern}: {other:?}"),
            }
        }
    }

    #[test]
    fn patterns_match_by_collections_depth_and_literal_ids() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("/stores/{s}", &["/stores/a", "/stores/a%20b"], &["/stores/a/versions/1", "/regions/a"]),
            ("/stores/{s}/versions/*", &["/stores/a/versions/1"], &["/stores/a", "/stores/a/pushes/1"]),
            ("/stores/a/versions/*", &["/stores/a/versions/1"], &["/stores/b/versions/1"]),
            ("/stores/{s}/**", &["/stores/a", "/stores/a/versions/1", "/stores/a/b/c/d/e"], &["/regions/a"]),
            ("/**", &["/stores/a", "/stores/a/versions/1"], &[]),
        ];
        for (pattern, matching, other) in table {
            let pattern = Pattern::parse(pattern).unwrap();
            for path in *matching {
                assert!(pattern.matches(&Path::parse(path).unwrap()), "{pattern} {path}");
            }
            for path in *other {
                assert!(!pattern.matches(&Path::parse(path).unwrap()), "{pattern} {path}");
            }
        }
    }
}
