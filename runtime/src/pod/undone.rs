//! What a failed call could not take back, since its disk refuses that too: tried again until it is gone. A berthd that ends
//! before leaves it to the next one's sweep.

use std::{future::Future, time::Duration};

use tracing::{info, warn};

use crate::Result;

/// Between tries; doubles from the first to the last.
const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(300);

/// Goes on trying beside everything else. Absent parts are success, so it may be done as often as it takes.
pub fn take_back<F>(id: String, work: impl Fn() -> F + Send + 'static)
where
    F: Future<Output = Result<()>> + Send,
{
    tokio::spawn(async move {
        let mut pause = FIRST;
        loop {
            tokio::time::sleep(pause).await;
            match work().await {
                Ok(()) => break,
                Err(error) if pause == LAST => {
                    warn!(id, error = error.chain(), "what is left of a failed call still can't be removed");
                }
                // Told when it first failed.
                Err(_) => {}
            }
            pause = (pause * 2).min(LAST);
        }
        info!(id, "what was left of a failed call is removed");
    });
}
