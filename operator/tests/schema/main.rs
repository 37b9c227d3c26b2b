//! The schema as a real API server judges it: what is refused, with words that name the field, the value and the way
//! out; what is accepted, and then also understood by the operator; what may never change.
#![cfg(test)]

mod clusters;
#[path = "../common/crds.rs"]
mod crds;
mod judge;
mod pools;

use kaas_e2e::apiserver::Apiserver;

use crate::judge::Judge;

#[test]
fn a_real_api_server_judges_as_written() {
    // Blocks, so before the runtime.
    let server = Apiserver::start().unwrap();
    let kubeconfig = server.kubeconfig().unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut judge = Judge::install(&kubeconfig).await;
        clusters::judge(&mut judge).await;
        pools::judge(&mut judge).await;
        let failures = &judge.failures;
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    });
}
