//! What makes the bare node a cluster to work with: DNS, a default storage class, and the registry that workers
//! of tenants pull from. Applied on the server's side; the second time nothing is written.

use std::time::Duration;

use crate::Error;
use crate::digest;
use crate::image::catalogue;
use crate::kubectl::Kubectl;
use crate::layout::State;
use crate::network;
use crate::registry;

const COREDNS: &str = include_str!("../manifests/coredns.yaml");
const LOCAL_PATH: &str = include_str!("../manifests/local-path.yaml");
const REGISTRY: &str = include_str!("../manifests/registry.yaml");
const READY_DEADLINE: Duration = Duration::from_secs(180);

/// Applies all add-ons.
pub(crate) fn apply(kubectl: &Kubectl, state: &State) -> Result<(), Error> {
    let coredns = fill(
        COREDNS,
        &[("image", &catalogue::addon_reference("coredns")?), ("dns", &network::DNS_ADDRESS.to_string())],
    )?;
    let (storage, images) = (state.storage(), state.registry());
    for directory in [&storage, &images] {
        std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    }
    let local_path = local_path(
        &storage.display().to_string(),
        &format!("{}/local-path-provisioner", catalogue::REGISTRY),
        catalogue::SHELL,
    )?;
    let registry = fill(
        REGISTRY,
        &[
            ("image", &catalogue::addon_reference("registry")?),
            ("path", &images.display().to_string()),
            ("nodePort", &registry::NODE_PORT.to_string()),
        ],
    )?;
    kubectl.apply(&coredns)?;
    kubectl.apply(&registry)?;
    kubectl.apply(&local_path)
}

/// A provisioner of volumes below a path of the node, from this repository and with this image of a shell.
pub(crate) fn local_path(path: &str, repository: &str, shell: &str) -> Result<String, Error> {
    let image = catalogue::official(repository, "local-path-provisioner")?;
    fill(LOCAL_PATH, &[("image", &image), ("helper", shell), ("path", path)])
}

/// Waits until all answer.
pub(crate) fn await_ready(kubectl: &Kubectl) -> Result<(), Error> {
    kubectl.await_deployment("kube-system", "coredns", READY_DEADLINE)?;
    kubectl.await_deployment("kaas-registry", "registry", READY_DEADLINE)?;
    kubectl.await_deployment("local-path-storage", "local-path-provisioner", READY_DEADLINE)
}

/// Puts values in the place of their names; a name without a value is an error.
/// `digest` is the template's own: pods that read their configuration once are rolled when it changes.
fn fill(template: &str, values: &[(&str, &str)]) -> Result<String, Error> {
    let digest = digest::short(&digest::of_bytes(template.as_bytes()), 12);
    let text = values
        .iter()
        .chain(&[("digest", digest.as_str())])
        .fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), value));
    match text.split_once("{{") {
        Some((_, rest)) => {
            let name = rest.split("}}").next().unwrap_or_default();
            Err(Error::Invalid(format!("a manifest asks for `{name}`, which has no value")))
        }
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_filled() {
        assert_eq!(fill("a {{x}} {{x}}", &[("x", "1")]).unwrap(), "a 1 1");
        assert!(fill("a {{y}}", &[("x", "1")]).unwrap_err().to_string().contains("`y`"));
    }
}
