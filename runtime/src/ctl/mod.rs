//! The verbs of `berth`, one file each. A client: of this crate it knows nothing but the proto.
