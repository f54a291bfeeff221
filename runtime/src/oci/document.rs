//! What is kept of a container's document for what is asked of it later: without its seccomp profile, which is most of
//! it and the same in most containers, and with the filter that it became.

use std::sync::Arc;

use oci_spec::runtime::Spec;

use super::compile;
use crate::Result;

#[derive(Debug, Clone, Default)]
pub struct Document {
    /// Without seccomp.
    pub spec: Arc<Spec>,
    /// The classic BPF program of its seccomp profile; empty: it has none; None: this berthd can't compile it.
    pub filter: Option<Arc<Vec<u8>>>,
}

impl Document {
    /// # Errors
    /// Of a profile that can't be compiled.
    pub fn of(spec: Spec) -> Result<Self> {
        let filter = compile::filter(&spec)?;
        Ok(Self { filter: Some(filter), ..Self::without_filter(spec) })
    }

    /// Of a container that runs already: it is found again whatever its document says, and only an exec is refused.
    pub fn found(spec: Spec) -> Self {
        Self { filter: compile::filter(&spec).ok(), ..Self::without_filter(spec) }
    }

    fn without_filter(mut spec: Spec) -> Self {
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        Self { spec: Arc::new(spec), filter: None }
    }
}
