//! Private keys: new ones are ECDSA P-256 in PKCS#8; given ones are read in PEM. Refuses what Kubernetes cannot use.

use std::fmt;

use rcgen::{KeyPair, PKCS_ED25519};

use crate::Error;

/// The pair that signs and verifies the tokens of service accounts.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceAccountKey {
    /// PEM for `--service-account-signing-key-file` and `--service-account-private-key-file`.
    pub private_key_pem: String,
    /// PKIX PEM (`PUBLIC KEY`) for `--service-account-key-file`.
    pub public_key_pem: String,
}

impl ServiceAccountKey {
    /// Makes a new pair.
    pub fn generate() -> Result<Self, Error> {
        let key = generate_key(SERVICE_ACCOUNT)?;
        Ok(Self { private_key_pem: key.serialize_pem(), public_key_pem: key.public_key_pem() })
    }

    /// Takes an existing private key (ECDSA or RSA) and derives the public one.
    pub fn load(private_key_pem: &str) -> Result<Self, Error> {
        let key = load_key(SERVICE_ACCOUNT, private_key_pem)?;
        if key.is_compatible(&PKCS_ED25519) {
            return Err(Error::PrivateKey {
                owner: SERVICE_ACCOUNT.to_owned(),
                reason: "Kubernetes signs tokens with ECDSA or RSA keys only, this one is Ed25519".to_owned(),
            });
        }
        Ok(Self { private_key_pem: private_key_pem.to_owned(), public_key_pem: key.public_key_pem() })
    }
}

impl fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountKey")
            .field("private_key_pem", &REDACTED)
            .field("public_key_pem", &self.public_key_pem)
            .finish()
    }
}

/// What `Debug` prints in place of a secret.
pub(crate) const REDACTED: &str = "[redacted]";

const SERVICE_ACCOUNT: &str = "service accounts";

pub(crate) fn generate_key(owner: &str) -> Result<KeyPair, Error> {
    KeyPair::generate().map_err(|error| Error::Crypto {
        operation: "generating a private key",
        subject: owner.to_owned(),
        reason: error.to_string(),
    })
}

pub(crate) fn load_key(owner: &str, pem: &str) -> Result<KeyPair, Error> {
    KeyPair::from_pem(pem)
        .map_err(|error| Error::PrivateKey { owner: owner.to_owned(), reason: error.to_string() })
}
