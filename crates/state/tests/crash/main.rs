//! Real faults on a real file: kill -9, a full disk, damage by hand. The writers that are killed are processes of their own: this
//! binary, started again with a folder in its environment.

#![allow(clippy::unwrap_used)]

mod damaged;
mod disk;
mod held;
mod hooked;
mod killed;
mod writers;
