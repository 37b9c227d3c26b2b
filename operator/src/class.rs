//! What kind of failure an error is. Retry, metrics and condition reasons come from here, never from error texts.

use kaas_crds::Reason;

/// Kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Passes by itself: overload, a time-out, a server that restarts.
    Transient,
    /// The world changed since it was read: read it again.
    Conflict,
    /// Not permitted: somebody must grant it.
    Denied,
    /// Refused as invalid: the same request will be refused again.
    Invalid,
    /// What it is about is gone.
    NotFound,
    /// No answer at all.
    Unreachable,
    /// The operator no longer leads: another one goes on.
    NotLeading,
    /// A mistake of this program.
    Bug,
}

impl Class {
    /// For metric labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Transient => "transient",
            Class::Conflict => "conflict",
            Class::Denied => "denied",
            Class::Invalid => "invalid",
            Class::NotFound => "not_found",
            Class::Unreachable => "unreachable",
            Class::NotLeading => "not_leading",
            Class::Bug => "bug",
        }
    }

    /// Whether trying again may help without anybody's doing.
    pub fn is_transient(self) -> bool {
        !matches!(self, Class::Denied | Class::Invalid | Class::Bug)
    }

    /// The reason in a condition.
    pub fn reason(self) -> Reason {
        match self {
            Class::Denied => Reason::RequestDenied,
            Class::Invalid | Class::Bug => Reason::RequestInvalid,
            _ => Reason::RequestFailing,
        }
    }
}

/// Classifies an error of the Kubernetes client by status code, not by text.
pub fn classify(error: &kube::Error) -> Class {
    match error {
        kube::Error::Api(status) => match (status.code, status.reason.as_str()) {
            (409, _) => Class::Conflict,
            // A namespace that terminates forbids creation: that passes.
            (403, _)
                if status.details.as_ref().is_some_and(|details| {
                    details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
                }) =>
            {
                Class::Transient
            }
            (401 | 403, _) => Class::Denied,
            (404, _) => Class::NotFound,
            (400 | 405 | 413 | 415 | 422, _) => Class::Invalid,
            _ => Class::Transient,
        },
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => {
            Class::Unreachable
        }
        kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => Class::Bug,
        _ => Class::Transient,
    }
}
