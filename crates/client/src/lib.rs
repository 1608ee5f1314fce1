//! Tidegate's Rust client: pushes and remote reads.
//!
//! ```no_run
//! # async fn example() -> Result<(), tidegate_client::Error> {
//! use tidegate_client::Client;
//!
//! let client = Client::new("http://127.0.0.1:7600")?;
//! let answer = client.get("airports", "EDDF", Some("a")).await?;
//! println!("version {} says {}", answer.version, answer.value);
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] has one method per route of the API, with the types of `tidegate-api`. Requests are
//! repeated, with growing and jittered pauses, for as long as [`Options::patience`] says, where
//! the server can't be reached or says that trying again may help; a request whose repetition
//! could do something twice is repeated only if it never left this process.
//!
//! A server that asks everybody for a token is shown [`Options::token`]; one whose certificate no
//! public authority has signed is known by [`Options::ca`].
//!
//! [`PushJob`] is the whole way of a push: build an artifact from files, send what is missing of
//! it, and follow the push to its end, through restarts of the server and of the client itself.
//!
//! [`Events`] is a watch stream that reconnects and resumes by itself.

mod calls;
mod client;
mod error;
mod events;
pub mod push;
mod retry;
mod token;

pub use calls::access::AuditQuery;
pub use client::{Client, Options};
pub use error::Error;
pub use events::{Events, Resume};
pub use push::{PushError, PushEvent, PushJob, PushObserver, PushOptions, PushOutcome};
pub use tidegate_api as api;
pub use token::Token;
