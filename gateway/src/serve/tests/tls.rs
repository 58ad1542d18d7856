//! Who is let in over TLS, with the files that `generate-certs` makes.

use std::path::Path;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use super::*;
use crate::auth::certificate::Authority;
use crate::certs;

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}

/// A gateway that asks for certificates, with the files of this directory.
async fn listen(dir: &Path, open: bool) -> (Gateway, Arc<Fake>, SocketAddr) {
    certs::generate(dir, &[]).unwrap();
    let users = Users {
        allow_unauthenticated: open,
        allow_certificate: true,
        authority: Some(Authority::from_pem(&read(dir, "ca.crt")).unwrap()),
    };
    let (gateway, driver) = gateway(users).await;
    let both = format!("{}\n{}", read(dir, "ca.crt"), read(dir, "guest-ca.crt"));
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read(dir, "server/tls.crt"), read(dir, "server/tls.key")))
        .client_ca_root(Certificate::from_pem(both));
    let address = serve(&gateway, Some(tls)).await;
    (gateway, driver, address)
}

/// A client that trusts the authority of one directory and shows a certificate of another.
async fn connect(
    address: SocketAddr,
    trusts: &Path,
    shows: Option<(&Path, &str)>,
) -> Result<OpenShellClient<Channel>, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(trusts, "ca.crt")))
        .domain_name("host.openshell.internal");
    if let Some((dir, whose)) = shows {
        let (certificate, key) = (format!("{whose}/tls.crt"), format!("{whose}/tls.key"));
        tls = tls.identity(Identity::from_pem(read(dir, &certificate), read(dir, &key)));
    }
    let endpoint = Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?;
    Ok(OpenShellClient::new(endpoint.connect().await?))
}

async fn list(client: &OpenShellClient<Channel>) -> Result<usize, Code> {
    let listed = client.clone().list_sandboxes(ListSandboxesRequest::default()).await;
    listed.map(|rows| rows.into_inner().sandboxes.len()).map_err(|status| status.code())
}

#[tokio::test]
async fn a_users_certificate_makes_a_user() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (_, _, address) = listen(dir, false).await;
    let client = connect(address, dir, Some((dir, "client"))).await.unwrap();
    assert_eq!(list(&client).await, Ok(0));
}

#[tokio::test]
async fn a_guest_is_its_token_and_its_certificate_is_nobody() {
    for open in [false, true] {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        let (gateway, driver, address) = listen(dir, open).await;
        let user = connect(address, dir, Some((dir, "client"))).await.unwrap();
        let request = CreateSandboxRequest { name: "one".into(), ..Default::default() };
        let row = user.clone().create_sandbox(request).await.unwrap().into_inner().sandbox.unwrap();
        let token = driver.of(id(&row)).unwrap().spec.unwrap().sandbox_token;
        let mut guest = connect(address, dir, Some((dir, "guest"))).await.unwrap();

        assert_eq!(list(&guest).await, Err(Code::Unauthenticated), "open: {open}");
        let policy = |id: &str| openshell_proto::sandbox::v1::GetSandboxConfigRequest {
            sandbox_id: id.to_owned(),
        };
        let config = guest.get_sandbox_config(with(&token, policy(id(&row)))).await.unwrap();
        assert_eq!(config.into_inner().workspace, "default");
        let other = guest.get_sandbox_config(with(&token, policy("other"))).await.unwrap_err();
        assert_eq!(other.code(), Code::PermissionDenied);
        let listed = guest.list_sandboxes(with(&token, ListSandboxesRequest::default())).await;
        assert_eq!(listed.unwrap_err().code(), Code::PermissionDenied);
        let (_messages, inbound) = hello(id(&row)).await;
        let session = guest.connect_supervisor(with(&token, inbound)).await.unwrap();
        let mut session = session.into_inner();
        assert!(session.next().await.unwrap().is_ok());
        assert!(gateway.compute().sessions().has_session(id(&row)));
    }
}

async fn hello(
    sandbox_id: &str,
) -> (mpsc::Sender<SupervisorMessage>, ReceiverStream<SupervisorMessage>) {
    let (messages, inbound) = mpsc::channel(8);
    let hello = SupervisorHello { sandbox_id: sandbox_id.into(), instance_id: "run-1".into() };
    let payload = Some(supervisor_message::Payload::Hello(hello));
    messages.send(SupervisorMessage { payload }).await.unwrap();
    (messages, ReceiverStream::new(inbound))
}

#[tokio::test]
async fn strangers_are_refused_before_they_say_anything() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (dir, other) = (here.path(), there.path());
    let (_, _, address) = listen(dir, true).await;
    certs::generate(other, &[]).unwrap();
    let refused = [
        ("no certificate", connect(address, dir, None).await),
        ("of another authority", connect(address, dir, Some((other, "client"))).await),
        ("a guest's of another authority", connect(address, dir, Some((other, "guest"))).await),
        ("the gateway's own", connect(address, dir, Some((dir, "server"))).await),
        ("a gateway of another authority", connect(address, other, Some((dir, "client"))).await),
    ];
    for (what, connected) in refused {
        // With TLS 1.3 a client hears of it with its first call.
        let heard = match connected {
            Ok(client) => list(&client).await.is_ok(),
            Err(_) => false,
        };
        assert!(!heard, "{what}");
    }
    let plain = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await;
    let heard = match plain {
        Ok(channel) => list(&OpenShellClient::new(channel)).await.is_ok(),
        Err(_) => false,
    };
    assert!(!heard, "in plain text");
}
