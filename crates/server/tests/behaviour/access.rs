//! Every route as every role, and as everybody who has no business there.

use std::sync::Arc;

use tidegate_client::api::{
    PushPhase, PushStart, PushStatus, Role, StoreCreate, StorePatch, TokenCreate, TokenStatus, code,
};
use tidegate_lifecycle::{Function, Pause, Verdict};
use tidegate_server::access::table::{Rule, Scope, TABLE, Who, rule};
use tidegate_state::{Path, Ref, Timestamp, TransactionError};

use crate::world::{LIMIT, World, assert_error};

/// Who asks, and what about.
struct Caller {
    what: &'static str,
    token: Option<String>,
    role: Option<Role>,
    /// Whose things the request names.
    about: About,
}

/// Whose things a request names, seen from team `t1` and region `a`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum About {
    Mine,
    Theirs,
    Nobodys,
}

impl About {
    fn store(self) -> &'static str {
        match self {
            Self::Mine => "mine",
            Self::Theirs => "theirs",
            Self::Nobodys => "absent",
        }
    }

    fn region(self) -> &'static str {
        match self {
            Self::Mine => "a",
            Self::Theirs => "b",
            Self::Nobodys => "absent",
        }
    }
}

/// Stores of two teams, a push and a pause of each.
async fn furnished() -> World {
    let world = World::guarded_with(|options| {
        options.config.access.limits.wrong_tokens_burst = Some(1_000_000);
    })
    .await;
    for (store, team) in [("mine", "t1"), ("theirs", "t2")] {
        let create = StoreCreate {
            name: store.to_owned(),
            key_columns: vec!["k".to_owned()],
            settings: StorePatch { team: Some(team.to_owned()), ..StorePatch::default() },
            ..StoreCreate::default()
        };
        world.client.create_store(&create).await.unwrap();
        let start = PushStart { id: format!("{store}-push"), store: store.to_owned(), ..PushStart::default() };
        world.client.start_push(&start).await.unwrap();
        pause(&world, store).await;
    }
    world
}

async fn pause(world: &World, store: &str) {
    let place: Ref<Pause> = Ref::root(format!("{store}-pause")).unwrap();
    let pause = Pause {
        store: store.to_owned(),
        push: Some(format!("{store}-push")),
        region: None,
        function: Function::PreStartOfPushJob,
        hook: "approval".to_owned(),
        call: Path::parse(&format!("/stores/{store}/pushes/{store}-push")).unwrap(),
        reason: "wants a person".to_owned(),
        may_answer: Vec::new(),
        since: Timestamp(0),
        until: None,
        when_run_out: Verdict::Abort,
        answer: None,
    };
    let state = world.server.as_ref().unwrap().state();
    let written =
        state.write(move |transaction| -> Result<(), TransactionError> { transaction.put(&place, pause.clone()) });
    written.await.unwrap();
    state.flush().await.unwrap();
}

async fn callers(world: &World) -> Vec<Caller> {
    let mut callers = vec![
        Caller { what: "no token", token: None, role: None, about: About::Mine },
        Caller { what: "no token at all", token: Some("tg_1_2".to_owned()), role: None, about: About::Mine },
    ];
    let of = |what, token: &str, role, about| Caller { what, token: Some(token.to_owned()), role, about };
    for role in Role::ALL {
        let owner = match role {
            Role::Team => Some("t1"),
            Role::Region => Some("a"),
            _ => None,
        };
        let token = world.token(&format!("the {role}"), role, owner).await.secret;
        callers.push(of(role.word(), &token, Some(role), About::Mine));
        if owner.is_some() {
            callers.push(of("about others", &token, Some(role), About::Theirs));
            callers.push(of("about nobody", &token, Some(role), About::Nobodys));
        }
        // Whatever the role, a token that does not hold opens nothing.
        let mut wrong = token.clone();
        let last = if wrong.ends_with('0') { '1' } else { '0' };
        wrong.replace_range(wrong.len() - 1.., &last.to_string());
        callers.push(of("wrong secret", &wrong, None, About::Mine));
        let revoked = world.token(&format!("revoked {role}"), role, owner).await;
        world.client.revoke_token(&revoked.token.id, None).await.unwrap();
        callers.push(of("revoked", &revoked.secret, None, About::Mine));
        let expired = TokenCreate {
            name: format!("expired {role}"),
            role,
            team: owner.filter(|_| role == Role::Team).map(str::to_owned),
            region: owner.filter(|_| role == Role::Region).map(str::to_owned),
            expires_in_ms: Some(1),
        };
        let expired = world.client.create_token(&expired).await.unwrap();
        until_expired(world, &expired.token.id).await;
        callers.push(of("expired", &expired.secret, None, About::Mine));
    }
    callers
}

async fn until_expired(world: &World, id: &str) {
    let expired = async {
        loop {
            let tokens = world.client.tokens().await.unwrap();
            let token = tokens.iter().find(|token| token.id == id).unwrap();
            if token.status == TokenStatus::Expired {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, expired).await.unwrap();
}

/// The status that the table says: none where the request is let in.
fn expected(rule: &Rule, caller: &Caller) -> Option<u16> {
    let Who::Roles(roles) = rule.who else { return None };
    let Some(role) = caller.role else { return Some(401) };
    if !roles.contains(&role) {
        return Some(403);
    }
    if (role, rule.scope) == (Role::Region, Scope::Artifact) {
        // The one that is asked about is that of no version.
        return Some(403);
    }
    let is_scoped = matches!(role, Role::Team | Role::Region) && rule.scope != Scope::Nothing;
    (is_scoped && caller.about != About::Mine).then_some(403)
}

fn request(http: &reqwest::Client, url: &str, rule: &Rule, path: &str, caller: &Caller) -> reqwest::RequestBuilder {
    let (store, region) = (caller.about.store(), caller.about.region());
    // What would change the world for those who come later is asked about things that are not there.
    let is_last_straw = rule.method == "delete";
    let path = path
        .replace("{store}", if is_last_straw { "absent" } else { store })
        .replace("{push}", &format!("{store}-push"))
        .replace("{pause}", &format!("{store}-pause"))
        .replace("{region}", region)
        .replace("{key}", "k")
        .replace("{part}", "part")
        .replace("{request}", "1.1.1")
        .replace("{action}", "retry")
        .replace("{freeze}", "absent")
        .replace("{artifact}", "absent")
        .replace("{file}", "absent")
        .replace("{token}", "absent");
    assert!(!path.contains('{'), "{path}: what is it about?");
    let query = match (rule.scope, caller.role) {
        (Scope::Watched, Some(Role::Region)) => format!("?prefix=/regions/{region}"),
        (Scope::Watched, _) => format!("?prefix=/stores/{store}"),
        (Scope::Listed, _) => format!("?store={store}"),
        _ => String::new(),
    };
    let team = match caller.about {
        About::Mine => "t1",
        About::Theirs | About::Nobodys => "t2",
    };
    let body = match rule.scope {
        Scope::NewStore => format!(r#"{{"settings": {{"team": "{team}"}}}}"#),
        Scope::NewPush => format!(r#"{{"store": "{store}", "nonsense": 1}}"#),
        _ => "{}".to_owned(),
    };
    let method = rule.method.to_uppercase();
    let mut request = http.request(method.parse().unwrap(), format!("{url}{path}{query}"));
    if method != "GET" {
        request = request.header("content-type", "application/json").body(body);
    }
    match &caller.token {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_lets_in_whom_the_table_lets_in_and_nobody_else() {
    let world = furnished().await;
    let callers = callers(&world).await;
    let http = reqwest::Client::new();
    let description: serde_json::Value = http
        .get(format!("{}/openapi.json", world.url()))
        .bearer_auth(callers.iter().find_map(|caller| caller.token.clone().filter(|_| caller.role.is_some())).unwrap())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let mut asked = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let rule = rule(method, path).unwrap();
            for caller in &callers {
                let about = format!("{method} {path} as {} ({:?}, {:?})", caller.what, caller.role, caller.about);
                let response = request(&http, &world.url(), rule, path, caller).send().await.unwrap();
                let status = response.status().as_u16();
                asked += 1;
                let Some(expected) = expected(rule, caller) else {
                    if status == 403 {
                        // Let in, and refused by what it is about: a pause says itself who may answer it.
                        let body: serde_json::Value = response.json().await.unwrap();
                        assert_ne!(body["code"], code::FORBIDDEN, "{about}: {body}");
                    } else {
                        assert_ne!(status, 401, "{about}");
                        assert_ne!(status, 429, "{about}");
                    }
                    continue;
                };
                let challenge = response.headers().contains_key("www-authenticate");
                let body: serde_json::Value = response.json().await.unwrap();
                assert_eq!(status, expected, "{about}: {body}");
                assert_eq!(challenge, status == 401, "{about}");
                let code = if status == 401 { code::UNAUTHENTICATED } else { code::FORBIDDEN };
                assert_eq!(body["code"], code, "{about}");
                assert_error(&body, &about);
            }
        }
    }
    assert!(asked > TABLE.len() * callers.len() / 2, "{asked} requests");
    // Whoever was refused has changed nothing.
    assert!(world.client.stores().await.unwrap().iter().all(|store| ["mine", "theirs"].contains(&&*store.name)));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_method_or_route_that_is_not_there_is_refused_whoever_asks() {
    let world = World::guarded().await;
    let token = world.token("me", Role::Admin, None).await.secret;
    let http = reqwest::Client::new();
    for method in ["PUT", "OPTIONS", "TRACE", "PROPFIND"] {
        let request = http.request(method.parse().unwrap(), format!("{}/v1/stores", world.url())).bearer_auth(&token);
        let (status, body) = world.raw(request).await;
        assert_eq!((status, body["code"].as_str()), (405, Some(code::METHOD_NOT_ALLOWED)), "{method}");
    }
    let (status, body) = world.raw(http.get(format!("{}/v1/secrets", world.url())).bearer_auth(&token)).await;
    assert_eq!((status, body["code"].as_str()), (404, Some(code::ROUTE_UNKNOWN)));
    // HEAD is a GET without a body, to the guard, too.
    let head = http.head(format!("{}/v1/stores", world.url()));
    assert_eq!(head.try_clone().unwrap().send().await.unwrap().status(), 401);
    assert_eq!(head.bearer_auth(&token).send().await.unwrap().status(), 200);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_sees_and_changes_its_own_stores_and_learns_of_no_other() {
    let world = furnished().await;
    let team = world.client_with(&world.token("team one", Role::Team, Some("t1")).await.secret);
    // Lists have its own alone.
    let stores = team.stores().await.unwrap();
    assert_eq!(stores.iter().map(|store| store.name.as_str()).collect::<Vec<_>>(), ["mine"]);
    let pushes = team.pushes(None, None).await.unwrap();
    assert_eq!(pushes.iter().map(|push| push.state.push.as_str()).collect::<Vec<_>>(), ["mine-push"]);
    let pauses = team.pauses().await.unwrap();
    assert_eq!(pauses.iter().map(|pause| pause.store.as_str()).collect::<Vec<_>>(), ["mine"]);
    assert!(team.regions().await.unwrap().iter().all(|region| !region.stores.contains_key("theirs")));
    // Another's store and one that is not there are told apart by nothing.
    let text = |error: tidegate_client::Error| error.to_string().replace("theirs", "X").replace("absent", "X");
    let (theirs, absent) = (team.store("theirs").await.unwrap_err(), team.store("absent").await.unwrap_err());
    assert_eq!(text(theirs), text(absent));
    // What it makes is its own, whatever it says; and stays so.
    let create = |name: &str, team: Option<&str>| StoreCreate {
        name: name.to_owned(),
        key_columns: vec!["k".to_owned()],
        settings: StorePatch { team: team.map(str::to_owned), ..StorePatch::default() },
        ..StoreCreate::default()
    };
    let made = team.create_store(&create("new", None)).await.unwrap();
    assert_eq!(made.team.as_deref(), Some("t1"));
    assert_eq!(team.create_store(&create("other", Some("t2"))).await.unwrap_err().code(), Some(code::FORBIDDEN));
    for other in ["t2", ""] {
        let patch = StorePatch { team: Some(other.to_owned()), ..StorePatch::default() };
        assert_eq!(team.update_store("new", &patch).await.unwrap_err().code(), Some(code::FORBIDDEN), "{other:?}");
    }
    let patch = StorePatch { retention: Some(3), ..StorePatch::default() };
    assert_eq!(team.update_store("new", &patch).await.unwrap().retention, 3);
    // To open gates from the start is an operator's decision, as it is later.
    let start = PushStart {
        id: "opened".to_owned(),
        store: "new".to_owned(),
        overrides: [("pre-creation@a".to_owned(), "I want it".to_owned())].into(),
        ..PushStart::default()
    };
    assert_eq!(team.start_push(&start).await.unwrap_err().code(), Some(code::FORBIDDEN));
    assert_eq!(world.client.push("opened").await.unwrap_err().code(), Some(code::PUSH_UNKNOWN));
    // The id of another's push says no more than that it is taken.
    let taken = PushStart { id: "theirs-push".to_owned(), overrides: [].into(), ..start };
    let error = team.start_push(&taken).await.unwrap_err();
    assert_eq!(error.code(), Some(code::PUSH_ID_TAKEN));
    assert!(!error.to_string().replace("theirs-push", "").contains("theirs"), "{error}");
    // A store that nobody owns is the operators'.
    let given_up = StorePatch { team: Some(String::new()), ..StorePatch::default() };
    assert_eq!(world.client.update_store("new", &given_up).await.unwrap().team, None);
    assert_eq!(team.update_store("new", &patch).await.unwrap_err().code(), Some(code::FORBIDDEN));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_know_the_digests_of_anothers_artifact_is_not_to_have_it() {
    let world = furnished().await;
    world.store().await;
    let rows = world.rows("rows.csv", 5, "secret");
    let built = world.upload("p1", &rows).await;
    world.put_all("p1", &built).await;
    world.client.complete_push("p1", &built.manifest).await.unwrap();
    world.until("p1", |state| state.status == PushStatus::Completed).await;

    let team = world.client_with(&world.token("team one", Role::Team, Some("t1")).await.secret);
    let partitions = Some(world.client.store("s").await.unwrap().partitions);
    let create =
        StoreCreate { name: "own".to_owned(), key_columns: vec!["k".to_owned()], partitions, ..StoreCreate::default() };
    team.create_store(&create).await.unwrap();
    let start = PushStart { id: "q1".to_owned(), store: "own".to_owned(), ..PushStart::default() };
    team.start_push(&start).await.unwrap();
    world.until("q1", |state| state.phase == PushPhase::Build).await;
    team.put_schema("q1", built.manifest.schema.clone()).await.unwrap();
    world.until("q1", |state| state.phase == PushPhase::Upload).await;
    let error = team.complete_push("q1", &built.manifest).await.unwrap_err();
    assert_eq!(error.code(), Some(code::PARTS_MISSING), "{error}");
    // Who has the data may push it, whoever else has.
    for part in &built.manifest.parts {
        team.put_part("q1", &part.name, &part.sha256, &built.folder.join(&part.name)).await.unwrap();
    }
    team.complete_push("q1", &built.manifest).await.unwrap();
    world.until("q1", |state| state.status == PushStatus::Completed).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_is_answered_by_whom_it_names_within_what_the_role_may() {
    let world = furnished().await;
    let http = reqwest::Client::new();
    let answer = |token: String| {
        let url = format!("{}/v1/pauses/mine-pause/answer", world.url());
        http.post(url).bearer_auth(token).json(&serde_json::json!({"verdict": "proceed", "comment": "fine"}))
    };
    let team = world.token("team one", Role::Team, Some("t1")).await.secret;
    let (status, body) = world.raw(answer(team.clone())).await;
    // It is for operators, as it names nobody.
    assert_eq!(status, 403, "{body}");
    let place: Ref<Pause> = Ref::root("mine-pause").unwrap();
    let named = Arc::new(vec!["team:t1".to_owned()]);
    let state = world.server.as_ref().unwrap().state();
    let written = state.write(move |transaction| -> Result<(), TransactionError> {
        transaction.update(&place, |pause| pause.may_answer = (*named).clone())
    });
    written.await.unwrap();
    let viewer = world.token("viewer", Role::Viewer, None).await.secret;
    assert_eq!(world.raw(answer(viewer)).await.0, 403);
    let (status, body) = world.raw(answer(team)).await;
    // The pause of this test has no gate to wake; that it was let through shows in who is named.
    assert!(status != 403 && status != 401, "{status} {body}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_with_its_token_and_shows_none() {
    let world = furnished().await;
    let viewer = world.token("viewer", Role::Viewer, None).await;
    let client = world.client_with(&viewer.secret);
    let mut events = client.with_patience(std::time::Duration::ZERO).watch(None, None);
    let first = events.next().await.unwrap().unwrap();
    let text = serde_json::to_string(&first).unwrap();
    assert!(text.contains("/stores/mine"), "{text}");
    assert!(!text.contains("/tokens"), "{text}");
    world.client.revoke_token(&viewer.token.id, None).await.unwrap();
    let refused = async {
        loop {
            match events.next().await {
                Ok(Some(event)) => assert!(!serde_json::to_string(&event).unwrap().contains("/tokens")),
                Ok(None) => panic!("a watch of the tree has no end of its own"),
                Err(error) if error.code() == Some(code::UNAUTHENTICATED) => return,
                // The stream was cut; the next step connects again, and is refused.
                Err(_) => {}
            }
        }
    };
    tokio::time::timeout(LIMIT, refused).await.unwrap();
    world.end().await;
}
