//! The one error of this crate. It names the object, the field and the value; never key material.

use jiff::Timestamp;

/// Why a key or certificate was not made or not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The period is empty, inverted or outside what a certificate can say.
    #[error("validity {not_before} to {not_after}: {reason}")]
    Validity {
        /// First second asked for.
        not_before: Timestamp,
        /// Last second asked for.
        not_after: Timestamp,
        /// What is wrong and what would be accepted.
        reason: &'static str,
    },
    /// The authority's own certificate leaves no time for a leaf.
    #[error(
        "certificate authority {authority:?} is valid from {not_before} to {not_after}, which leaves no time for \
         a certificate starting {requested}: renew the authority first"
    )]
    AuthorityExpired {
        /// Common name of the authority.
        authority: String,
        /// First second of the authority.
        not_before: Timestamp,
        /// Last second of the authority.
        not_after: Timestamp,
        /// First second asked for.
        requested: Timestamp,
    },
    /// A name in a request cannot stand in a certificate.
    #[error("certificate request {request:?}, {field} {value:?}: {reason}")]
    Name {
        /// Common name of the request.
        request: String,
        /// Field of the request.
        field: &'static str,
        /// The refused value.
        value: String,
        /// What is wrong and what would be accepted.
        reason: &'static str,
    },
    /// The text is not one X.509 certificate in PEM.
    #[error("certificate cannot be read: {reason}")]
    Certificate {
        /// What is wrong with it.
        reason: String,
    },
    /// The text is not one PKCS#10 request in PEM, signed by its own key.
    #[error("signing request cannot be read: {reason}")]
    SigningRequest {
        /// What is wrong with it.
        reason: String,
    },
    /// The text is not a private key in PEM of a kind that is accepted.
    #[error("private key of {owner:?} cannot be read: {reason}")]
    PrivateKey {
        /// Whose key it is.
        owner: String,
        /// What is wrong with it, without any of its content.
        reason: String,
    },
    /// The certificate cannot act as a certificate authority.
    #[error("certificate {subject:?} cannot act as a certificate authority: {reason}")]
    NotAuthority {
        /// Common name of the certificate.
        subject: String,
        /// What it lacks.
        reason: String,
    },
    /// The private key is not the one of the certificate.
    #[error(
        "the private key does not belong to the certificate of authority {authority:?}: both must come from the \
         same pair"
    )]
    KeyMismatch {
        /// Common name of the authority.
        authority: String,
    },
    /// The cryptographic library refused an operation.
    #[error("{operation} for {subject:?} failed: {reason}")]
    Crypto {
        /// What was attempted.
        operation: &'static str,
        /// For whom.
        subject: String,
        /// What the library said.
        reason: String,
    },
}
