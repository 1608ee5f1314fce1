//! The hooks that a build has: by name, with the keys they understand and the way to make one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::contract::{HookError, StoreLifecycleHooks};
use crate::function::Function;

/// Makes a hook from its clipped, published configuration. Called once per generation of the configuration, and again
/// where it failed; what a store overrides comes with each call's context.
pub type Factory = dyn Fn(&BTreeMap<String, String>) -> Result<Arc<dyn StoreLifecycleHooks>, HookError> + Send + Sync;

/// A hook's setting, for validation and documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HookKey {
    /// The key; one that ends with `.*` stands for every key with that beginning, such as one per field.
    pub key: &'static str,
    /// What it means, its unit and its default.
    pub meaning: &'static str,
}

/// A hook that a build has.
#[derive(Clone)]
pub struct HookDescriptor {
    /// Its name.
    pub name: String,
    /// The keys it understands beside `mode` and `on_failure`; none means that the hook judges every key itself.
    pub keys: Option<&'static [HookKey]>,
    /// Whether it does anything in a function with these settings. A hook that says no is not called.
    pub acts: fn(Function, &BTreeMap<String, String>) -> bool,
    /// Makes one.
    pub factory: Arc<Factory>,
}

impl fmt::Debug for HookDescriptor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HookDescriptor").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The hooks of a build, in the order that is their default.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    hooks: Vec<HookDescriptor>,
}

impl Registry {
    /// No hooks at all.
    #[must_use]
    pub fn empty() -> Self {
        Registry::default()
    }

    /// The hooks that Tidegate ships.
    #[must_use]
    pub fn shipped() -> Self {
        Registry { hooks: crate::hooks::shipped() }
    }

    /// Adds a hook of one's own, or replaces the one of that name.
    #[must_use]
    pub fn with<F>(self, name: impl Into<String>, factory: F) -> Self
    where
        F: Fn(&BTreeMap<String, String>) -> Result<Arc<dyn StoreLifecycleHooks>, HookError> + Send + Sync + 'static,
    {
        self.with_descriptor(HookDescriptor {
            name: name.into(),
            keys: None,
            acts: |_, _| true,
            factory: Arc::new(factory),
        })
    }

    /// As [`Registry::with`], with keys that are checked and functions that are known to do nothing.
    #[must_use]
    pub fn with_descriptor(mut self, descriptor: HookDescriptor) -> Self {
        match self.hooks.iter_mut().find(|hook| hook.name == descriptor.name) {
            Some(hook) => *hook = descriptor,
            None => self.hooks.push(descriptor),
        }
        self
    }

    /// The names, in default order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.hooks.iter().map(|hook| hook.name.as_str())
    }

    /// The hook of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&HookDescriptor> {
        self.hooks.iter().find(|hook| hook.name == name)
    }

    /// Whether a hook does anything in a function with these settings; true where this build does not know the hook.
    #[must_use]
    pub fn acts(&self, name: &str, function: Function, settings: &BTreeMap<String, String>) -> bool {
        self.get(name).is_none_or(|hook| (hook.acts)(function, settings))
    }
}
