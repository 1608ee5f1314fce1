//! What a request is about, and whether that belongs to a team's or a region's token.
//!
//! Whether what is named exists makes no difference to the answer: a team learns nothing of other teams' names.

use axum::extract::RawPathParams;
use bytes::Bytes;
use serde::Deserialize;
use tidegate_api::{AuditEntity, Role};
use tidegate_lifecycle::Pause;
use tidegate_rollout::entities::{PushName, Region, Store};
use tidegate_state::{Entity, Path as TreePath, Ref, Root, Snapshot};

use super::artifacts;
use super::audit::{Asked, asked_for, of_address};
use super::caller::Bearer;
use super::refusal::Refusal;
use super::table::{Rule, Scope};
use crate::http::errors::ApiError;
use crate::http::extract::parse_json;

/// What of a request says what it is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject {
    path: Vec<(String, String)>,
    query: Parameters,
    body: Named,
    /// What it would make, for the audit trail alone.
    asked_for: Vec<AuditEntity>,
}

/// The parameters of the address that name something.
#[derive(Clone, Debug, Default, Deserialize)]
struct Parameters {
    store: Option<String>,
    prefix: Option<String>,
}

/// The fields of a body that name something.
#[derive(Clone, Debug, Default, Deserialize)]
struct Named {
    id: Option<String>,
    store: Option<String>,
    name: Option<String>,
    team: Option<String>,
    settings: Option<NamedSettings>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct NamedSettings {
    team: Option<String>,
}

/// Whether a request's body says what it is about.
pub(super) fn is_in_body(rule: &Rule) -> bool {
    matches!(rule.scope, Scope::NewStore | Scope::NewPush | Scope::StoreSettings) || made_by(rule).is_some()
}

/// What a route makes of which only the body says what it is.
fn made_by(rule: &Rule) -> Option<Asked> {
    match (rule.method, rule.path) {
        ("post", "/v1/tokens") => Some(Asked::Token),
        ("post", "/v1/freezes") => Some(Asked::Freeze),
        _ => None,
    }
}

impl Subject {
    /// Reads what the address says. What can't be read names nothing; the route itself says so.
    pub(super) fn of_address(path: Option<&RawPathParams>, uri: &axum::http::Uri) -> Self {
        let path = path.into_iter().flat_map(|path| path.iter());
        let query = axum::extract::Query::<Parameters>::try_from_uri(uri);
        Self {
            path: path.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            query: query.map(|query| query.0).unwrap_or_default(),
            body: Named::default(),
            asked_for: Vec::new(),
        }
    }

    /// Adds what the body says. A field that stands there twice is an error, here as in the route itself, so that both read
    /// the same.
    pub(super) fn with_body(mut self, rule: &Rule, body: &Bytes) -> Result<Self, ApiError> {
        if let Some(kind) = made_by(rule) {
            // It decides nothing: what can't be read is for the route to refuse.
            self.asked_for = asked_for(kind, body);
            return Ok(self);
        }
        self.body = parse_json(body)?;
        Ok(self)
    }

    fn in_path(&self, name: &str) -> Option<&str> {
        self.path.iter().find(|(there, _)| there == name).map(|(_, value)| value.as_str())
    }

    /// Whether all that it names is there. What has no form of a name is for the route to refuse.
    pub(super) fn is_known(&self, snapshot: &Snapshot) -> bool {
        fn knows<E>(name: Option<&str>, snapshot: &Snapshot) -> bool
        where
            E: Entity<Parent = Root, Id = String>,
        {
            let place = name.and_then(|name| Ref::<E>::root(name).ok());
            place.is_none_or(|place| snapshot.contains(place.path()))
        }
        let prefix = self.query.prefix.as_deref();
        let watched = |collection| prefix.and_then(|prefix| owner_in(prefix, collection));
        let stores = [self.in_path("store"), self.query.store.as_deref(), self.body.store.as_deref()];
        stores.into_iter().all(|store| knows::<Store>(store, snapshot))
            && knows::<PushName>(self.in_path("push"), snapshot)
            && knows::<Pause>(self.in_path("pause"), snapshot)
            && knows::<Region>(self.in_path("region"), snapshot)
            && knows::<Store>(watched(Store::COLLECTION).as_deref(), snapshot)
            && knows::<Region>(watched(Region::COLLECTION).as_deref(), snapshot)
    }

    /// The store that it is about, for the audit trail.
    pub(super) fn store(&self, rule: &Rule, snapshot: &Snapshot) -> Option<String> {
        match rule.scope {
            Scope::NewPush => self.body.store.clone(),
            Scope::NewStore => self.body.name.clone(),
            Scope::Pause => store_of_pause(self.in_path("pause")?, snapshot),
            _ => match (self.in_path("store"), self.in_path("push")) {
                (Some(store), _) => Some(store.to_owned()),
                (None, Some(push)) => store_of_push(push, snapshot),
                (None, None) => None,
            },
        }
    }

    /// What else it names, for the audit trail.
    pub(super) fn named(&self, rule: &Rule) -> Vec<AuditEntity> {
        let push = self.body.id.as_deref().filter(|_| rule.scope == Scope::NewPush);
        of_address(&self.path, push)
    }

    /// What it would make that has no id in the address, for the audit trail where nothing was made.
    pub(super) fn asked_for(&self) -> Vec<AuditEntity> {
        self.asked_for.clone()
    }

    /// Whether it is about what is the bearer's.
    pub(super) fn check(&self, rule: &Rule, bearer: &Bearer, snapshot: &Snapshot) -> Result<(), Refusal> {
        match bearer.role {
            Role::Team => self.check_team(rule, bearer, snapshot),
            Role::Region => self.check_region(rule, bearer, snapshot),
            Role::Viewer | Role::Operator | Role::Admin | Role::Reader | Role::Unknown => Ok(()),
        }
    }

    fn check_team(&self, rule: &Rule, bearer: &Bearer, snapshot: &Snapshot) -> Result<(), Refusal> {
        let team = bearer.team.as_deref().unwrap_or_default();
        let refused = |about: String| {
            let owner = format!("team `{team}`");
            Err(Refusal::Scope { name: bearer.name.clone(), owner, about })
        };
        let own = |store: Option<&str>, what: &str, name: Option<&str>| {
            if store.is_some_and(|store| is_of_team(store, team, snapshot)) {
                return Ok(());
            }
            refused(match name {
                Some(name) => format!("{what} `{name}` is none of its own"),
                None => format!("no {what} of its own is named"),
            })
        };
        let same_team = |named: Option<&String>| match named {
            Some(named) if named != team => refused(format!("team `{named}` is another")),
            _ => Ok(()),
        };
        match rule.scope {
            Scope::Nothing => Ok(()),
            Scope::Store => own(self.in_path("store"), "store", self.in_path("store")),
            Scope::StoreSettings => {
                own(self.in_path("store"), "store", self.in_path("store"))?;
                same_team(self.body.team.as_ref())
            }
            Scope::Push => {
                let push = self.in_path("push");
                own(push.and_then(|push| store_of_push(push, snapshot)).as_deref(), "push", push)
            }
            Scope::Pause => {
                let pause = self.in_path("pause");
                own(pause.and_then(|pause| store_of_pause(pause, snapshot)).as_deref(), "pause", pause)
            }
            Scope::NewStore => same_team(self.body.settings.as_ref().and_then(|settings| settings.team.as_ref())),
            Scope::NewPush => own(self.body.store.as_deref(), "store", self.body.store.as_deref()),
            Scope::Listed => match self.query.store.as_deref() {
                Some(store) => own(Some(store), "store", Some(store)),
                None => Ok(()),
            },
            Scope::Watched => {
                let prefix = self.query.prefix.as_deref();
                let store = prefix.and_then(|prefix| owner_in(prefix, Store::COLLECTION));
                own(store.as_deref(), "path", prefix)
            }
            Scope::Installation | Scope::Region | Scope::Artifact => {
                refused("this is about more than a team".to_owned())
            }
        }
    }

    fn check_region(&self, rule: &Rule, bearer: &Bearer, snapshot: &Snapshot) -> Result<(), Refusal> {
        let region = bearer.region.as_deref().unwrap_or_default();
        if rule.scope == Scope::Artifact {
            let artifact = self.in_path("artifact").unwrap_or_default();
            if !region.is_empty() && artifacts::is_regions(artifact, region, snapshot)? {
                return Ok(());
            }
            // Whether there is such an artifact is none of its business.
            let about = "this is the artifact of no version that it was told to hold".to_owned();
            return Err(Refusal::Scope { name: bearer.name.clone(), owner: format!("region `{region}`"), about });
        }
        let named = match rule.scope {
            Scope::Nothing => return Ok(()),
            Scope::Region => self.in_path("region").map(str::to_owned),
            Scope::Watched => self.query.prefix.as_deref().and_then(|prefix| owner_in(prefix, Region::COLLECTION)),
            _ => None,
        };
        if !region.is_empty() && named.as_deref() == Some(region) {
            return Ok(());
        }
        let about = match named {
            Some(named) => format!("region `{named}` is another"),
            None => "this is not within it".to_owned(),
        };
        Err(Refusal::Scope { name: bearer.name.clone(), owner: format!("region `{region}`"), about })
    }
}

/// Whether a store is one of a team's. One without a team is nobody's.
pub(super) fn is_of_team(store: &str, team: &str, snapshot: &Snapshot) -> bool {
    let place = Ref::<Store>::root(store).ok();
    let store = place.and_then(|place| snapshot.get(&place).ok().flatten());
    !team.is_empty() && store.is_some_and(|store| store.team.as_deref() == Some(team))
}

fn store_of_push(push: &str, snapshot: &Snapshot) -> Option<String> {
    let place: Ref<PushName> = Ref::root(push).ok()?;
    snapshot.get(&place).ok().flatten().map(|name| name.store.clone())
}

fn store_of_pause(pause: &str, snapshot: &Snapshot) -> Option<String> {
    let place: Ref<Pause> = Ref::root(pause).ok()?;
    snapshot.get(&place).ok().flatten().map(|pause| pause.store.clone())
}

/// The entity at the top of the tree within which a path lies, if that is of this collection. The path may be that of an
/// entity or of a collection below one.
fn owner_in(prefix: &str, collection: &str) -> Option<String> {
    let prefix = prefix.trim_end_matches('/');
    let path = match TreePath::parse(prefix) {
        Ok(path) => path,
        // The path of a collection: one with one more id. At the top there is nobody that it lies within.
        Err(_) => TreePath::parse(&format!("{prefix}/x")).ok().filter(|path| path.depth() > 1)?,
    };
    let (first, id) = path.pairs().next()?;
    (first == collection).then(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_lies_within_an_entity_only_if_it_names_one() {
        let store = |prefix: &str| owner_in(prefix, "stores");
        assert_eq!(store("/stores/a").as_deref(), Some("a"));
        assert_eq!(store("/stores/a/").as_deref(), Some("a"));
        assert_eq!(store("/stores/a/pushes").as_deref(), Some("a"));
        assert_eq!(store("/stores/a/pushes/p").as_deref(), Some("a"));
        assert_eq!(store("/stores/a%2Fb").as_deref(), Some("a/b"));
        for prefix in ["", "/", "/stores", "/stores/", "/regions/a", "stores/a", "//stores/a", "/tokens/a"] {
            assert_eq!(store(prefix), None, "{prefix}");
        }
    }

    #[test]
    fn a_body_that_names_a_thing_twice_names_nothing() {
        let start_push = crate::access::table::rule("post", "/v1/pushes").unwrap();
        let body = |text: &'static str| Subject::default().with_body(start_push, &Bytes::from_static(text.as_bytes()));
        assert_eq!(body(r#"{"store": "a", "id": "p"}"#).unwrap().body.store.as_deref(), Some("a"));
        assert!(body(r#"{"store": "a", "store": "b"}"#).is_err());
        assert!(body(r#"{"settings": {"team": "a", "team": "b"}}"#).is_err());
        assert!(body("[]").is_err());
        assert!(body(r#"{"store": 7}"#).is_err());
    }
}
