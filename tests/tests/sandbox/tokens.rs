//! Who may do what with which credentials.

use openshell_proto::compute::v1::DriverSandbox;
use openshell_proto::sandbox::v1::GetSandboxConfigRequest;
use openshell_proto::v1::{
    ListSandboxesRequest, ReportMainProcessExitRequest, SandboxPhase, SupervisorHello,
    SupervisorMessage, supervisor_message,
};
use prost::Message as _;
use tonic::{Code, Request};

use crate::rig::{Rig, id, phase};

/// The token of one sandbox opens nothing of another, and nothing of users; a guest's certificate opens nothing.
pub(crate) async fn each_is_good_for_its_own_sandbox(rig: &Rig, one: &str, two: &str) {
    let [first, second] = [token(rig, one), token(rig, two)];
    assert_ne!(first, second);
    let guest = rig.guest_client();
    let config = |token: &str, id: &str| {
        let request = with(token, GetSandboxConfigRequest { sandbox_id: id.into() });
        let mut guest = guest.clone();
        async move { guest.get_sandbox_config(request).await.map(drop).map_err(|s| s.code()) }
    };
    assert_eq!(config(&first, one).await, Ok(()));
    assert_eq!(config(&first, two).await, Err(Code::PermissionDenied));
    assert_eq!(config(&second, one).await, Err(Code::PermissionDenied));
    let forged = format!("{}{}", &first[..first.len() - 2], "AA");
    assert_eq!(config(&forged, one).await, Err(Code::Unauthenticated));
    let list = |request: Request<ListSandboxesRequest>| {
        let mut guest = guest.clone();
        async move { guest.list_sandboxes(request).await.map(drop).map_err(|s| s.code()) }
    };
    assert_eq!(
        list(Request::new(ListSandboxesRequest::default())).await,
        Err(Code::Unauthenticated),
        "a guest's certificate"
    );
    let asked = with(&first, ListSandboxesRequest::default());
    assert_eq!(list(asked).await, Err(Code::PermissionDenied));

    let hello = SupervisorHello { sandbox_id: two.into(), instance_id: "stolen".into() };
    let payload = Some(supervisor_message::Payload::Hello(hello));
    let stream = tokio_stream::iter([SupervisorMessage { payload }]);
    let mut answer = match guest.clone().connect_supervisor(with(&first, stream)).await {
        Err(status) => Err(status),
        Ok(answer) => Ok(answer.into_inner()),
    };
    let refused = match &mut answer {
        Err(status) => status.clone(),
        Ok(answer) => answer.message().await.unwrap_err(),
    };
    assert_eq!(refused.code(), Code::PermissionDenied);
    let report =
        ReportMainProcessExitRequest { sandbox_id: two.into(), exit_code: 1, ..Default::default() };
    let refused = guest.clone().report_main_process_exit(with(&first, report)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // Nothing of that has reached the other one.
    assert_eq!(phase(&rig.row("two").await.unwrap()), SandboxPhase::Ready);
    assert_eq!(rig.shell(one, "echo mine >mine").await.unwrap().code, Some(0));
    assert_ne!(rig.shell(two, "cat mine").await.unwrap().code, Some(0));
}

/// Two gateways with a sandbox of the same name each: what opens one opens nothing of the other. The sandbox of `theirs` is gone then.
pub(crate) async fn are_worth_nothing_at_another_gateway(ours: &Rig, theirs: &Rig, our_id: &str) {
    let their_id = id(&theirs.row("one").await.unwrap());
    assert_ne!(our_id, their_id);
    for (near, far, near_id, far_id) in
        [(ours, theirs, our_id, &*their_id), (theirs, ours, &*their_id, our_id)]
    {
        let stolen = token(near, near_id);
        for id in [near_id, far_id] {
            let request = with(&stolen, GetSandboxConfigRequest { sandbox_id: id.into() });
            // With a guest's certificate of that gateway, which leaves the token to be judged.
            let refused = far.guest_client().get_sandbox_config(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
            let hello = SupervisorHello { sandbox_id: id.into(), instance_id: "stolen".into() };
            let payload = Some(supervisor_message::Payload::Hello(hello));
            let stream = tokio_stream::iter([SupervisorMessage { payload }]);
            let refused = far.guest_client().connect_supervisor(with(&stolen, stream)).await;
            assert_eq!(refused.map(drop).unwrap_err().code(), Code::Unauthenticated);
        }
        for name in ["client", "guest"] {
            let request = with(&stolen, ListSandboxesRequest::default());
            // Neither side knows the other's authority: nothing is said at all.
            let refused = near.client_of(far, name).list_sandboxes(request).await.unwrap_err();
            assert!(matches!(refused.code(), Code::Unavailable | Code::Unknown), "{refused}");
        }
    }
    assert_eq!(ours.shell(our_id, "echo ours >whose").await.unwrap().code, Some(0));
    assert_ne!(theirs.shell(&their_id, "cat whose").await.unwrap().code, Some(0));
    assert!(theirs.delete("one").await.unwrap());
    assert_eq!(ours.shell(our_id, "cat whose").await.unwrap().text(), "ours\n");
}

/// The token that the driver has given a guest.
fn token(rig: &Rig, id: &str) -> String {
    let bytes = std::fs::read(rig.sandbox(id).join("sandbox.pb")).unwrap();
    DriverSandbox::decode(&bytes[..]).unwrap().spec.unwrap().sandbox_token
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}
