//! Generates the messages and services from `openshell/**/*.proto`, without a protobuf compiler on the machine.

use std::error::Error;

/// Messages with a secret in them: their `Debug` is written by hand, in `src/redacted.rs`.
const SECRET: [&str; 11] = [
    ".openshell.compute.v1.DriverSandboxSpec",
    ".openshell.compute.v1.DriverSandboxTemplate",
    ".openshell.v1.CreateSshSessionResponse",
    ".openshell.v1.ExecSandboxRequest",
    ".openshell.v1.GetSandboxProviderEnvironmentResponse",
    ".openshell.v1.IssueSandboxTokenResponse",
    ".openshell.v1.RefreshSandboxTokenResponse",
    ".openshell.v1.RevokeSshSessionRequest",
    ".openshell.v1.TcpForwardInit",
    ".openshell.v1.SandboxSpec",
    ".openshell.v1.SandboxTemplate",
];

const FILES: [&str; 5] = [
    "openshell/compute/v1/compute_driver.proto",
    "openshell/datamodel/v1/datamodel.proto",
    "openshell/inference/v1/inference.proto",
    "openshell/sandbox/v1/sandbox.proto",
    "openshell/v1/openshell.proto",
];

/// Lints that generated code does not keep.
const CLIENT: &str = "#[cfg(feature = \"client\")]
#[expect(unused_qualifications, clippy::allow_attributes_without_reason, reason = \"generated\")]";
const SERVER: &str = "#[cfg(feature = \"server\")]
#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = \"generated\"
)]";
const LONG: &str = "#[expect(clippy::too_many_lines, reason = \"generated\")]";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=openshell");
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure()
        // Maps in key order: a message has one encoding, so that it can be hashed and compared.
        .btree_map(".")
        // A slice of what arrived, not a copy of it.
        .bytes(".openshell.v1.RelayFrame.data")
        .bytes(".openshell.v1.TcpForwardFrame.data")
        .bytes(".openshell.v1.ExecSandboxStdout.data")
        .bytes(".openshell.v1.ExecSandboxStderr.data")
        .bytes(".openshell.v1.ExecSandboxInput.stdin")
        .skip_debug(SECRET)
        // Skipped along with its message.
        .enum_attribute(".openshell.v1.TcpForwardInit.target", "#[derive(Debug)]")
        // Variants beside which the others of their oneof are small.
        .boxed(".openshell.v1.SandboxStreamEvent.payload.sandbox")
        .boxed(".openshell.compute.v1.WatchSandboxesEvent.payload.sandbox")
        .client_mod_attribute(".", CLIENT)
        .server_mod_attribute(".", SERVER)
        .server_mod_attribute("openshell.v1", LONG)
        .server_mod_attribute("openshell.compute.v1", LONG)
        .compile_fds(descriptors)?;
    Ok(())
}
