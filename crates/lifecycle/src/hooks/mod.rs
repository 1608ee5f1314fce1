//! The hooks that Tidegate ships, one file each. Every one is enabled by default and does nothing until it is configured.
//!
//! Keys that every hook has: `mode` (`enforce`, `observe`, `off`) and `on_failure` (`wait`, `abort`, `proceed`).

pub mod data_quality;
pub mod exec;
pub mod health_check;
pub mod region_order;

use crate::registry::HookDescriptor;

/// All of them, in their default order.
pub(crate) fn shipped() -> Vec<HookDescriptor> {
    vec![data_quality::descriptor(), region_order::descriptor(), health_check::descriptor(), exec::descriptor()]
}
