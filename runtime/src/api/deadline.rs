//! Two answers that tonic gives and CRI words otherwise.
//!
//! The caller's deadline (`grpc-timeout`, gRPC over HTTP/2 protocol) is answered as DEADLINE_EXCEEDED: tonic ends such a
//! call with CANCELLED, which a kubelet doesn't take for a timeout. Only the answer ends here: what a pod's task or the
//! image store has begun runs on, and a retry joins it. A message over the bound is INVALID_ARGUMENT like everything
//! else that nobody may ask, and not OUT_OF_RANGE.

use std::{convert::Infallible, future::Future, pin::Pin, task::Poll, time::Duration};

use http::{Request, Response};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

/// So much before the caller's own clock runs out the answer leaves.
const HEAD_START: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, Copy)]
pub struct Deadline;

#[derive(Debug, Clone)]
pub struct Deadlined<S>(S);

impl<S> Layer<S> for Deadline {
    type Service = Deadlined<S>;

    fn layer(&self, inner: S) -> Deadlined<S> {
        Deadlined(inner)
    }
}

impl<S, B> Service<Request<B>> for Deadlined<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let header = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
        let allowed = header.and_then(parse);
        let answer = self.0.call(request);
        Box::pin(async move {
            let Some(allowed) = allowed else { return answer.await.map(reworded) };
            match tokio::time::timeout(allowed.saturating_sub(HEAD_START), answer).await {
                Ok(answer) => answer.map(reworded),
                Err(_) => {
                    let text = format!(
                        "the caller's deadline of {allowed:?} ran out; the work goes on and a retry joins it"
                    );
                    Ok(Status::deadline_exceeded(text).into_http())
                }
            }
        })
    }
}

/// The refusal of a message over the bound, in our words; tonic has refused it before any call of ours began.
fn reworded(answer: Response<Body>) -> Response<Body> {
    match Status::from_header_map(answer.headers()) {
        Some(status) if too_large(&status) => {
            let bound = super::serve::MAX_MESSAGE_BYTES;
            let text =
                format!("read request message: it has more than {bound} bytes; ask for less in one call");
            Status::invalid_argument(text).into_http()
        }
        _ => answer,
    }
}

fn too_large(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("decoded message length too large")
}

/// At most eight digits and a unit.
fn parse(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_eight_digits_and_a_unit() {
        let rows = [
            ("1m", Some(Duration::from_millis(1))),
            ("2S", Some(Duration::from_secs(2))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("3M", Some(Duration::from_secs(180))),
            ("5u", Some(Duration::from_micros(5))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("123456789S", None),
            ("-1S", None),
            ("+1S", None),
            ("1x", None),
            ("1ä", None),
        ];
        for (header, expected) in rows {
            assert_eq!(parse(header), expected, "{header}");
        }
    }
}
