//! Scenarios: days in the life of a tenant cluster, with a clock that only tests move.
#![cfg(test)]

mod creation;
mod deletion;
mod membership;
mod revisions;
mod safety;
mod world;
