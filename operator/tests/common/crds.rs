//! The chart's kinds in an API server.

use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::runtime::wait::{await_condition, conditions};

const CRDS: [&str; 5] = [
    include_str!("../../../charts/kaas-crds/templates/tenantclusters.yaml"),
    include_str!("../../../charts/kaas-crds/templates/kubernetesreleases.yaml"),
    include_str!("../../../charts/kaas-crds/templates/instancetypes.yaml"),
    include_str!("../../../charts/kaas-crds/templates/workerpools.yaml"),
    include_str!("../../../charts/kaas-crds/templates/workers.yaml"),
];
const DEADLINE: Duration = Duration::from_secs(30);

/// Creates all of them, and waits until they are served.
pub(crate) async fn install(client: &Client) {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    try_join_all(CRDS.map(async |text| {
        let crd: CustomResourceDefinition = serde_yaml::from_str(text).unwrap();
        let name = crds.create(&PostParams::default(), &crd).await?.metadata.name.unwrap();
        let established = await_condition(crds.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(DEADLINE, established).await.expect("the CRD is established in time").unwrap();
        Ok::<_, kube::Error>(())
    }))
    .await
    .unwrap();
}
