//! Stores, versions, pushes and regions: the rollout controller, region agents and engines.

pub mod entities;

pub mod controller;
