//! The wire format: bytes written by hand from the tables of field numbers, against what the messages make of them.
//!
//! Each row is a message and its encoding: tags are `number << 3 | type`, type 0 a varint, 1 eight bytes, 2 a length and bytes.

use std::collections::BTreeMap;
use std::fmt::Debug;

use openshell_proto::compute::v1 as compute;
use openshell_proto::datamodel::v1::ObjectMeta;
use openshell_proto::inference::v1::GetInferenceBundleResponse;
use openshell_proto::sandbox::v1 as sandbox;
use openshell_proto::v1;
use prost::Message;

/// Holds both ways, and with a field from the future at the end.
#[expect(clippy::needless_pass_by_value, reason = "a message is written where it is checked")]
fn check<M: Message + Default + PartialEq + Debug>(message: M, golden: &[u8]) {
    assert_eq!(message.encode_to_vec(), golden, "{message:?}");
    assert_eq!(M::decode(golden).unwrap(), message);
    // Number 2000, a varint.
    let newer = [golden, &[0x80, 0x7d, 0x01]].concat();
    assert_eq!(M::decode(newer.as_slice()).unwrap(), message);
}

/// A field of a length and bytes.
fn field(tag: &[u8], content: &[u8]) -> Vec<u8> {
    [tag, &[u8::try_from(content.len()).unwrap()], content].concat()
}

fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

fn one(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

#[test]
fn datamodel() {
    check(
        ObjectMeta {
            id: "i".into(),
            name: "n".into(),
            created_at_ms: 300,
            labels: one("k", "v"),
            resource_version: 7,
            annotations: one("a", "b"),
            workspace: "w".into(),
            deletion_timestamp_ms: -1,
        },
        b"\x0a\x01i\x12\x01n\x18\xac\x02\x22\x06\x0a\x01k\x12\x01v\x28\x07\x32\x06\x0a\x01a\x12\x01b\x3a\x01w\x40\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    );
}

#[test]
fn compute_driver() {
    check(
        compute::GetCapabilitiesResponse {
            driver_name: "d".into(),
            driver_version: "1".into(),
            default_image: "x".into(),
            gateway_manages_lifecycle: true,
        },
        b"\x0a\x01d\x12\x011\x1a\x01x\x30\x01",
    );
    let spec = joined(&[
        field(&[0x0a], b"info"),
        field(&[0x2a], b"\x0a\x01E\x12\x01e"),
        field(&[0x32], b"\x0a\x01x\x52\x08\x12\x014\x22\x03\x31Gi"),
        field(&[0x4a], b"\x0a\x02\x08\x01"),
        field(&[0x5a], b"tok"),
        field(&[0x62], b"sh"),
        vec![0x68, 0x01],
    ]);
    let status = joined(&[
        field(&[0x0a], b"n"),
        field(&[0x2a], b"\x0a\x05Ready\x12\x05False\x1a\x08Starting"),
        vec![0x30, 0x01],
    ]);
    check(
        compute::DriverSandbox {
            id: "i".into(),
            name: "n".into(),
            namespace: "s".into(),
            spec: Some(compute::DriverSandboxSpec {
                log_level: "info".into(),
                environment: one("E", "e"),
                template: Some(compute::DriverSandboxTemplate {
                    image: "x".into(),
                    resources: Some(compute::DriverResourceRequirements {
                        cpu_limit: "4".into(),
                        memory_limit: "1Gi".into(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                resource_requirements: Some(compute::ResourceRequirements {
                    gpu: Some(compute::GpuResourceRequirements { count: Some(1) }),
                }),
                sandbox_token: "tok".into(),
                command: vec!["sh".into()],
                tty: true,
            }),
            status: Some(compute::DriverSandboxStatus {
                sandbox_name: "n".into(),
                conditions: vec![compute::DriverCondition {
                    r#type: "Ready".into(),
                    status: "False".into(),
                    reason: "Starting".into(),
                    ..Default::default()
                }],
                deleting: true,
                ..Default::default()
            }),
            workspace: "w".into(),
        },
        &joined(&[
            field(&[0x0a], b"i"),
            field(&[0x12], b"n"),
            field(&[0x1a], b"s"),
            field(&[0x22], &spec),
            field(&[0x2a], &status),
            field(&[0x32], b"w"),
        ]),
    );
}

#[test]
fn compute_events_and_listeners() {
    check(
        compute::WatchSandboxesEvent {
            payload: Some(compute::watch_sandboxes_event::Payload::PlatformEvent(
                compute::WatchSandboxesPlatformEvent {
                    sandbox_id: "i".into(),
                    event: Some(compute::DriverPlatformEvent {
                        timestamp_ms: 1,
                        source: "vm".into(),
                        r#type: "Normal".into(),
                        reason: "Pulled".into(),
                        message: "m".into(),
                        metadata: one("k", "v"),
                    }),
                },
            )),
        },
        &field(
            &[0x1a],
            &joined(&[
                field(&[0x0a], b"i"),
                field(
                    &[0x12],
                    b"\x08\x01\x12\x02vm\x1a\x06Normal\x22\x06Pulled\x2a\x01m\x32\x06\x0a\x01k\x12\x01v",
                ),
            ]),
        ),
    );
    check(
        compute::GatewayListenerRequirement {
            reason: "r".into(),
            selector: Some(compute::gateway_listener_requirement::Selector::LoopbackInterface(
                compute::GatewayLoopbackInterfaceRequirement {},
            )),
        },
        b"\x0a\x01r\x22\x00",
    );
}

#[test]
fn sandbox_settings() {
    check(
        sandbox::SandboxPolicy {
            version: 1,
            filesystem: Some(sandbox::FilesystemPolicy {
                include_workdir: true,
                read_only: vec!["/usr".into()],
                read_write: vec!["/tmp".into()],
            }),
            landlock: Some(sandbox::LandlockPolicy { compatibility: "best_effort".into() }),
            process: Some(sandbox::ProcessPolicy {
                run_as_user: "u".into(),
                run_as_group: "g".into(),
            }),
            network_policies: BTreeMap::from([(
                "p".to_owned(),
                sandbox::NetworkPolicyRule {
                    name: "p".into(),
                    endpoints: vec![sandbox::NetworkEndpoint {
                        host: "h".into(),
                        ports: vec![443],
                        path: "/x".into(),
                        provider_credentialed: true,
                        ..Default::default()
                    }],
                    binaries: vec![sandbox::NetworkBinary {
                        path: "/b".into(),
                        ..Default::default()
                    }],
                },
            )]),
            network_middlewares: BTreeMap::new(),
        },
        &joined(&[
            b"\x08\x01".to_vec(),
            field(&[0x12], b"\x08\x01\x12\x04/usr\x1a\x04/tmp"),
            field(&[0x1a], b"\x0a\x0bbest_effort"),
            field(&[0x22], b"\x0a\x01u\x12\x01g"),
            field(
                &[0x2a],
                &joined(&[
                    field(&[0x0a], b"p"),
                    field(
                        &[0x12],
                        b"\x0a\x01p\x12\x0e\x0a\x01h\x4a\x02\xbb\x03\x7a\x02/x\xc8\x01\x01\x1a\x04\x0a\x02/b",
                    ),
                ]),
            ),
        ]),
    );
    check(
        sandbox::GetSandboxConfigResponse {
            version: 2,
            policy_hash: "h".into(),
            settings: BTreeMap::from([(
                "s".to_owned(),
                sandbox::EffectiveSetting {
                    value: Some(sandbox::SettingValue {
                        value: Some(sandbox::setting_value::Value::IntValue(5)),
                    }),
                    scope: sandbox::SettingScope::Global.into(),
                },
            )]),
            config_revision: 3,
            policy_source: sandbox::PolicySource::Sandbox.into(),
            provider_env_revision: 4,
            workspace: "w".into(),
            policy_validation_failure_mode: "f".into(),
            extension_authentication_enabled: true,
            ..Default::default()
        },
        b"\x10\x02\x1a\x01h\x22\x0b\x0a\x01s\x12\x06\x0a\x02\x18\x05\x10\x02\x28\x03\x30\x01\x40\x04\x52\x01w\x5a\x01f\x60\x01",
    );
}

#[test]
fn merge_operations() {
    use v1::policy_merge_operation::Operation;
    let [rule_name, host, binary_path] = ["r", "h", "/b"].map(str::to_owned);
    for (operation, golden) in [
        (
            Operation::AddRule(v1::AddNetworkRule {
                rule_name: rule_name.clone(),
                rule: Some(sandbox::NetworkPolicyRule { name: "n".into(), ..Default::default() }),
            }),
            &b"\x0a\x08\x0a\x01r\x12\x03\x0a\x01n"[..],
        ),
        (
            Operation::RemoveEndpoint(v1::RemoveNetworkEndpoint {
                rule_name: rule_name.clone(),
                host: host.clone(),
                port: 443,
            }),
            b"\x12\x09\x0a\x01r\x12\x01h\x18\xbb\x03",
        ),
        (
            Operation::RemoveRule(v1::RemoveNetworkRule { rule_name: rule_name.clone() }),
            b"\x1a\x03\x0a\x01r",
        ),
        (
            Operation::AddDenyRules(v1::AddDenyRules {
                host: host.clone(),
                port: 1,
                deny_rules: vec![sandbox::L7DenyRule { method: "M".into(), ..Default::default() }],
            }),
            b"\x22\x0a\x0a\x01h\x10\x01\x1a\x03\x0a\x01M",
        ),
        (
            Operation::AddAllowRules(v1::AddAllowRules {
                host,
                port: 1,
                rules: vec![sandbox::L7Rule::default()],
            }),
            b"\x2a\x07\x0a\x01h\x10\x01\x1a\x00",
        ),
        (
            Operation::RemoveBinary(v1::RemoveNetworkBinary { rule_name, binary_path }),
            b"\x32\x07\x0a\x01r\x12\x02/b",
        ),
    ] {
        check(v1::PolicyMergeOperation { operation: Some(operation) }, golden);
    }
    check(
        v1::UpdateConfigRequest {
            merge_operations: vec![v1::PolicyMergeOperation::default()],
            ..Default::default()
        },
        b"\x3a\x00",
    );
}

#[test]
fn inference() {
    check(
        GetInferenceBundleResponse {
            routes: vec![b"r".to_vec()],
            revision: "1".into(),
            generated_at_ms: 1,
        },
        b"\x0a\x01r\x12\x011\x18\x01",
    );
}

#[test]
fn sandboxes() {
    check(
        v1::SandboxStatus {
            sandbox_name: "n".into(),
            conditions: vec![v1::SandboxCondition {
                r#type: "Ready".into(),
                status: "True".into(),
                reason: "r".into(),
                message: "m".into(),
                last_transition_time: "t".into(),
            }],
            phase: v1::SandboxPhase::Starting.into(),
            current_policy_version: 1,
            main_process_instance_id: "u".into(),
            // Present, though it is zero.
            exit_code: Some(0),
            ..Default::default()
        },
        b"\x0a\x01n\x2a\x16\x0a\x05Ready\x12\x04True\x1a\x01r\x22\x01m\x2a\x01t\x30\x08\x38\x01\x42\x01u\x48\x00",
    );
    check(
        v1::CreateSandboxRequest {
            spec: Some(v1::SandboxSpec {
                log_level: "l".into(),
                environment: one("E", "e"),
                template: Some(v1::SandboxTemplate { image: "x".into(), ..Default::default() }),
                policy: Some(sandbox::SandboxPolicy { version: 1, ..Default::default() }),
                providers: vec!["p".into()],
                resource_requirements: Some(v1::ResourceRequirements {
                    gpu: Some(v1::GpuResourceRequirements { count: None }),
                }),
                command: vec!["c".into()],
                tty: true,
            }),
            name: "n".into(),
            labels: one("k", "v"),
            annotations: one("a", "b"),
            workspace: "w".into(),
        },
        &joined(&[
            field(
                &[0x0a],
                b"\x0a\x01l\x2a\x06\x0a\x01E\x12\x01e\x32\x03\x0a\x01x\x3a\x02\x08\x01\x42\x01p\x4a\x02\x0a\x00\x62\x01c\x68\x01",
            ),
            b"\x12\x01n\x1a\x06\x0a\x01k\x12\x01v\x22\x06\x0a\x01a\x12\x01b\x2a\x01w".to_vec(),
        ]),
    );
    check(
        v1::ExecSandboxRequest {
            sandbox_id: "i".into(),
            command: vec!["c".into()],
            workdir: "/".into(),
            environment: one("E", "e"),
            timeout_seconds: 5,
            stdin: b"in".to_vec(),
            tty: true,
            cols: 80,
            rows: 24,
        },
        b"\x0a\x01i\x12\x01c\x1a\x01/\x22\x06\x0a\x01E\x12\x01e\x28\x05\x32\x02in\x38\x01\x40\x50\x48\x18",
    );
    check(
        v1::ExecSandboxEvent {
            payload: Some(v1::exec_sandbox_event::Payload::Exit(v1::ExecSandboxExit {
                exit_code: -1,
            })),
        },
        b"\x1a\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    );
    check(
        v1::TcpForwardInit {
            sandbox_id: "i".into(),
            service_id: "s".into(),
            target: Some(v1::tcp_forward_init::Target::Tcp(v1::TcpRelayTarget {
                host: "h".into(),
                port: 8080,
            })),
            authorization_token: "t".into(),
        },
        b"\x0a\x01i\x22\x01s\x32\x06\x0a\x01h\x10\x90\x3f\x3a\x01t",
    );
}

#[test]
fn sessions() {
    use v1::{gateway_message, relay_frame, relay_open, supervisor_message};

    let from_supervisor: [(supervisor_message::Payload, &[u8]); 4] = [
        (
            supervisor_message::Payload::Hello(v1::SupervisorHello {
                sandbox_id: "i".into(),
                instance_id: "u".into(),
            }),
            b"\x0a\x06\x0a\x01i\x12\x01u",
        ),
        (supervisor_message::Payload::Heartbeat(v1::SupervisorHeartbeat {}), b"\x12\x00"),
        (
            supervisor_message::Payload::RelayOpenResult(v1::RelayOpenResult {
                channel_id: "c".into(),
                success: true,
                error: "e".into(),
            }),
            b"\x1a\x08\x0a\x01c\x10\x01\x1a\x01e",
        ),
        (
            supervisor_message::Payload::RelayClose(v1::RelayClose {
                channel_id: "c".into(),
                reason: "r".into(),
            }),
            b"\x22\x06\x0a\x01c\x12\x01r",
        ),
    ];
    for (payload, golden) in from_supervisor {
        check(v1::SupervisorMessage { payload: Some(payload) }, golden);
    }
    let from_gateway: [(gateway_message::Payload, &[u8]); 4] = [
        (
            gateway_message::Payload::SessionAccepted(v1::SessionAccepted {
                session_id: "s".into(),
                heartbeat_interval_secs: 15,
            }),
            b"\x0a\x05\x0a\x01s\x10\x0f",
        ),
        (
            gateway_message::Payload::SessionRejected(v1::SessionRejected { reason: "r".into() }),
            b"\x12\x03\x0a\x01r",
        ),
        (gateway_message::Payload::Heartbeat(v1::GatewayHeartbeat {}), b"\x1a\x00"),
        (
            gateway_message::Payload::RelayOpen(v1::RelayOpen {
                channel_id: "c".into(),
                target: Some(relay_open::Target::Ssh(v1::SshRelayTarget {})),
                service_id: "s".into(),
            }),
            b"\x22\x08\x0a\x01c\x12\x00\x2a\x01s",
        ),
    ];
    for (payload, golden) in from_gateway {
        check(v1::GatewayMessage { payload: Some(payload) }, golden);
    }
    check(
        v1::RelayFrame {
            payload: Some(relay_frame::Payload::Init(v1::RelayInit { channel_id: "c".into() })),
        },
        b"\x0a\x03\x0a\x01c",
    );
    check(
        v1::RelayFrame { payload: Some(relay_frame::Payload::Data(b"xyz".to_vec().into())) },
        b"\x12\x03xyz",
    );
    check(
        v1::ReportMainProcessExitRequest {
            sandbox_id: "i".into(),
            instance_id: "u".into(),
            exit_code: 137,
        },
        b"\x0a\x01i\x12\x01u\x18\x89\x01",
    );
}

#[cfg(feature = "server")]
#[test]
fn services_have_their_names() {
    use openshell_proto::{compute, inference, v1};
    assert_eq!(v1::open_shell_server::SERVICE_NAME, "openshell.v1.OpenShell");
    assert_eq!(
        compute::v1::compute_driver_server::SERVICE_NAME,
        "openshell.compute.v1.ComputeDriver"
    );
    assert_eq!(inference::v1::inference_server::SERVICE_NAME, "openshell.inference.v1.Inference");
}
