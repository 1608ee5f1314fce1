//! The artifact store that the region's data comes from: whether it is known to be the installation's.
//!
//! The agent reads artifacts through the control plane's servers, which look after the store's mark. It asks them how that is,
//! so that whoever looks at the region is told why nothing new comes. What the region holds it serves on, whatever becomes of
//! the store.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tidegate_api::ArtifactStoreView;
use tidegate_rollout::region::RemoteClient;
use tidegate_rollout::region::agent::random_jitter;

/// How often it is asked for.
const EVERY: Duration = Duration::from_secs(15);

/// How often while something is wrong with it, or nobody answers.
const EVERY_IN_TROUBLE: Duration = Duration::from_secs(2);

/// What is known of the store.
pub(super) struct Source {
    known: Mutex<Known>,
    matches: Gauge,
}

/// What was last heard of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// The token of its mark.
    probe: Option<String>,
    trouble: Option<String>,
}

impl From<&ArtifactStoreView> for Known {
    /// The same store has the same mark as long as it is the installation's; where another one is named without trouble, the
    /// installation itself has become another, and it is the one to read from.
    fn from(heard: &ArtifactStoreView) -> Self {
        let trouble = heard.trouble.as_ref().map(|why| format!("the servers' artifact store {}: {why}", heard.name));
        Known { probe: Some(heard.probe.clone()), trouble }
    }
}

impl Source {
    pub(super) fn register(metrics: &mut Registry) -> Self {
        let matches = Gauge::default();
        matches.set(1);
        metrics.register(
            "artifact_store_matches",
            "1 if the artifact store that the region reads from bears the installation's mark, as far as the servers say",
            matches.clone(),
        );
        Self { known: Mutex::default(), matches }
    }

    /// Why nothing new may come from it, if so.
    pub(super) fn trouble(&self) -> Option<String> {
        self.known.lock().trouble.clone()
    }

    fn hear(&self, heard: &ArtifactStoreView) {
        let mut known = self.known.lock();
        let next = Known::from(heard);
        if known.trouble != next.trouble {
            match &next.trouble {
                Some(why) => tracing::error!(
                    why,
                    "the artifact store that this region reads from is not known to be the installation's: nothing new may \
                     come from it, and what the region holds is served on; look at it on a server (`GET /v1/artifact-store`)"
                ),
                None => tracing::info!(
                    store = heard.name,
                    "the artifact store that this region reads from is the installation's"
                ),
            }
        }
        if known.probe.is_some() && known.probe != next.probe {
            tracing::warn!(
                store = heard.name,
                "the servers name another artifact store than before; what the region holds is served on"
            );
        }
        self.matches.set(i64::from(next.trouble.is_none()));
        *known = next;
    }
}

/// Asks the servers again and again.
pub(super) async fn follow(app: super::AgentApp, client: RemoteClient) {
    let jitter = random_jitter();
    loop {
        let heard = client.json::<ArtifactStoreView>(&["v1", "artifact-store"], |http, url| http.get(url)).await;
        let source = &app.0.source;
        let every = match heard {
            Ok(heard) => {
                source.hear(&heard);
                if source.trouble().is_some() { EVERY_IN_TROUBLE } else { EVERY }
            }
            // Who can't be asked says nothing about the store: what is known of it stays.
            Err(error) => {
                tracing::debug!(%error, "the control plane does not say how its artifact store is");
                EVERY_IN_TROUBLE
            }
        };
        tokio::time::sleep(every.mul_f64(0.75 + 0.5 * jitter())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_lasts_as_long_as_the_servers_say_so() {
        let source = Source::register(&mut Registry::default());
        let view = |trouble: Option<&str>| ArtifactStoreView {
            name: "file:///x".to_owned(),
            is_bucket: false,
            probe: "p".to_owned(),
            trouble: trouble.map(str::to_owned),
        };
        assert_eq!((source.trouble(), source.matches.get()), (None, 1));
        source.hear(&view(Some("it has no mark")));
        let trouble = source.trouble().unwrap();
        assert!(trouble.contains("file:///x") && trouble.contains("it has no mark"), "{trouble}");
        assert_eq!(source.matches.get(), 0);
        source.hear(&view(None));
        assert_eq!((source.trouble(), source.matches.get()), (None, 1));
    }
}
