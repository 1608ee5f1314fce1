//! The cases.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::fixture::store;
use super::{EngineFactory, Fixture, KEYS, Verdict};
use crate::engine::{ADOPTED_VERSION, Engine, EngineError, LoadProgress, Observed, StoreKey};

/// Within what time a node notices that a step was cut off.
const CUT_NOTICED: Duration = Duration::from_secs(10);
/// How often a load is looked at before it is cut off, in turn.
const CUTS: [usize; 8] = [0, 1, 2, 3, 5, 8, 20, 60];

fn wrong<T>(what: impl Into<String>) -> Result<T, String> {
    Err(what.into())
}

fn done<T>(step: &str, result: Result<T, EngineError>) -> Result<T, String> {
    result.map_err(|error| format!("{step} failed: {error}"))
}

async fn load(engine: &impl Engine, store: &StoreKey, version: u64, fixture: &Fixture) -> Result<(), EngineError> {
    let progress = Arc::new(LoadProgress::default());
    engine.load(store, version, fixture.artifact(version), &progress, &CancellationToken::new()).await
}

/// Repeats a step that an earlier one, which was cut off, may stand in the way of for a moment: a node of its own notices that
/// nobody waits any more after the caller has gone. The agent repeats such a step, too.
async fn after_a_cut<T>(what: &str, step: impl AsyncFn() -> Result<T, EngineError>) -> Result<T, String> {
    let deadline = tokio::time::Instant::now() + CUT_NOTICED;
    loop {
        match step().await {
            Err(EngineError::Retry { .. }) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(CUT_NOTICED / 1_000).await;
            }
            ended => return done(what, ended),
        }
    }
}

async fn observed(engine: &impl Engine, store: &StoreKey) -> Result<Observed, String> {
    done("observe", engine.observe(store).await)
}

/// Checks what is held and what serves.
async fn expect(engine: &impl Engine, store: &StoreKey, when: &str, held: &[u64], serving: Option<u64>) -> Verdict {
    let found = observed(engine, store).await?;
    let held_found: Vec<u64> = found.held.keys().copied().collect();
    if held_found != held || found.serving != serving {
        return wrong(format!(
            "{when}: expected held {held:?} and serving {serving:?}, found held {held_found:?} and serving {:?}",
            found.serving
        ));
    }
    Ok(())
}

/// Checks what an application reads: `data` says which version's values these are.
async fn reads<F: EngineFactory>(
    factory: &F,
    engine: &F::Engine,
    store: &StoreKey,
    fixture: &Fixture,
    when: &str,
    expected: Option<(u64, u64)>,
) -> Verdict {
    let begun = factory.begin_read(engine, store).await;
    let (Some(read), Some((version, data))) = (&begun, expected) else {
        return match (begun, expected) {
            (None, None) => Ok(()),
            (None, Some((version, _))) => {
                wrong(format!("{when}: reads say that no version is served, expected {version}"))
            }
            (Some(read), _) => {
                wrong(format!("{when}: reads are answered by version {}, expected none", read.version()))
            }
        };
    };
    if read.version() != version {
        return wrong(format!("{when}: version {} answers, expected {version}", read.version()));
    }
    for key in (0..KEYS).step_by(7) {
        let value = read.value(&format!("k{key}")).await.map_err(|error| format!("{when}: a read failed: {error}"))?;
        if !fixture.is_value(data, key, value.as_ref()) {
            return wrong(format!("{when}: key k{key} gave {value:?}, which is not its value in version {data}"));
        }
    }
    match read.value("no such key").await {
        Ok(None) => Ok(()),
        other => wrong(format!("{when}: a key that is not there gave {other:?}")),
    }
}

async fn digest(engine: &impl Engine, store: &StoreKey, version: u64, fixture: &Fixture) -> Verdict {
    let verification = done("verify", engine.verify(store, version).await)?;
    let manifest = &fixture.artifact(version).manifest;
    if verification.content_digest != manifest.content_digest || verification.record_count != manifest.record_count {
        return wrong(format!(
            "version {version} was read back with digest {} and {} records, the manifest says {} and {}",
            verification.content_digest, verification.record_count, manifest.content_digest, manifest.record_count
        ));
    }
    Ok(())
}

/// Looks at the future so many times, and says whether it has come to its end by then.
async fn poll_times<T>(mut future: std::pin::Pin<&mut (impl Future<Output = T> + Send)>, times: usize) -> Option<T> {
    for _ in 0..times {
        if let Some(output) = future.as_mut().now_or_never() {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

pub(super) async fn n1_adopt<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("adopted");
    if !factory.put_live("n1", &key, fixture.artifact(3)).await {
        return Ok(());
    }
    let engine = factory.open("n1").await;
    for time in ["first", "second"] {
        if !done("adopt", engine.adopt(&key).await)? {
            return wrong(format!("the {time} adopt says that nothing is live, and something is"));
        }
        expect(&engine, &key, "after adopt", &[ADOPTED_VERSION], Some(ADOPTED_VERSION)).await?;
        reads(factory, &engine, &key, fixture, "after adopt", Some((ADOPTED_VERSION, 3))).await?;
    }
    done("load", load(&engine, &key, 1, fixture).await)?;
    done("swap", engine.swap(&key, Some(1)).await)?;
    reads(factory, &engine, &key, fixture, "after the first swap", Some((1, 1))).await?;
    if !done("adopt", engine.adopt(&key).await)? {
        return wrong("version 0 is gone after the first swap, and nobody dropped it");
    }
    expect(&engine, &key, "after the first swap", &[ADOPTED_VERSION, 1], Some(1)).await?;
    done("swap", engine.swap(&key, Some(ADOPTED_VERSION)).await)?;
    reads(factory, &engine, &key, fixture, "after the rollback", Some((ADOPTED_VERSION, 3))).await
}

pub(super) async fn n1_nothing_to_adopt<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("fresh");
    let engine = factory.open("n1-nothing").await;
    for _ in 0..2 {
        if done("adopt", engine.adopt(&key).await)? {
            return wrong("adopt says that something is live, and nothing is");
        }
    }
    expect(&engine, &key, "after adopt", &[], None).await?;
    reads(factory, &engine, &key, fixture, "after adopt", None).await
}

pub(super) async fn n2_capacity<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("capacity");
    let engine = factory.open("n2").await;
    let manifest = &fixture.artifact(2).manifest;
    let before = done("capacity", engine.capacity(&key, 2, manifest).await)?;
    if before.needed_bytes == 0 {
        return wrong("a version that is not held needs no room at all");
    }
    let mut larger = manifest.as_ref().clone();
    larger.data_bytes = larger.data_bytes.saturating_mul(1_000);
    larger.bytes = larger.bytes.saturating_mul(1_000);
    larger.record_count = larger.record_count.saturating_mul(1_000);
    let needed = done("capacity", engine.capacity(&key, 2, &larger).await)?.needed_bytes;
    if needed <= before.needed_bytes {
        return wrong(format!("a thousand times the data needs {needed} bytes, no more than {}", before.needed_bytes));
    }
    let footprint = factory.footprint("n2").await;
    expect(&engine, &key, "after asking for the capacity", &[], None).await?;
    done("load", load(&engine, &key, 2, fixture).await)?;
    if let (Some(without), Some(with)) = (footprint, factory.footprint("n2").await)
        && with.saturating_sub(without) > before.needed_bytes
    {
        let taken = with.saturating_sub(without);
        return wrong(format!("{} bytes were said to be enough, {taken} were taken", before.needed_bytes));
    }
    let after = done("capacity", engine.capacity(&key, 2, manifest).await)?;
    if after.needed_bytes != 0 {
        return wrong(format!("a version that is held still needs {} bytes", after.needed_bytes));
    }
    Ok(())
}

pub(super) async fn n3_cut_off_and_repeated<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("cut-off");
    let engine = factory.open("n3").await;
    done("load", load(&engine, &key, 1, fixture).await)?;
    done("swap", engine.swap(&key, Some(1)).await)?;
    for times in CUTS {
        let when = format!("cut off after {times} looks");
        let cancelled = CancellationToken::new();
        let progress = Arc::new(LoadProgress::default());
        let ended = {
            let mut loading = pin!(engine.load(&key, 2, fixture.artifact(2), &progress, &cancelled));
            match poll_times(loading.as_mut(), times).await {
                Some(ended) => ended,
                None => {
                    cancelled.cancel();
                    loading.await
                }
            }
        };
        if ended.is_err() && observed(&engine, &key).await?.holds(2) {
            // It was done before the cut was noticed: then all of it is there.
            digest(&engine, &key, 2, fixture).await?;
        } else {
            let held: &[u64] = if ended.is_ok() { &[1, 2] } else { &[1] };
            expect(&engine, &key, &when, held, Some(1)).await?;
        }
        reads(factory, &engine, &key, fixture, &when, Some((1, 1))).await?;
        after_a_cut("the repeated load", async || load(&engine, &key, 2, fixture).await).await?;
        expect(&engine, &key, "after the repeated load", &[1, 2], Some(1)).await?;
        digest(&engine, &key, 2, fixture).await?;
        done("drop", engine.drop_version(&key, 2).await)?;
    }
    Ok(())
}

pub(super) async fn n3_cut_off_and_dropped<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("cut-off");
    let engine = factory.open("n3-dropped").await;
    let before = factory.footprint("n3-dropped").await;
    for times in CUTS {
        let when = format!("cut off after {times} looks, and dropped");
        let cancelled = CancellationToken::new();
        let progress = Arc::new(LoadProgress::default());
        {
            let mut loading = pin!(engine.load(&key, 2, fixture.artifact(2), &progress, &cancelled));
            if poll_times(loading.as_mut(), times).await.is_none() {
                cancelled.cancel();
                // How it ends does not matter here: what counts is what is left.
                let _ = loading.await;
            }
        }
        after_a_cut("drop", async || engine.drop_version(&key, 2).await).await?;
        let found = observed(&engine, &key).await?;
        if found != Observed::default() {
            return wrong(format!("{when}: something is left: {found:?}"));
        }
        if done("stores", engine.stores().await)?.contains(&key) {
            return wrong(format!("{when}: the store is still listed"));
        }
        let after = factory.footprint("n3-dropped").await;
        if after > before {
            return wrong(format!("{when}: {after:?} bytes are kept, there were {before:?} before"));
        }
    }
    Ok(())
}

pub(super) async fn n4_verify<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("verify");
    let engine = factory.open("n4").await;
    if engine.verify(&key, 1).await.is_ok() {
        return wrong("verify of a version that is not held succeeded");
    }
    for version in 1..=3 {
        done("load", load(&engine, &key, version, fixture).await)?;
        digest(&engine, &key, version, fixture).await?;
    }
    expect(&engine, &key, "after verify", &[1, 2, 3], None).await?;
    for (version, held) in done("observe", engine.observe(&key).await)?.held {
        let expected = &fixture.artifact(version).manifest.artifact_id;
        if held.artifact.as_ref().is_some_and(|artifact| artifact != expected) {
            return wrong(format!("version {version} is said to be of artifact {:?}, it is {expected}", held.artifact));
        }
    }
    Ok(())
}

pub(super) async fn n5_swap_to_none<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("none");
    let engine = factory.open("n5").await;
    if engine.swap(&key, Some(1)).await.is_ok() {
        return wrong("a swap to a version that is not held succeeded");
    }
    reads(factory, &engine, &key, fixture, "before the first load", None).await?;
    done("load", load(&engine, &key, 1, fixture).await)?;
    reads(factory, &engine, &key, fixture, "loaded and not swapped", None).await?;
    done("swap", engine.swap(&key, Some(1)).await)?;
    reads(factory, &engine, &key, fixture, "swapped", Some((1, 1))).await?;
    for time in ["first", "second"] {
        done("swap to none", engine.swap(&key, None).await)?;
        let when = format!("after the {time} swap to none");
        expect(&engine, &key, &when, &[1], None).await?;
        reads(factory, &engine, &key, fixture, &when, None).await?;
    }
    drop(engine);
    let engine = factory.open("n5").await;
    expect(&engine, &key, "restarted after a swap to none", &[1], None).await?;
    reads(factory, &engine, &key, fixture, "restarted after a swap to none", None).await
}

pub(super) async fn n6_drop<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("drop");
    let engine = factory.open("n6").await;
    let empty = factory.footprint("n6").await;
    done("drop of what is not held", engine.drop_version(&key, 9).await)?;
    for version in [1, 2] {
        done("load", load(&engine, &key, version, fixture).await)?;
    }
    done("swap", engine.swap(&key, Some(2)).await)?;
    match engine.drop_version(&key, 2).await {
        Err(EngineError::Fatal { .. }) => {}
        other => return wrong(format!("dropping what serves gave {other:?}, it has to be refused for good")),
    }
    expect(&engine, &key, "after the refused drop", &[1, 2], Some(2)).await?;
    reads(factory, &engine, &key, fixture, "after the refused drop", Some((2, 2))).await?;
    for _ in 0..2 {
        done("drop", engine.drop_version(&key, 1).await)?;
        expect(&engine, &key, "after the drop", &[2], Some(2)).await?;
    }
    reads(factory, &engine, &key, fixture, "after the drop", Some((2, 2))).await?;
    done("swap to none", engine.swap(&key, None).await)?;
    done("drop of the last", engine.drop_version(&key, 2).await)?;
    if done("stores", engine.stores().await)?.contains(&key) {
        return wrong("a store of which everything was dropped is still listed");
    }
    let left = factory.footprint("n6").await;
    if left > empty {
        return wrong(format!("{left:?} bytes are kept after everything was dropped, there were {empty:?} before"));
    }
    Ok(())
}

pub(super) async fn n6_drop_under_a_read<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("under");
    let engine = factory.open("n6-read").await;
    for version in [1, 2] {
        done("load", load(&engine, &key, version, fixture).await)?;
    }
    done("swap", engine.swap(&key, Some(1)).await)?;
    let Some(read) = factory.begin_read(&engine, &key).await else {
        return wrong("reads say that no version is served");
    };
    for half in [0, 1] {
        for place in 0..KEYS / 2 {
            let number = place * 2 + half;
            let value = read
                .value(&format!("k{number}"))
                .await
                .map_err(|error| format!("a read that had begun failed: {error}"))?;
            if !fixture.is_value(1, number, value.as_ref()) {
                return wrong(format!("a read that began with version 1 gave {value:?} for k{number}"));
            }
        }
        if half == 0 {
            done("swap", engine.swap(&key, Some(2)).await)?;
            done("drop", engine.drop_version(&key, 1).await)?;
            reads(factory, &engine, &key, fixture, "beside the old read", Some((2, 2))).await?;
        }
    }
    Ok(())
}

pub(super) async fn n7_every_step_twice<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("twice");
    let engine = factory.open("n7").await;
    for version in [1, 2] {
        let mut after: Option<Observed> = None;
        for _ in 0..2 {
            done("load", load(&engine, &key, version, fixture).await)?;
            let found = observed(&engine, &key).await?;
            if after.as_ref().is_some_and(|after| *after != found) {
                return wrong(format!("the second load changed something: {after:?}, then {found:?}"));
            }
            after = Some(found);
        }
        let first = done("verify", engine.verify(&key, version).await)?;
        let second = done("verify", engine.verify(&key, version).await)?;
        if first != second {
            return wrong(format!("verify gave {first:?}, then {second:?}"));
        }
        for _ in 0..2 {
            done("swap", engine.swap(&key, Some(version)).await)?;
            reads(factory, &engine, &key, fixture, "swapped twice", Some((version, version))).await?;
        }
    }
    for _ in 0..2 {
        done("swap back", engine.swap(&key, Some(1)).await)?;
        expect(&engine, &key, "swapped back", &[1, 2], Some(1)).await?;
        reads(factory, &engine, &key, fixture, "swapped back", Some((1, 1))).await?;
    }
    for _ in 0..2 {
        done("drop", engine.drop_version(&key, 2).await)?;
        expect(&engine, &key, "dropped twice", &[1], Some(1)).await?;
    }
    Ok(())
}

pub(super) async fn n7_stores_are_apart<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let engine = factory.open("n7-stores").await;
    let mut other = store("same name");
    other.incarnation = uuid::Uuid::from_u128(99);
    let keys = [store("left"), store("right"), other.clone()];
    let expected: BTreeMap<&StoreKey, u64> = keys.iter().zip([1, 2, 3]).collect();
    for (key, version) in &expected {
        done("load", load(&engine, key, *version, fixture).await)?;
        done("swap", engine.swap(key, Some(*version)).await)?;
    }
    for (key, version) in &expected {
        expect(&engine, key, "beside other stores", &[*version], Some(*version)).await?;
        reads(factory, &engine, key, fixture, "beside other stores", Some((*version, *version))).await?;
    }
    // Another store that has the same name is another, and holds nothing of this one.
    expect(&engine, &store("same name"), "another incarnation", &[], None).await?;
    done("swap to none", engine.swap(&store("same name"), None).await)?;
    expect(&engine, &other, "beside another incarnation", &[3], Some(3)).await?;
    let listed: BTreeSet<StoreKey> = done("stores", engine.stores().await)?.into_iter().collect();
    if listed != keys.iter().cloned().collect() {
        return wrong(format!("the stores are {keys:?}, listed are {listed:?}"));
    }
    Ok(())
}

pub(super) async fn n8_restart<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("restart");
    let engine = factory.open("n8").await;
    for version in [1, 2] {
        done("load", load(&engine, &key, version, fixture).await)?;
    }
    for version in [1, 2, 1] {
        done("swap", engine.swap(&key, Some(version)).await)?;
    }
    drop(engine);
    let engine = factory.open("n8").await;
    let found = observed(&engine, &key).await?;
    // An engine that keeps everything in memory may have lost it, but then all of it, and says so.
    if found == Observed::default() {
        return reads(factory, &engine, &key, fixture, "restarted with nothing", None).await;
    }
    expect(&engine, &key, "restarted", &[1, 2], Some(1)).await?;
    reads(factory, &engine, &key, fixture, "restarted", Some((1, 1))).await?;
    for version in [1, 2] {
        digest(&engine, &key, version, fixture).await?;
    }
    Ok(())
}

pub(super) async fn n8_everything_lost<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("lost");
    let engine = factory.open("n8-lost").await;
    done("load", load(&engine, &key, 2, fixture).await)?;
    done("swap", engine.swap(&key, Some(2)).await)?;
    drop(engine);
    factory.lose("n8-lost").await;
    let engine = factory.open("n8-lost").await;
    expect(&engine, &key, "after everything was lost", &[], None).await?;
    reads(factory, &engine, &key, fixture, "after everything was lost", None).await?;
    done("load", load(&engine, &key, 2, fixture).await)?;
    digest(&engine, &key, 2, fixture).await?;
    reads(factory, &engine, &key, fixture, "loaded again and not swapped", None).await?;
    done("swap", engine.swap(&key, Some(2)).await)?;
    reads(factory, &engine, &key, fixture, "swapped again", Some((2, 2))).await
}

pub(super) async fn n8_restart_in_mid_load<F: EngineFactory>(factory: &F, fixture: &Fixture) -> Verdict {
    let key = store("mid-load");
    for times in CUTS {
        let node = format!("n8-mid-load-{times}");
        let when = format!("restarted after {times} looks at a load");
        let engine = factory.open(&node).await;
        {
            let progress = Arc::new(LoadProgress::default());
            let cancelled = CancellationToken::new();
            let mut loading = pin!(engine.load(&key, 1, fixture.artifact(1), &progress, &cancelled));
            // It is dropped where it is, as by a crash.
            let _ = poll_times(loading.as_mut(), times).await;
        }
        drop(engine);
        let engine = factory.open(&node).await;
        let found = observed(&engine, &key).await?;
        if found.serving.is_some() {
            return wrong(format!("{when}: something serves that nobody swapped to"));
        }
        if found.holds(1) {
            digest(&engine, &key, 1, fixture).await?;
        }
        after_a_cut("the repeated load", async || load(&engine, &key, 1, fixture).await).await?;
        expect(&engine, &key, &when, &[1], None).await?;
        digest(&engine, &key, 1, fixture).await?;
    }
    Ok(())
}
