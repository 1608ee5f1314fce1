//! Cluster hooks (section K), on memory, SQLite and PostgreSQL from one source.

/// Runs each case on every store.
macro_rules! both {
    ($($case:ident),* $(,)?) => {
        mod on_memory {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(tidegate_state::testing::StoreKind::Memory).await;
                }
            )*
        }
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(tidegate_state::testing::StoreKind::Sqlite).await;
                }
            )*
        }
        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    if tidegate_state::testing::postgres::skipped().is_none() {
                        super::$case(tidegate_state::testing::StoreKind::Postgres).await;
                    }
                }
            )*
        }
    };
}
use both;

mod delivery;
mod faults;
mod linter;
mod load;
mod moving;
mod operators;
mod registrations;
mod support;
