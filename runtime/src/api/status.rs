//! Error -> Status, and the one place where a call's error is logged.

use std::{error::Error as _, future::Future, time::Instant};

use tonic::{Code, Response, Status};
use tracing::{Instrument, Span, debug, error, warn};

use crate::{Error, Kind, Result};

/// Prefixes that the kubelet looks for at the start of a message (k8s.io/cri-api/pkg/errors).
const KUBELET_PREFIXES: [&str; 4] =
    ["RegistryUnavailable", "SignatureValidationFailed", "RROUnsupported", "ImageVolumeMountFailed"];

/// Runs one call in its span; its error becomes a status and is logged here.
pub async fn call<T>(span: Span, work: impl Future<Output = Result<T>>) -> Result<Response<T>, Status> {
    async move {
        let begun = Instant::now();
        let result = work.await;
        debug!(elapsed_ms = begun.elapsed().as_millis(), ok = result.is_ok(), "call answered");
        result.map(Response::new).map_err(|error| told(&error))
    }
    .instrument(span)
    .await
}

/// Logs the error by its kind and makes the status that the caller gets.
pub fn told(error: &Error) -> Status {
    let message = message(error);
    match error.kind {
        Kind::NotFound | Kind::Cancelled | Kind::Unimplemented => debug!(error = %message, "call refused"),
        Kind::Invalid
        | Kind::AlreadyExists
        | Kind::Precondition
        | Kind::Deadline
        | Kind::Unavailable
        | Kind::Denied => warn!(error = %message, "call refused"),
        Kind::Exhausted | Kind::Internal => error!(error = %message, "call failed"),
    }
    Status::new(code(error.kind), message)
}

/// The answer to a call that a later capability brings.
pub fn later<T>(call: &str, capability: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{call} comes with {capability}")))
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::Precondition => Code::FailedPrecondition,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Deadline => Code::DeadlineExceeded,
        Kind::Cancelled => Code::Cancelled,
        Kind::Unavailable => Code::Unavailable,
        Kind::Denied => Code::PermissionDenied,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::Internal => Code::Internal,
    }
}

/// The whole chain; a kubelet prefix that any cause begins with is moved to the front.
fn message(error: &Error) -> String {
    let chain = error.chain();
    let mut cause = error.source();
    while let Some(here) = cause {
        let text = here.to_string();
        if let Some(prefix) = KUBELET_PREFIXES.into_iter().find(|prefix| text.starts_with(prefix)) {
            return format!("{prefix}: {}", chain.replacen(&format!("{prefix}: "), "", 1));
        }
        cause = here.source();
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Cause;

    #[test]
    fn each_kind_has_its_code() {
        let rows = [
            (Kind::Invalid, Code::InvalidArgument),
            (Kind::NotFound, Code::NotFound),
            (Kind::AlreadyExists, Code::AlreadyExists),
            (Kind::Precondition, Code::FailedPrecondition),
            (Kind::Exhausted, Code::ResourceExhausted),
            (Kind::Deadline, Code::DeadlineExceeded),
            (Kind::Cancelled, Code::Cancelled),
            (Kind::Unavailable, Code::Unavailable),
            (Kind::Denied, Code::PermissionDenied),
            (Kind::Unimplemented, Code::Unimplemented),
            (Kind::Internal, Code::Internal),
        ];
        for (kind, expected) in rows {
            let status = told(&Error::new(kind, "do", "this").because(Cause("that".into())).hint("try it"));
            assert_eq!((status.code(), status.message()), (expected, "do this: that; try it"));
        }
    }

    #[test]
    fn the_kubelets_prefixes_come_first_wherever_they_begin_a_cause() {
        let plain = Error::new(Kind::Unavailable, "pull image", "x")
            .because(Cause("RegistryUnavailable: connection refused".into()));
        assert!(told(&plain).message().starts_with("RegistryUnavailable: pull image x"));
        let nested = Error::new(Kind::Internal, "create", "c").because(plain);
        assert!(told(&nested).message().starts_with("RegistryUnavailable: create c"));
        let first = Error::new(Kind::Unavailable, "RegistryUnavailable:", "pull x");
        assert!(told(&first).message().starts_with("RegistryUnavailable: pull x"));
        let within = Error::invalid("pull", "x", "not a RegistryUnavailable");
        assert!(told(&within).message().starts_with("pull x"));
    }
}
