//! For tests of what builds on this crate, and of drivers: several servers on one store, named points at which a test
//! holds or cuts them, and suites that every driver has to pass.

pub mod points;
