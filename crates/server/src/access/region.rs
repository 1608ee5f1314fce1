//! Who may ask an agent or a node.
//!
//! Neither can ask the database. What they know of tokens the control plane hands out to the region's agent, and the agent to
//! its nodes; each keeps it on its own disk, so that it judges on with the control plane gone, also after a restart. A token
//! that was revoked meanwhile opens what it did until the news comes; one that expires ends by the clock.
//!
//! Without any word from the control plane there is the region's own token, which lies in a file beside the process: it opens
//! what a region's token opens, and no data.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::extract::{FromRequestParts, RawPathParams, Request, State};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use tidegate_api::Role;
use tidegate_api::agent::{RegionAccess, RegionToken};
use tidegate_rollout::region::TokenFile;
use tidegate_state::Clock;
use tokio::sync::{Notify, watch};

use super::Door;
use super::caller::{Bearer, presented};
use super::entrance::{Guarded, check_role, rule_of, who_asks};
use super::refusal::Refusal;
use super::table::{Rule, Scope, Who};
use super::token::SecretDigest;
use crate::agent::secret::is_shown;
use crate::data_folder::write_private;
use crate::http::guard::no_method;
use crate::http::serve::Peer;

/// Where a process keeps what it knows of tokens.
const FILE: &str = "access.json";

/// How long whoever shows a token that is not known waits for news of it.
const NEWS_LIMIT: Duration = Duration::from_secs(2);

/// For how long, and of how many, it is remembered that a token was not known: by then news have come by themselves.
const IN_VAIN_FOR: Duration = Duration::from_secs(5);
const IN_VAIN_MAX: usize = 1024;

/// What an agent or a node knows of those who may ask it. Clones are the same.
#[derive(Clone)]
pub(crate) struct RegionGuard(Arc<Inner>);

struct Inner {
    door: Door,
    file: PathBuf,
    /// The region's token beside the process.
    own: Option<TokenFile>,
    clock: Arc<dyn Clock>,
    known: ArcSwap<RegionAccess>,
    /// Somebody shows what is not known.
    wanted: Notify,
    /// How often news were asked for with success.
    heard: watch::Sender<u64>,
    /// What was not known after news were waited for, and when: whoever goes on showing it does not wait again.
    in_vain: Mutex<HashMap<String, Instant>>,
}

impl RegionGuard {
    /// With what was kept in this folder. Blocks.
    ///
    /// # Errors
    /// What was kept can't be read.
    pub(crate) fn open(data: &Path, door: Door, own: Option<TokenFile>, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let file = data.join(FILE);
        let known = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(file = %file.display(), %error, "what was known of tokens can't be read; nobody is let in by one until the control plane has said who may");
                RegionAccess::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => RegionAccess::default(),
            Err(error) => return Err(error),
        };
        Ok(Self(Arc::new(Inner {
            door,
            file,
            own,
            clock,
            known: ArcSwap::from_pointee(known),
            wanted: Notify::new(),
            heard: watch::Sender::new(0),
            in_vain: Mutex::default(),
        })))
    }

    /// Whether anybody is asked for a token at all, so that there is something to know.
    pub(crate) fn is_needed(&self) -> bool {
        self.0.own.is_some()
    }

    /// What is known, unless it is what has this mark.
    pub(crate) fn known_beside(&self, mark: Option<&str>) -> Option<RegionAccess> {
        let known = self.0.known.load();
        (mark != Some(known.mark.as_str())).then(|| RegionAccess::clone(&known))
    }

    /// The mark of what is known.
    pub(crate) fn mark(&self) -> String {
        self.0.known.load().mark.clone()
    }

    /// The news: what is known from now on, if it is other than what was. It is on the disk before it is in force.
    pub(crate) async fn heard(&self, news: Option<RegionAccess>) {
        if let Some(news) = news {
            let (inner, kept) = (Arc::clone(&self.0), news.clone());
            let written = tokio::task::spawn_blocking(move || {
                let text = serde_json::to_string(&kept).map_err(io::Error::other)?;
                write_private(&inner.file, &text)
            });
            if let Ok(Err(error)) = written.await {
                // It holds in this life all the same: whoever was revoked is not let in for want of room on a disk.
                tracing::error!(file = %self.0.file.display(), %error, "what the control plane says of tokens could not be kept");
            }
            self.0.known.store(Arc::new(news));
        }
        self.0.heard.send_modify(|count| *count += 1);
    }

    /// Waits until somebody shows what is not known.
    pub(crate) async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Asks for news, and waits for them for a moment.
    pub(crate) async fn look_again(&self) {
        let mut heard = self.0.heard.subscribe();
        heard.mark_unchanged();
        self.0.wanted.notify_one();
        // What has not come by then is not known.
        let _ = tokio::time::timeout(NEWS_LIMIT, heard.changed()).await;
    }

    fn was_in_vain(&self, shown: &str, now: Instant) -> bool {
        self.0.in_vain.lock().get(shown).is_some_and(|at| now.saturating_duration_since(*at) < IN_VAIN_FOR)
    }

    fn note_in_vain(&self, shown: String, now: Instant) {
        let mut in_vain = self.0.in_vain.lock();
        if in_vain.len() >= IN_VAIN_MAX {
            in_vain.retain(|_, at| now.saturating_duration_since(*at) < IN_VAIN_FOR);
        }
        if in_vain.len() < IN_VAIN_MAX {
            in_vain.insert(shown, now);
        }
    }

    fn find(&self, id: &str, digest: &SecretDigest) -> Result<Bearer, Refusal> {
        let known = self.0.known.load();
        let token = known.tokens.get(id).filter(|token| digest.is(&token.digest)).ok_or(Refusal::WrongToken)?;
        let now = u64::try_from(self.0.clock.now().0).unwrap_or(0);
        if token.expires_at.is_some_and(|at| at <= now) {
            return Err(Refusal::Expired { name: token.name.clone() });
        }
        Ok(bearer(id, token))
    }

    /// Whether what a request is about is the bearer's.
    fn check(&self, rule: &Rule, bearer: &Bearer, store: Option<&str>) -> Result<(), Refusal> {
        if bearer.role != Role::Team || rule.scope != Scope::Store {
            // Tokens of other regions are not known here, and whatever there is is this region's.
            return Ok(());
        }
        let team = bearer.team.as_deref().unwrap_or_default();
        let known = self.0.known.load();
        let owner = store.and_then(|store| known.teams.get(store));
        if !team.is_empty() && owner.is_some_and(|owner| owner == team) {
            return Ok(());
        }
        let about = format!("store `{}` is none of its own", store.unwrap_or_default());
        Err(Refusal::Scope { name: bearer.name.clone(), owner: format!("team `{team}`"), about })
    }
}

fn bearer(id: &str, token: &RegionToken) -> Bearer {
    Bearer {
        token: id.to_owned(),
        name: token.name.clone(),
        role: token.role,
        team: token.team.clone(),
        region: None,
        by_session: false,
    }
}

impl Guarded for RegionGuard {
    fn door(&self) -> &Door {
        &self.0.door
    }

    /// Where whoever reaches it may read everything, what a region's token is for still needs that.
    fn asks(&self, rule: &Rule) -> bool {
        self.0.door.is_required()
            || (self.0.own.is_some() && matches!(rule.who, Who::Roles(roles) if roles.contains(&Role::Region)))
    }

    async fn bearer(&self, headers: &HeaderMap, _: bool) -> Result<Bearer, Refusal> {
        let shown = presented(headers);
        if let Ok(shown) = &shown {
            let found = self.find(&shown.id, &shown.digest);
            if !matches!(found, Err(Refusal::WrongToken)) {
                return found;
            }
        }
        if matches!(shown, Err(Refusal::NoToken)) {
            return Err(Refusal::NoToken);
        }
        if let Some(own) = &self.0.own
            && own.is_shown(headers).await
        {
            return Ok(Bearer {
                token: "own".to_owned(),
                name: "the region's own".to_owned(),
                role: Role::Region,
                team: None,
                region: None,
                by_session: false,
            });
        }
        let shown = shown?;
        let name = format!("{}:{}", shown.id, shown.digest.clone().into_text());
        if self.was_in_vain(&name, Instant::now()) {
            return Err(Refusal::WrongToken);
        }
        self.look_again().await;
        let found = self.find(&shown.id, &shown.digest);
        if matches!(found, Err(Refusal::WrongToken)) {
            self.note_in_vain(name, Instant::now());
        }
        found
    }
}

/// The secret that a process has drawn, where its routes ask for one.
#[derive(Clone)]
pub(crate) struct Secret {
    pub(crate) text: Arc<str>,
    /// `that …`, for people.
    pub(crate) whose: &'static str,
    /// What whoever does not know it can do.
    pub(crate) what_to_do: &'static str,
}

/// What the guard of one route of an agent or a node knows.
#[derive(Clone)]
pub(crate) struct RegionGate {
    pub(crate) guard: RegionGuard,
    pub(crate) rules: Arc<[&'static Rule]>,
    pub(crate) is_look_up: bool,
    pub(crate) secret: Option<Secret>,
}

/// Lets a request in, or refuses it.
pub(crate) async fn region_guard(State(gate): State<RegionGate>, request: Request, next: Next) -> Response {
    let Some(rule) = rule_of(&gate.rules, request.method()) else {
        return no_method(request.method().clone(), request.uri().clone()).await.into_response();
    };
    match enter(&gate, rule, request).await {
        Ok(request) => next.run(request).await,
        Err(refusal) => {
            gate.guard.door().metrics.refused(&refusal);
            refusal.into_response()
        }
    }
}

async fn enter(gate: &RegionGate, rule: &'static Rule, request: Request) -> Result<Request, Refusal> {
    let peer: Option<IpAddr> = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let is_reading = request.method().is_safe();
    let caller = who_asks(&gate.guard, rule, gate.is_look_up, request.headers(), is_reading, peer).await?;
    check_role(&gate.guard, rule, &caller)?;
    if rule.who == Who::Secret {
        check_secret(gate.secret.as_ref(), request.headers())?;
    }
    let Some(bearer) = caller.bearer().filter(|bearer| bearer.role == Role::Team) else { return Ok(request) };
    let (mut parts, body) = request.into_parts();
    let path = RawPathParams::from_request_parts(&mut parts, &()).await.ok();
    let store = path.iter().flat_map(|path| path.iter()).find(|(name, _)| *name == "store").map(|(_, store)| store);
    gate.guard.check(rule, bearer, store)?;
    Ok(Request::from_parts(parts, body))
}

fn check_secret(secret: Option<&Secret>, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(secret) = secret else {
        return Err(Refusal::NoSecret { whose: "that nobody has", what_to_do: "Ask another process." });
    };
    if is_shown(headers, &secret.text) {
        return Ok(());
    }
    Err(Refusal::NoSecret { whose: secret.whose, what_to_do: secret.what_to_do })
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderValue, header};
    use tidegate_state::SystemClock;

    use super::*;
    use crate::access::config::{AccessLimits, Authentication};
    use crate::access::metrics::AccessMetrics;
    use crate::access::table::rule;
    use crate::access::token::{RANDOM_BYTES, mint};

    fn guard(data: &Path, own: Option<TokenFile>, authentication: Authentication) -> RegionGuard {
        let door = Door::new(authentication, &AccessLimits::default(), AccessMetrics::default());
        RegionGuard::open(data, door, own, Arc::new(SystemClock)).unwrap()
    }

    fn token(number: u8, role: Role, team: Option<&str>, expires_at: Option<u64>) -> (String, String, RegionToken) {
        let (id, shown, digest) = mint([number; RANDOM_BYTES]);
        let token = RegionToken {
            digest: digest.into_text(),
            name: format!("token {number}"),
            role,
            team: team.map(str::to_owned),
            expires_at,
        };
        (id, shown, token)
    }

    fn headers(token: &str) -> HeaderMap {
        let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
        HeaderMap::from_iter([(header::AUTHORIZATION, value)])
    }

    #[tokio::test]
    async fn what_was_handed_out_is_judged_by_also_after_a_restart_and_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let now = u64::try_from(SystemClock.now().0).unwrap();
        let (id, shown, reader) = token(1, Role::Reader, None, Some(now + 3_600_000));
        let (old_id, old_shown, expired) = token(2, Role::Reader, None, Some(now));
        let access =
            RegionAccess { mark: "m1".to_owned(), tokens: [(id, reader), (old_id, expired)].into(), teams: [].into() };
        let first = guard(folder.path(), None, Authentication::Required);
        first.heard(Some(access)).await;
        for guard in [first, guard(folder.path(), None, Authentication::Required)] {
            assert_eq!(guard.mark(), "m1");
            assert!(guard.known_beside(Some("m1")).is_none() && guard.known_beside(None).is_some());
            assert_eq!(guard.bearer(&headers(&shown), true).await.unwrap().role, Role::Reader);
            let refused = guard.bearer(&headers(&old_shown), true).await.unwrap_err();
            assert!(matches!(refused, Refusal::Expired { .. }), "{refused:?}");
            assert_eq!(guard.bearer(&HeaderMap::new(), true).await, Err(Refusal::NoToken));
        }
        let third = guard(folder.path(), None, Authentication::Required);
        third.heard(Some(RegionAccess { mark: "m2".to_owned(), ..RegionAccess::default() })).await;
        let asked = headers(&shown);
        // Whoever shows what is not known has news asked for, and waits for them.
        let (refused, ()) = tokio::join!(third.bearer(&asked, true), async {
            third.wanted().await;
            third.heard(None).await;
        });
        assert_eq!(refused, Err(Refusal::WrongToken));
        std::fs::write(folder.path().join(FILE), "torn").unwrap();
        assert_eq!(guard(folder.path(), None, Authentication::Required).mark(), "");
    }

    #[tokio::test]
    async fn the_regions_own_token_is_a_regions_and_asked_for_also_where_reads_are_open() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "tg_own").unwrap();
        let open = guard(folder.path(), Some(TokenFile::new(&file)), Authentication::Off);
        assert_eq!(open.bearer(&headers("tg_own"), true).await.unwrap().role, Role::Region);
        assert_eq!(open.bearer(&headers("tg_other"), true).await, Err(Refusal::NoTokenForm));
        assert!(open.asks(rule("put", "/v1/nodes/{node}").unwrap()));
        assert!(open.asks(rule("get", "/v1/artifacts/{artifact}/{file}").unwrap()));
        assert!(!open.asks(rule("get", "/v1/stores/{store}/keys/{key}").unwrap()));
    }

    #[test]
    fn a_team_reads_its_own_stores_alone() {
        let folder = tempfile::tempdir().unwrap();
        let guard = guard(folder.path(), None, Authentication::Required);
        let teams = [("mine".to_owned(), "t1".to_owned()), ("theirs".to_owned(), "t2".to_owned())].into();
        guard.0.known.store(Arc::new(RegionAccess { teams, ..RegionAccess::default() }));
        let reads = rule("get", "/v1/stores/{store}/keys/{key}").unwrap();
        for (team, store, expected) in [
            (Some("t1"), Some("mine"), true),
            (Some("t1"), Some("theirs"), false),
            (Some("t1"), Some("nobodys"), false),
            (Some(""), Some("nobodys"), false),
            (None, Some("mine"), false),
            (Some("t1"), None, false),
        ] {
            let bearer = bearer("id", &token(3, Role::Team, team, None).2);
            assert_eq!(guard.check(reads, &bearer, store).is_ok(), expected, "{team:?} {store:?}");
        }
        let reader = bearer("id", &token(3, Role::Reader, None, None).2);
        assert!(guard.check(reads, &reader, Some("theirs")).is_ok());
    }
}
