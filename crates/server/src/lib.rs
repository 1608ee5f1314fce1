//! Tidegate's server: the HTTP API, its watches and metrics, and the page.
//!
//! [`Server::start`] opens everything a server needs below one folder (the database, artifacts,
//! what its regions hold), starts the regions that it hosts, registers the cluster hooks that
//! make rollouts happen, and serves until [`Handle::shutdown`].
//!
//! ```no_run
//! # async fn example() -> Result<(), tidegate_server::StartError> {
//! use tidegate_server::{Options, Server};
//!
//! let server = Server::start(Options::new("/var/lib/tidegate")).await?;
//! println!("{}", server.url());
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Where things are
//! | what | module |
//! |---|---|
//! | starting and stopping | [`Server`], `server` |
//! | the configuration file | [`config`] |
//! | routes, one file per subject | `routes` |
//! | errors, extractors, guards | `http` |
//! | from a snapshot to what the API shows | `views` (pure) |
//! | parts on their way into the artifact store | `uploads` |
//! | the page | `page`, `assets/` |
//! | a region's agent, and a node of it, as processes of their own | [`agent`], [`node`] |
//!
//! # Invariants
//! - Handlers decide nothing about rollouts: they call [`tidegate_rollout::Operations`], each one
//!   transaction, and show what the state says.
//! - Every refusal has the one shape of errors, with none of its four texts empty.
//! - Nothing is read without a bound: bodies, batches, parts, watches and requests at once have
//!   limits, and every wait has one.
//! - A server listens on loopback only, and answers for loopback names only, until there is access
//!   control.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
mod app;
pub mod config;
mod http;
pub mod node;
mod page;
mod routes;
mod schemas;
mod server;
mod uploads;
mod validation;
mod views;

pub use config::{ConfigError, ConfigFile};
pub use server::{DEFAULT_LISTEN, Handle, Options, Server, StartError};
