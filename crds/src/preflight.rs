//! What speaks against the next upgrade: the findings of the preflight, as they stand in status.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::Owner;

/// Most findings in status; errors come first.
pub const MOST_FINDINGS: usize = 32;

/// What was found before an upgrade.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preflight {
    /// The version that it is about: the one that is asked for, or the newest that there is a way to.
    #[schemars(length(max = 32))]
    pub target: String,
    /// What was found, errors first; at most 32.
    #[serde(default)]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub findings: Vec<Finding>,
    /// So many more are not shown.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub more: i32,
}

/// Something that speaks against an upgrade. It goes away by itself when its cause does.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Its reason and what it is about, for example `BudgetBlocksDrain/default/web`. Put it into `spec.upgrade.ignore` to
    /// upgrade nevertheless.
    #[schemars(length(max = 253))]
    pub id: String,
    /// How bad it is.
    pub severity: Severity,
    /// The fact.
    #[schemars(length(max = 512))]
    pub message: String,
    /// What was seen.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub evidence: String,
    /// Who must act.
    pub owner: Owner,
    /// What to do.
    #[schemars(length(max = 512))]
    pub fix: String,
    /// It blocks nothing because `spec.upgrade.ignore` names it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignored: bool,
}

/// How bad a finding is, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Severity {
    /// It blocks the upgrade.
    Error,
    /// Something may be worse after the upgrade, or slower in it.
    Warning,
    /// Good to know.
    Info,
}
