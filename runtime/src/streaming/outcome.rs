//! How an exec or attach ended, as the error stream says it.

use serde_json::{Value, json};

use super::{channels::Outgoing, upgrade::Protocol};
use crate::Result;

/// Writes the outcome, an exit code or why there is none, and ends the stream.
pub async fn report(to: Option<Outgoing>, protocol: Protocol, outcome: &Result<i32>) {
    let Some(to) = to else { return };
    let text = match protocol.reports_status() {
        true => status(outcome).to_string(),
        false => words(outcome),
    };
    if !text.is_empty() {
        // A client that left has nothing to learn.
        to.send(text.into_bytes()).await.ok();
    }
    to.finish().await;
}

/// A `metav1.Status`, as kubectl reads it.
fn status(outcome: &Result<i32>) -> Value {
    match outcome {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": words(outcome),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {}", error.chain()),
            "reason": "InternalError",
            "details": {"causes": [{"message": error.chain()}]},
            "code": 500,
        }),
    }
}

/// Empty for success.
fn words(outcome: &Result<i32>) -> String {
    match outcome {
        Ok(0) => String::new(),
        Ok(code) => format!("command terminated with non-zero exit code: exit status {code}"),
        Err(error) => error.chain(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Error, Kind, error::Cause};

    #[test]
    fn kubectl_finds_the_exit_code_where_it_looks() {
        assert_eq!(status(&Ok(0)).to_string(), r#"{"metadata":{},"status":"Success"}"#);
        let failed = status(&Ok(3));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        let error = || Error::new(Kind::Internal, "exec in container", "abc").because(Cause("gone".into()));
        let broken = status(&Err(error()));
        assert_eq!((broken["reason"].as_str(), broken["code"].as_i64()), (Some("InternalError"), Some(500)));
        assert!(broken["message"].as_str().unwrap().ends_with("exec in container abc: gone"));
        assert_eq!(words(&Ok(0)), "");
        assert!(words(&Ok(3)).ends_with("exit status 3"));
        assert_eq!(words(&Err(error())), "exec in container abc: gone");
    }
}
