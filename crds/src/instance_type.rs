//! `InstanceType`: what a worker can be. Written by the platform, chosen by tenants.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cpu::Cpu;
use crate::node::{ExtendedResources, Labels};
use crate::quantity::Quantity;

/// A kind of machine. What makes it the machine it is cannot change: workers of one type are alike.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kaas.dev",
    version = "v1alpha1",
    kind = "InstanceType",
    plural = "instancetypes",
    shortname = "it",
    category = "kaas",
    derive = "PartialEq",
    doc = "InstanceType is what a worker can be: capacity, architecture, zones, labels, extended resources, price.",
    printcolumn(name = "CPU", type_ = "string", json_path = ".spec.capacity.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.capacity.memory"),
    printcolumn(name = "Architecture", type_ = "string", json_path = ".spec.architecture"),
    printcolumn(name = "Price", type_ = "string", json_path = ".spec.pricePerHour"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')").message(Message::Expression(
        "\"metadata.name: '\" + self.metadata.name + \"' must be at most 63 lower-case letters, digits and '-', as it becomes a label of nodes\"".into()
    )),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.capacity == oldSelf.capacity").message("spec.capacity: workers of one type are alike; make another InstanceType"),
    validation = Rule::new("self.architecture == oldSelf.architecture").message("spec.architecture: workers of one type are alike; make another InstanceType"),
    validation = Rule::new("self.extendedResources == oldSelf.extendedResources").message("spec.extendedResources: workers of one type are alike; make another InstanceType"),
)]
pub struct InstanceTypeSpec {
    /// What a machine of this type has.
    pub capacity: Capacity,

    /// Processor architecture: label `kubernetes.io/arch` of the nodes.
    #[serde(default)]
    pub architecture: Architecture,

    /// Zones that have such machines. A pool spreads its workers over them, and each node carries its zone as the label
    /// `topology.kubernetes.io/zone`. Without zones nodes carry none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 63), regex(pattern = "^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub zones: Vec<String>,

    /// Labels of the nodes; a pool's template wins where both have a key.
    #[serde(default)]
    pub labels: Labels,

    /// Extended resources of the nodes, for example `example.com/gpu: 1`.
    #[serde(default)]
    pub extended_resources: ExtendedResources,

    /// What an hour of such a machine costs, in whatever the platform counts. For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16), regex(pattern = "^[0-9]{1,9}(\\.[0-9]{1,6})?$"))]
    pub price_per_hour: Option<String>,
}

/// What a machine has.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Cores, for example `2` or `500m`; from 100m to 1024.
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9]{1,7}m?$') && !quantity(self).isLessThan(quantity('100m')) && !quantity(self).isGreaterThan(quantity('1024'))"
    ).message(Message::Expression(
        "\"spec.capacity.cpu: '\" + self + \"' must be a number of cores from 100m to 1024, for example 2 or 500m\"".into()
    )))]
    pub cpu: Cpu,

    /// Memory, for example `4Gi`; from 256Mi to 32Ti.
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9]{1,15}(Ki|Mi|Gi|Ti|k|M|G|T)?$') && isQuantity(self) && !quantity(self).isLessThan(quantity('256Mi')) && !quantity(self).isGreaterThan(quantity('32Ti'))"
    ).message(Message::Expression(
        "\"spec.capacity.memory: '\" + self + \"' must be a whole quantity from 256Mi to 32Ti, for example 4Gi\"".into()
    )))]
    pub memory: Quantity,
}

/// Processor architecture, as Kubernetes names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// x86 with 64 bits.
    #[default]
    Amd64,
    /// ARM with 64 bits.
    Arm64,
}
