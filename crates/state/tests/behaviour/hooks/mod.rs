//! Cluster hooks (section K), on memory and SQLite from one source.

/// Runs each case on both stores.
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
