//! Key material of one tenant while a reconcile works on it. The only place outside the API server where it is held,
//! and only so long.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use kaas_lifecycle::action::Authority;
use kaas_lifecycle::key_material::AUTHORITY_SECRET;

/// Secrets by name, entries by key.
#[derive(Clone, Default)]
pub(crate) struct Keyring(BTreeMap<String, BTreeMap<String, String>>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Keyring {
    /// Takes up a Secret as it was read.
    pub(crate) fn read(&mut self, secret: &Secret) {
        let name = secret.metadata.name.clone().unwrap_or_default();
        let entries = secret.data.iter().flatten();
        let texts =
            entries.filter_map(|(key, bytes)| Some((key.clone(), String::from_utf8(bytes.0.clone()).ok()?)));
        self.0.insert(name, texts.collect());
    }

    /// Takes up a Secret as it was made.
    pub(crate) fn put(&mut self, name: &str, entries: BTreeMap<String, String>) {
        self.0.insert(name.to_owned(), entries);
    }

    /// An entry.
    pub(crate) fn get(&self, secret: &str, key: &str) -> Option<&str> {
        self.0.get(secret)?.get(key).map(String::as_str)
    }

    /// The certificate of an authority.
    pub(crate) fn authority_certificate(&self, authority: Authority) -> Option<&str> {
        self.get(AUTHORITY_SECRET, &format!("{}.crt", authority.file()))
    }

    /// An authority, ready to sign.
    pub(crate) fn authority(
        &self,
        authority: Authority,
    ) -> Option<Result<kaas_pki::Authority, kaas_pki::Error>> {
        let certificate = self.authority_certificate(authority)?;
        let key = self.get(AUTHORITY_SECRET, &format!("{}.key", authority.file()))?;
        Some(kaas_pki::Authority::load(certificate, key))
    }
}
