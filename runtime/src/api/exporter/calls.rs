//! A layer around the gRPC services that measures each call.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http::{Request, Response};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

pub(super) type Durations = Family<Call, Histogram, fn() -> Histogram>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Call {
    service: String,
    method: String,
    code: String,
}

/// From a millisecond, where calls that are answered from memory end, to some four minutes, a kubelet's patience.
pub(super) fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

#[derive(Debug, Clone)]
pub struct Calls(Durations);

impl Calls {
    pub(super) fn new(durations: Durations) -> Self {
        Self(durations)
    }
}

#[derive(Debug, Clone)]
pub struct Counted<S> {
    inner: S,
    durations: Durations,
}

impl<S> Layer<S> for Calls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, durations: self.0.clone() }
    }
}

impl<S, B> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let (begun, durations) = (Instant::now(), self.durations.clone());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // An error has its code among the headers (gRPC's Trailers-Only); an answer has OK behind its message.
            let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
            durations.get_or_create(&call(&path, code)).observe(begun.elapsed().as_secs_f64());
            Ok(answer)
        })
    }
}

/// The labels of a call. A method that nobody has may be called anything: such calls share one name.
fn call(path: &str, code: Code) -> Call {
    let known = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let (service, method) = match known {
        Some(words) if code != Code::Unimplemented => words,
        _ => ("", "unimplemented"),
    };
    Call { service: service.to_owned(), method: method.to_owned(), code: format!("{code:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_path_and_one_that_nobody_has_by_none() {
        let called = call("/runtime.v1.RuntimeService/Version", Code::Ok);
        assert_eq!(called.service, "runtime.v1.RuntimeService");
        assert_eq!((called.method.as_str(), called.code.as_str()), ("Version", "Ok"));
        for made_up in ["/a/b", "/", "nonsense"] {
            assert_eq!(call(made_up, Code::Unimplemented).method, "unimplemented");
        }
    }
}
