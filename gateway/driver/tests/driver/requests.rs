//! What each RPC answers: codes, and what a snapshot holds.

use openshell_driver_vm::backend::stub::Stub;
use openshell_driver_vm::endpoint::Endpoint;
use openshell_driver_vm::sandbox::{Settings, TlsPaths};
use openshell_proto::compute::v1 as pb;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use tonic::Code;

use crate::fixture::{Fixture, create, delete, get, list, sandbox, settings, start, stop};

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn strings(all: &[&str]) -> Value {
    let values = all.iter().map(|one| text(one)).collect();
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

fn config(entries: &[(&str, Value)]) -> Option<Struct> {
    let fields = entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    Some(Struct { fields })
}

fn spec(sandbox: &mut pb::DriverSandbox) -> &mut pb::DriverSandboxSpec {
    sandbox.spec.as_mut().expect("a spec")
}

fn template(sandbox: &mut pb::DriverSandbox) -> &mut pb::DriverSandboxTemplate {
    spec(sandbox).template.as_mut().expect("a template")
}

fn gpu(sandbox: &mut pb::DriverSandbox, count: Option<u32>) {
    let gpu = Some(pb::GpuResourceRequirements { count });
    spec(sandbox).resource_requirements = Some(pb::ResourceRequirements { gpu });
}

fn cpu(sandbox: &mut pb::DriverSandbox, limit: &str) {
    let resources =
        pb::DriverResourceRequirements { cpu_limit: limit.to_owned(), ..Default::default() };
    template(sandbox).resources = Some(resources);
}

type Change = fn(&mut pb::DriverSandbox);

async fn check(settings: Settings, cases: &[(&str, Change, Result<(), Code>)]) {
    let mut fixture = Fixture::with(settings, Stub::default()).await;
    for (number, (what, change, expected)) in cases.iter().enumerate() {
        let mut asked = sandbox(&format!("s{number}"));
        change(&mut asked);
        let request = pb::ValidateSandboxCreateRequest { sandbox: Some(asked.clone()) };
        let validated = fixture.client.validate_sandbox_create(request).await;
        let validated = validated.map(drop).map_err(|status| status.code());
        assert_eq!(validated, *expected, "validate: {what}");
        let created = create(&mut fixture.client, asked).await;
        assert_eq!(created, *expected, "create: {what}");
    }
    let accepted = cases.iter().filter(|(_, _, expected)| expected.is_ok()).count();
    assert_eq!(list(&mut fixture.client).await.len(), accepted);
}

#[tokio::test]
async fn requests_are_judged_with_the_codes_of_the_contract() {
    let (invalid, precondition) = (Err(Code::InvalidArgument), Err(Code::FailedPrecondition));
    check(
        settings(),
        &[
            ("as it is", |_| {}, Ok(())),
            ("no spec", |s| s.spec = None, invalid),
            ("no id", |s| s.id.clear(), invalid),
            ("an id that climbs", |s| s.id = "..".into(), invalid),
            ("an id with a path", |s| s.id = "a/b".into(), invalid),
            ("no template", |s| spec(s).template = None, Ok(())),
            ("no image, but a default", |s| template(s).image.clear(), Ok(())),
            ("GPU", |s| gpu(s, None), precondition),
            ("GPU before its shape", |s| gpu(s, Some(7)), precondition),
            ("agent socket", |s| template(s).agent_socket_path = "/x".into(), precondition),
            ("platform config", |s| template(s).platform_config = config(&[]), precondition),
            ("empty driver config", |s| template(s).driver_config = config(&[]), Ok(())),
            (
                "unknown key",
                |s| template(s).driver_config = config(&[("mounts", text("x"))]),
                invalid,
            ),
            (
                "device ids without a GPU",
                |s| template(s).driver_config = config(&[("gpu_device_ids", strings(&["0"]))]),
                invalid,
            ),
            ("CPUs", |s| cpu(s, "1500m"), Ok(())),
            ("CPUs that are none", |s| cpu(s, "many"), invalid),
            ("a path for an image", |s| template(s).image = "/etc".into(), invalid),
            ("a directory for an image", |s| template(s).image = "dir:/etc".into(), invalid),
            ("an option for an image", |s| template(s).image = "--help".into(), invalid),
            (
                "a variable with =",
                |s| {
                    spec(s).environment.insert("A=B".into(), "c".into());
                },
                invalid,
            ),
            (
                "too much environment",
                |s| {
                    spec(s).environment.insert("A".into(), "x".repeat(1 << 20));
                },
                invalid,
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn without_a_default_an_image_is_required() {
    let settings = Settings { default_image: None, ..settings() };
    check(
        settings,
        &[
            ("named", |_| {}, Ok(())),
            ("blank", |s| template(s).image = "  ".into(), Err(Code::FailedPrecondition)),
            ("no template", |s| spec(s).template = None, Err(Code::FailedPrecondition)),
        ],
    )
    .await;
}

#[tokio::test]
async fn with_gpu_requests_are_judged_by_their_shape_first() {
    let devices = |ids: &[&str]| config(&[("gpu_device_ids", strings(ids))]);
    let (invalid, precondition) = (Err(Code::InvalidArgument), Err(Code::FailedPrecondition));
    let mut fixture = Fixture::with(Settings { gpu: true, ..settings() }, Stub::default()).await;
    for (count, ids, expected) in [
        (Some(2), None, invalid),
        (Some(1), Some(vec![]), invalid),
        (Some(1), Some(vec!["0", "1"]), invalid),
        (Some(0), Some(vec!["0"]), invalid),
        (None, Some(vec![""]), invalid),
        (Some(1), Some(vec!["0"]), precondition),
        (None, None, precondition),
    ] {
        let mut asked = sandbox("g");
        gpu(&mut asked, count);
        template(&mut asked).driver_config = ids.as_deref().and_then(devices);
        assert_eq!(create(&mut fixture.client, asked).await, expected, "{count:?} {ids:?}");
    }
}

#[tokio::test]
async fn an_archive_of_the_host_is_taken_by_its_contents_from_where_the_operator_allows() {
    let place = tempfile::tempdir().expect("a directory");
    let place = place.path().canonicalize().expect("there");
    let (inside, outside) = (place.join("in"), place.join("out.tar"));
    std::fs::create_dir_all(&inside).expect("made");
    for file in [inside.join("a.tar.gz"), inside.join("a.zip"), outside.clone()] {
        std::fs::write(file, "archive").expect("written");
    }
    std::os::unix::fs::symlink(&outside, inside.join("link.tar")).expect("linked");
    let settings = Settings { rootfs_tar_dir: Some(inside.clone()), ..settings() };
    let mut fixture = Fixture::with(settings, Stub::default()).await;
    let shown = |name: &str| inside.join(name).display().to_string();
    for (path, expected) in [
        (shown("a.zip"), Err(Code::InvalidArgument)),
        (shown("missing.tar"), Err(Code::InvalidArgument)),
        (shown("link.tar"), Err(Code::InvalidArgument)),
        (shown("../out.tar"), Err(Code::InvalidArgument)),
        (outside.display().to_string(), Err(Code::InvalidArgument)),
        ("a.tar".to_owned(), Err(Code::InvalidArgument)),
        (shown("a.tar.gz"), Ok(())),
    ] {
        let mut asked = sandbox("t");
        template(&mut asked).image.clear();
        template(&mut asked).driver_config = config(&[("rootfs_tar_path", text(&path))]);
        assert_eq!(create(&mut fixture.client, asked).await, expected, "{path}");
    }
    fixture.wait_for_running(1).await;
    let spec = fixture.stub.spec("t").expect("it runs");
    assert_eq!(spec.image, format!("rootfs-tar:{}", shown("a.tar.gz")));
}

#[tokio::test]
async fn what_is_asked_for_reaches_the_machine() {
    let mut fixture = Fixture::new().await;
    let mut asked = sandbox("a");
    let resources = pb::DriverResourceRequirements {
        cpu_request: "500m".into(),
        cpu_limit: "3".into(),
        memory_limit: "1.5Gi".into(),
        ..Default::default()
    };
    template(&mut asked).resources = Some(resources);
    template(&mut asked).environment.insert("KEY".into(), "template's".into());
    template(&mut asked).environment.insert("OTHER".into(), "template's".into());
    create(&mut fixture.client, asked).await.expect("created");
    fixture.wait_for_running(1).await;
    let spec = fixture.stub.spec("a").expect("it runs");
    assert_eq!((spec.size.vcpus, spec.size.memory_mib), (3, 1536));
    assert_eq!(spec.image, "docker://registry.example/app:2");
    assert_eq!(spec.rules, ["tcp:host:17670", "host"]);
    let json = String::from_utf8(spec.guest.files[0].bytes.clone()).expect("UTF-8");
    for part in ["KEY=secret-value", "OTHER=template's", "http://host.openshell.internal:17670"] {
        assert!(json.contains(part), "{part} in {json}");
    }
    assert!(!json.contains("secret-token"));
}

#[tokio::test]
async fn guest_certificates_that_cannot_be_read_are_a_precondition() {
    let place = tempfile::tempdir().expect("a directory");
    let files = ["ca", "crt", "key"].map(|name| place.path().join(name));
    let settings = Settings {
        endpoint: Endpoint::parse("https://localhost:1").expect("an endpoint"),
        tls: Some(TlsPaths { files: files.clone() }),
        ..settings()
    };
    let mut fixture = Fixture::with(settings, Stub::default()).await;
    assert_eq!(fixture.create("a").await, Err(Code::FailedPrecondition));
    assert!(!fixture.sandbox("a").exists());
    for file in &files {
        std::fs::write(file, "PEM").expect("written");
    }
    fixture.create("a").await.expect("created");
    fixture.wait_for_running(1).await;
    let files = fixture.stub.spec("a").expect("it runs").guest.files;
    assert!(files.iter().any(|file| file.path.ends_with("tls.key") && file.mode == 0o600));
}

#[tokio::test]
async fn sandboxes_are_found_by_id_or_by_name() {
    let mut fixture = Fixture::new().await;
    fixture.create("a").await.expect("created");
    let client = &mut fixture.client;
    assert_eq!(get(client, "a", "").await.expect("by id").name, "name-a");
    assert_eq!(get(client, "", "name-a").await.expect("by name").id, "a");
    assert_eq!(get(client, "a", "name-a").await.expect("by both").workspace, "work");
    for (id, name, code) in [
        ("", "", Code::InvalidArgument),
        ("b", "", Code::NotFound),
        ("b", "name-a", Code::NotFound),
        ("", "name-b", Code::NotFound),
        ("..", "", Code::NotFound),
        ("a", "name-b", Code::FailedPrecondition),
    ] {
        assert_eq!(get(client, id, name).await.err(), Some(code), "{id:?} {name:?}");
    }
    assert_eq!(stop(client, "b").await, Err(Code::NotFound));
    assert_eq!(start(client, "b").await, Err(Code::NotFound));
    assert_eq!(delete(client, "b").await, Ok(false));
    assert_eq!(delete(client, "").await, Err(Code::InvalidArgument));
}

#[tokio::test]
async fn a_snapshot_holds_status_and_no_request() {
    let mut fixture = Fixture::new().await;
    for id in ["c", "a", "b"] {
        fixture.create(id).await.expect("created");
    }
    let all = list(&mut fixture.client).await;
    let names: Vec<_> = all.iter().map(|sandbox| sandbox.name.as_str()).collect();
    assert_eq!(names, ["name-a", "name-b", "name-c"]);
    for sandbox in &all {
        assert!(sandbox.spec.is_none());
        let status = sandbox.status.as_ref().expect("a status");
        assert_eq!((&*status.instance_id, &*status.agent_fd, &*status.sandbox_fd), ("", "", ""));
        assert_eq!(status.conditions.len(), 1);
        let condition = &status.conditions[0];
        assert_eq!((&*condition.r#type, &*condition.status), ("Ready", "False"));
        assert_eq!((&*condition.reason, &*condition.message), ("Starting", "VM is starting"));
        assert!(condition.last_transition_time.ends_with('Z'));
    }
}

#[tokio::test]
async fn the_driver_says_what_it_can_do() {
    let mut fixture = Fixture::new().await;
    let client = &mut fixture.client;
    let able = client.get_capabilities(pb::GetCapabilitiesRequest::default()).await;
    let able = able.expect("an answer").into_inner();
    assert_eq!(able.driver_name, "openshell-driver-vm");
    assert_eq!(able.driver_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(able.default_image, "registry.example/base:1");
    assert!(able.gateway_manages_lifecycle);
    let needs = pb::GetGatewayListenerRequirementsRequest::default();
    let needs = client.get_gateway_listener_requirements(needs).await.expect("an answer");
    assert!(needs.into_inner().requirements.is_empty());
    let workspace = "w".to_owned();
    let request = pb::EnsureWorkspaceRequest { workspace: workspace.clone() };
    client.ensure_workspace(request).await.expect("nothing to do");
    let request = pb::DeleteWorkspaceRequest { workspace };
    client.delete_workspace(request).await.expect("nothing to do");
}
