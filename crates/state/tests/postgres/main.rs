//! The conformance suite on PostgreSQL; what only PostgreSQL can do, and what can be done to it: real outages, networks that
//! fail, limits of the database's own.
#![allow(clippy::unwrap_used)]

use tidegate_state::testing::StoreKind;
use tidegate_state::testing::conformance::Variants;

tidegate_state::state_conformance!(on_postgres, StoreKind::Postgres, Variants::Drawn);

/// Makes a test of each case; where there is no PostgreSQL it is skipped, and that is noted.
macro_rules! with_postgres {
    ($($case:ident),* $(,)?) => {
        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    if tidegate_state::testing::postgres::skipped().is_none() {
                        super::$case().await;
                    }
                }
            )*
        }
    };
}
use with_postgres;

mod counted;
mod damaged;
mod entities;
mod errors;
mod formats;
mod held_open;
mod killed;
mod locks;
mod network;
mod news;
mod outages;
mod processes;
mod stopped;
mod support;
mod tls;
mod too_old;
