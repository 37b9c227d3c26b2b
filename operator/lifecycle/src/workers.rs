//! Workers: which ones a pool should have, and what becomes of each.
//!
//! Two plans, from two sets of facts. A pool's makes Worker objects and chooses which go; a worker's makes the machine,
//! lets the node join, and takes it all away in order. Neither remembers a step: both begin from what is seen.

pub mod action;
mod choice;
pub mod infrastructure;
pub mod join;
pub mod lint;
pub mod machine;
pub mod node;
pub mod observed;
pub mod orphan;
pub mod pool;
pub mod report;
mod roll;
pub mod template;
pub mod validated;
pub mod worker;
