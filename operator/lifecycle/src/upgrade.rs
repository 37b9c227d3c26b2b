//! Upgrades: when one may begin.

pub mod window;
