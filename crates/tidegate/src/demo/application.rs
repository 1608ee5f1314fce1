//! A small application that reads airports and judges them by what it knows: how long three well-known routes are.
//!
//! It is what `health-check` polls. It also reads all the time, in every region, and counts the reads that fail. It runs
//! within the demo's process or as one of its own, and is spoken to over HTTP either way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidegate_api::KeyAnswer;
use tidegate_client::{Client, Error as ClientError};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The store that it reads.
pub(crate) const STORE: &str = "airports";

/// From, to, kilometres along the great circle.
const ROUTES: [(&str, &str, f64); 3] =
    [("EDDF", "KJFK", 6_189.0), ("EGLL", "YSSY", 17_020.0), ("RJTT", "VIDP", 5_864.0)];

/// How far a route may be from what is known, as a share of it.
const TOLERANCE: f64 = 0.02;

/// The reads of the application so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reads {
    /// How many were made.
    pub(crate) made: u64,
    /// How many of them gave an error or no value.
    pub(crate) failed: u64,
}

impl Reads {
    /// Those since `earlier`.
    pub(crate) fn since(self, earlier: Reads) -> Reads {
        Reads { made: self.made - earlier.made, failed: self.failed - earlier.failed }
    }
}

#[derive(Debug, Default)]
struct Counters {
    made: AtomicU64,
    failed: AtomicU64,
}

/// Who answers reads, by region.
pub(crate) type Places = BTreeMap<String, Vec<Client>>;

/// The running application.
#[derive(Debug)]
pub(crate) struct Application {
    address: SocketAddr,
    service: Service,
    serving: JoinHandle<()>,
}

/// What the handlers can reach. Clones are the same.
#[derive(Debug, Clone)]
struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Places,
    counters: Counters,
    reads: AtomicBool,
    stop: CancellationToken,
    reading: TaskTracker,
}

impl Application {
    /// Starts it. It reads once it is told to.
    pub(crate) async fn start(listen: SocketAddr, places: Places) -> std::io::Result<Application> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let inner = Inner {
            places,
            counters: Counters::default(),
            reads: AtomicBool::new(false),
            stop: stop.clone(),
            reading: TaskTracker::new(),
        };
        let service = Service(Arc::new(inner));
        let router = Router::new()
            .route("/health", get(health))
            .route("/reads", get(reads).post(begin))
            .with_state(service.clone());
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
                tracing::error!(%error, "the reading application ended");
            }
        });
        Ok(Application { address, service, serving })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it and everything that it does.
    pub(crate) async fn stop(self) {
        self.service.0.stop.cancel();
        self.service.0.reading.close();
        self.service.0.reading.wait().await;
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the reading application did not end in order");
        }
    }
}

impl Service {
    async fn read(&self, region: &str, key: &str) -> Result<KeyAnswer, ClientError> {
        let clients = self.0.places.get(region).map(Vec::as_slice).unwrap_or_default();
        if let [_, _, ..] = clients {
            // Nobody waits for a process that is gone while another answers.
            for client in clients {
                match client.with_patience(Duration::ZERO).get(STORE, key, Some(region)).await {
                    Err(error) if error.is_unreachable() => {}
                    read => return read,
                }
            }
        }
        match clients.first() {
            Some(client) => client.get(STORE, key, Some(region)).await,
            None => Err(ClientError::Local {
                what: format!("region {region} can't be read in"),
                reason: "the application was given no address of it".to_owned(),
            }),
        }
    }

    /// Reads in a region until the application stops.
    async fn read_on(self, region: String) {
        let Inner { counters, stop, .. } = &*self.0;
        for (from, to, _) in ROUTES.iter().cycle() {
            for key in [from, to] {
                let read = self.read(&region, key).await;
                if stop.is_cancelled() {
                    return;
                }
                counters.made.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = read {
                    tracing::warn!(%error, %region, key, "a read failed");
                    counters.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
            let pause = tokio::time::sleep(Duration::from_millis(20));
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }
}

/// The reads so far.
async fn reads(State(service): State<Service>) -> Json<Reads> {
    let counters = &service.0.counters;
    // Failures first: each was made before it failed.
    let failed = counters.failed.load(Ordering::Relaxed);
    Json(Reads { made: counters.made.load(Ordering::Relaxed), failed })
}

/// Reads in all regions from now on.
async fn begin(State(service): State<Service>) -> StatusCode {
    if !service.0.reads.swap(true, Ordering::Relaxed) {
        for region in service.0.places.keys() {
            service.0.reading.spawn(service.clone().read_on(region.clone()));
        }
    }
    StatusCode::NO_CONTENT
}

#[derive(Debug, Deserialize)]
struct HealthQuery {
    region: String,
}

async fn health(State(service): State<Service>, Query(query): Query<HealthQuery>) -> (StatusCode, String) {
    let mut positions = BTreeMap::new();
    for key in ROUTES.iter().flat_map(|(from, to, _)| [*from, *to]) {
        match service.read(&query.region, key).await {
            Ok(answer) => positions.insert(key, position(&answer.value)),
            Err(error) => {
                return (StatusCode::SERVICE_UNAVAILABLE, format!("reading {key} in {}: {error}", query.region));
            }
        };
    }
    match judge(&positions) {
        Ok(said) => (StatusCode::OK, said),
        Err(said) => (StatusCode::INTERNAL_SERVER_ERROR, said),
    }
}

fn position(value: &Value) -> Option<(f64, f64)> {
    Some((value.get("lat")?.as_f64()?, value.get("lon")?.as_f64()?))
}

fn judge(positions: &BTreeMap<&str, Option<(f64, f64)>>) -> Result<String, String> {
    let mut said = Vec::new();
    for (from, to, known) in ROUTES {
        let place = |key: &str| positions.get(key).copied().flatten().ok_or_else(|| format!("{key} has no position"));
        let flown = kilometres(place(from)?, place(to)?);
        if (flown - known).abs() > known * TOLERANCE {
            return Err(format!("the route {from}–{to} is {flown:.0} km long (known: {known:.0} km, limit ± 2 %)"));
        }
        said.push(format!("{from}–{to} {flown:.0} km"));
    }
    Ok(said.join(", "))
}

/// The great-circle distance on a sphere of the Earth's mean radius (haversine).
fn kilometres((from_latitude, from_longitude): (f64, f64), (to_latitude, to_longitude): (f64, f64)) -> f64 {
    let (from, to) = (from_latitude.to_radians(), to_latitude.to_radians());
    let (north, east) = (to - from, (to_longitude - from_longitude).to_radians());
    let half = (north / 2.0).sin().powi(2) + from.cos() * to.cos() * (east / 2.0).sin().powi(2);
    2.0 * 6_371.0 * half.sqrt().asin()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeMap<&'static str, Option<(f64, f64)>> {
        BTreeMap::from([
            ("EDDF", Some((50.0264, 8.54313))),
            ("KJFK", Some((40.639_928, -73.778_692))),
            ("EGLL", Some((51.4706, -0.461_94))),
            ("YSSY", Some((-33.9461, 151.177))),
            ("RJTT", Some((35.5523, 139.78))),
            ("VIDP", Some((28.5665, 77.1031))),
        ])
    }

    #[test]
    fn the_application_knows_its_routes() {
        let said = judge(&known()).unwrap();
        assert!(said.starts_with("EDDF–KJFK 61"), "{said}");
    }

    #[test]
    fn a_position_of_another_airport_is_noticed_with_figure_and_limit() {
        let mut positions = known();
        positions.insert("KJFK", Some((33.94, -118.4)));
        let said = judge(&positions).unwrap_err();
        assert!(said.contains("(known: 6189 km, limit ± 2 %)"), "{said}");
        positions.insert("KJFK", None);
        assert_eq!(judge(&positions).unwrap_err(), "KJFK has no position");
    }
}
