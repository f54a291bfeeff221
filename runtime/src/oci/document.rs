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
    /// The classic BPF program of its seccomp profile; empty: it has none.
    pub filter: Arc<Vec<u8>>,
}

impl Document {
    /// # Errors
    /// Of a profile that can't be compiled.
    pub fn of(mut spec: Spec) -> Result<Self> {
        let filter = compile::filter(&spec)?;
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
        Ok(Self { spec: Arc::new(spec), filter })
    }
}
