//! What of a text may be kept: bounded, in one line, and without what looks like a secret.

use std::borrow::Cow;

/// The longest value that is kept, in characters.
const VALUE_CHARS_MAX: usize = 200;

/// What stands in place of a secret.
const HIDDEN: &str = "***";

/// Settings of shipped hooks that may hold a secret.
const MAY_BE_SECRET: &[(&str, &str)] = &[("exec", "arguments")];

/// Hooks that we ship, whose settings are known; of those of others nothing is.
const SHIPPED: &[&str] = &["data-quality", "exec", "health-check", "region-order"];

/// Whether a hook's setting may be shown. Denied unless it is known to hold no secret: what a hook of one's own is told may be
/// anything.
pub(super) fn is_shown(hook: &str, key: &str) -> bool {
    matches!(key, "mode" | "on_failure") || SHIPPED.contains(&hook) && !MAY_BE_SECRET.contains(&(hook, key))
}

/// A text as it is kept.
pub(super) fn scrubbed(text: &str) -> String {
    // Before it is cut: half a secret is no better.
    let line: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let clean: String = line.split_inclusive(is_between).map(without_secret).collect();
    let mut short: String = clean.chars().take(VALUE_CHARS_MAX).collect();
    if short.len() < clean.len() {
        short.push('…');
    }
    short
}

fn is_between(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '"' | '\'' | ',' | ';' | '(' | ')' | '<' | '>' | '[' | ']' | '{' | '}')
}

/// One word, with what ends it.
fn without_secret(word: &str) -> Cow<'_, str> {
    if let Some(place) = word.find("tg_") {
        // A token of ours: its id is no secret.
        let (before, token) = word.split_at(place);
        let mut parts = token.splitn(3, '_');
        if let (Some(prefix), Some(id), Some(secret)) = (parts.next(), parts.next(), parts.next()) {
            let end: String = secret.chars().skip_while(char::is_ascii_alphanumeric).collect();
            return Cow::Owned(format!("{before}{prefix}_{id}_{HIDDEN}{end}"));
        }
    }
    let Some((scheme, rest)) = word.split_once("://") else { return Cow::Borrowed(word) };
    // Of an address: no user, no password, no parameters.
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority.to_owned(), |(_, host)| format!("{HIDDEN}@{host}"));
    let path = match path.split_once('?') {
        Some((path, parameters)) => {
            let end: String = parameters.chars().filter(|letter| is_between(*letter)).collect();
            format!("{path}?{HIDDEN}{end}")
        }
        None => path.to_owned(),
    };
    Cow::Owned(format!("{scheme}://{host}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_hidden_and_the_rest_is_kept() {
        let token = format!("tg_{}_{}", "0a".repeat(8), "0b".repeat(32));
        for (text, kept) in [
            ("a bad push", "a bad push".to_owned()),
            (&*format!("see {token}, please"), format!("see tg_{}_***, please", "0a".repeat(8))),
            (&*format!("token={token}"), format!("token=tg_{}_***", "0a".repeat(8))),
            ("https://user:pass@host/p?token=x rest", "https://***@host/p?*** rest".to_owned()),
            ("postgres://u:p@db:5432/x", "postgres://***@db:5432/x".to_owned()),
            ("http://host:80/ok", "http://host:80/ok".to_owned()),
            ("http://host?key=7", "http://host?***".to_owned()),
            ("two\nlines", "two lines".to_owned()),
            ("tg_", "tg_".to_owned()),
        ] {
            assert_eq!(scrubbed(text), kept);
        }
    }

    #[test]
    fn a_long_text_is_cut_and_a_secret_across_the_cut_is_hidden() {
        assert_eq!(scrubbed(&"x".repeat(VALUE_CHARS_MAX)).chars().count(), VALUE_CHARS_MAX);
        assert_eq!(scrubbed(&"x".repeat(10_000)).chars().count(), VALUE_CHARS_MAX + 1);
        let across = format!("{} tg_{}_{}", "x".repeat(VALUE_CHARS_MAX - 30), "0a".repeat(8), "0b".repeat(32));
        let kept = scrubbed(&across);
        assert!(kept.ends_with("_***") && !kept.contains("0b"), "{kept}");
        let address = format!("{} https://user:secret@host/", "x".repeat(VALUE_CHARS_MAX - 14));
        assert!(!scrubbed(&address).contains("secret"));
    }

    #[test]
    fn settings_are_shown_only_where_they_are_known_to_hold_no_secret() {
        assert!(is_shown("region-order", "delay") && is_shown("mine", "mode"));
        assert!(!is_shown("mine", "anything") && !is_shown("exec", "arguments"));
        let registry = tidegate_lifecycle::Registry::shipped();
        assert_eq!(registry.names().collect::<std::collections::BTreeSet<_>>(), SHIPPED.iter().copied().collect());
    }
}
