//! Messages and services of the control plane: between users and the gateway, the gateway and its drivers, the gateway and the
//! supervisors inside its sandboxes.
//!
//! The `.proto` files below `openshell/` name packages, messages, numbers and types as OpenShell has them at commit 2f7fb655; the code is
//! generated from them when this package is built. The features `client` and `server` add the two halves of each service; without them
//! there are messages only.
//!
//! Invariant: a secret is in no `Debug` output, and a message has one encoding.

#![forbid(unsafe_code)]

mod redacted;

/// Flow control of HTTP/2, the same at every end of ours, RFC 9113 section 6.9.
///
/// Windows that grow by themselves start at 64 KiB, and the connection's says how much small frames may cost before a peer ends it, which
/// guards against floods: a hundred unread keystrokes of many relays were one. These allow thousands.
pub mod window {
    /// Bytes that a peer may send on one stream before they are read.
    pub const STREAM_BYTES: u32 = 256 << 10;
    /// The same of all streams of a connection together.
    pub const CONNECTION_BYTES: u32 = 2 << 20;
    /// Payload of a relay's message that fits one DATA frame of 16 KiB together with its headers.
    pub const RELAY_CHUNK_BYTES: usize = (16 << 10) - 64;
}

/// `openshell.v1`: the gateway, its users and its supervisors.
pub mod v1 {
    #![expect(missing_docs, reason = "generated: the .proto file says what there is to say")]
    tonic::include_proto!("openshell.v1");
}

/// `openshell.sandbox.v1`: policies and settings of sandboxes.
pub mod sandbox {
    /// The one version there is.
    pub mod v1 {
        #![expect(missing_docs, reason = "generated: the .proto file says what there is to say")]
        tonic::include_proto!("openshell.sandbox.v1");
    }
}

/// `openshell.compute.v1`: the gateway and its compute driver.
pub mod compute {
    /// The one version there is.
    pub mod v1 {
        #![expect(missing_docs, reason = "generated: the .proto file says what there is to say")]
        tonic::include_proto!("openshell.compute.v1");
    }
}

/// `openshell.datamodel.v1`: what every stored object has.
pub mod datamodel {
    /// The one version there is.
    pub mod v1 {
        #![expect(missing_docs, reason = "generated: the .proto file says what there is to say")]
        tonic::include_proto!("openshell.datamodel.v1");
    }
}

/// `openshell.inference.v1`: routes to model servers.
pub mod inference {
    /// The one version there is.
    pub mod v1 {
        #![expect(missing_docs, reason = "generated: the .proto file says what there is to say")]
        tonic::include_proto!("openshell.inference.v1");
    }
}
