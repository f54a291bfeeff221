//! A person's container among its network's names: from before it starts until it has ended for good.

use super::{actor::Pod, wish};
use crate::id::ContainerId;

impl Pod {
    /// Others of its network find it from now on.
    pub fn announce(&self, id: &ContainerId) {
        let record = self.containers.get(id).map(|there| &there.record);
        if let Some(spec) = record.and_then(|record| record.standalone.as_ref()) {
            self.rooms.network.announce(&self.id, &wish::names(spec, id));
        }
    }
}
