//! What a request wanted to make, read from its body: for entries of what was refused, in which nothing was made that could be
//! named instead.

use serde_json::Value;
use tidegate_api::{AuditChange, AuditEntity, AuditField};

use super::made::named;
use super::scrub::scrubbed;

/// What was to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::access) enum Asked {
    Token,
    Freeze,
}

/// What the body asks for; nothing where it can't be read. Only what is named here is kept of it.
pub(in crate::access) fn asked_for(kind: Asked, body: &[u8]) -> Vec<AuditEntity> {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return Vec::new() };
    let text = |name: &str| body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let field = |field: &str, value: Option<String>| {
        let after = Some(scrubbed(&value?));
        Some(AuditField { field: field.to_owned(), before: None, after, hidden: false })
    };
    match kind {
        Asked::Token => {
            let fields = ["role", "team", "region"].into_iter();
            let fields: Vec<_> = fields.filter_map(|name| field(name, text(name).map(str::to_owned))).collect();
            let name = text("name").map(scrubbed);
            if name.is_none() && fields.is_empty() {
                return Vec::new();
            }
            // It has no id: it was not made.
            vec![AuditEntity { name, fields, ..named("token", "(not made)".to_owned(), AuditChange::Named) }]
        }
        Asked::Freeze => {
            let scope = body.get("scope");
            let within = |kind: &str| scope.and_then(|scope| scope.get(kind)).and_then(Value::as_str).map(scrubbed);
            let store = within("store");
            let said = match (&store, within("region"), scope.and_then(Value::as_str)) {
                (Some(store), _, _) => Some(format!("store {store}")),
                (None, Some(region), _) => Some(format!("region {region}")),
                (None, None, Some("all")) => Some("everything".to_owned()),
                (None, None, _) => None,
            };
            let id = text("id").map_or_else(|| "(not named)".to_owned(), scrubbed);
            let fields = field("scope", said).into_iter().collect();
            vec![AuditEntity { store, fields, ..named("freeze", id, AuditChange::Named) }]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(entity: &AuditEntity) -> Vec<(&str, &str)> {
        entity.fields.iter().map(|field| (field.field.as_str(), field.after.as_deref().unwrap())).collect()
    }

    #[test]
    fn what_was_to_be_made_is_named_and_nothing_else_is_kept() {
        let secret = format!("tg_{}_{}", "0a".repeat(8), "0b".repeat(32));
        let body = format!(r#"{{"name": "x {secret}", "role": "region", "region": "b", "password": "hush"}}"#);
        let token = &asked_for(Asked::Token, body.as_bytes())[0];
        assert_eq!(fields(token), [("role", "region"), ("region", "b")]);
        assert!(
            !format!("{token:?}").contains(&"0b".repeat(32)) && !format!("{token:?}").contains("hush"),
            "{token:?}"
        );
        for (scope, store, said) in [
            (r#"{"store": "s"}"#, Some("s"), "store s"),
            (r#"{"region": "b"}"#, None, "region b"),
            (r#""all""#, None, "everything"),
        ] {
            let freeze = asked_for(Asked::Freeze, format!(r#"{{"id": "f", "scope": {scope}}}"#).as_bytes());
            assert_eq!((freeze[0].id.as_str(), freeze[0].store.as_deref()), ("f", store));
            assert_eq!(fields(&freeze[0]), [("scope", said)]);
        }
    }

    #[test]
    fn what_has_another_form_names_nothing_that_it_does_not_say() {
        for body in ["", "[]", "{", r#"{"role": 7}"#] {
            assert_eq!(asked_for(Asked::Token, body.as_bytes()), [], "{body}");
        }
        assert_eq!(asked_for(Asked::Freeze, br#"{"scope": {"store": 7}}"#)[0].fields, []);
    }
}
