//! Upgrades: from which version to which, when one may begin, and what speaks against it.

pub mod path;
pub mod preflight;
pub mod window;
