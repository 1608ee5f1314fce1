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
//! | where the state is kept | `database` |
//! | which server this is among those that share a database | `membership` |
//! | looking again before something is said to be unknown | `look_again` |
//! | backups, and putting one back | [`backup`] |
//! | routes, one file per subject | `routes` |
//! | errors, extractors, guards | `http` |
//! | from a snapshot to what the API shows | `views` (pure) |
//! | the artifact store, and whether it is the installation's | `artifacts` |
//! | parts on their way into the artifact store | `uploads` |
//! | reads of regions that are hosted elsewhere | `forward` |
//! | the cluster hooks that it runs, and when it begins to | `selection`, `work` |
//! | the page | `page`, `assets/` |
//! | who may ask what: tokens, roles, the audit trail | [`access`] |
//! | a server whose database does not answer yet | `waiting` |
//! | a region's agent, and a node of it, as processes of their own | [`agent`], [`node`] |
//!
//! # Invariants
//! - Handlers decide nothing about rollouts: they call [`tidegate_rollout::Operations`], each one
//!   transaction, and show what the state says.
//! - Every refusal has the one shape of errors, with none of its four texts empty.
//! - Nothing is read without a bound: bodies, batches, parts, watches and requests at once have
//!   limits, and every wait has one.
//! - Whoever asks may do what the table of [`access`] says and nothing else, unless authentication is off, as it is by default
//!   on loopback. A server that would be open or in the clear beyond loopback does not start, unless told so by name.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod access;
pub mod agent;
mod app;
mod artifacts;
pub mod backup;
pub mod config;
mod data_folder;
mod database;
mod forward;
mod http;
mod look_again;
mod membership;
pub mod node;
mod page;
mod routes;
mod selection;
mod server;
mod uploads;
mod validation;
mod views;
mod waiting;
mod work;

pub use artifacts::{Adoption, MissingVersion};
pub use config::{ConfigError, ConfigFile};
pub use database::drop_schema;
pub use server::{DEFAULT_LISTEN, Handle, Options, Server, StartError};
pub use tidegate_dataset::location::Environment;
