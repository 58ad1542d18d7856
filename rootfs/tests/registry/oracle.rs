//! The same image through our client and through that of oci-client: the same bytes.

use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;

use crate::fake::{Fake, INDEX, MANIFEST, MIB, client, noise, platform, read_all};
use crate::server::Server;

#[test]
fn both_clients_pull_the_same() {
    let mut fake = Fake::default();
    let image = fake.image(&[noise(1, 100_000), noise(2, 5 * MIB), Vec::new()]);
    let mut entry = fake.tag("image", MANIFEST, image.to_string());
    entry["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    fake.tag("1", INDEX, index.to_string());
    let server = Server::start(move |request| fake.answer(request));
    let text = format!("{}/team/app:1", server.host());

    let pull = client().resolve(&text.parse().unwrap(), &platform()).unwrap();
    let layers = read_all(&pull).into_iter().map(|layer| layer.unwrap());

    let theirs = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        platform_resolver: Some(Box::new(oci_client::client::linux_amd64_resolver)),
        ..ClientConfig::default()
    });
    let reference: Reference = text.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let anonymous = RegistryAuth::Anonymous;
        let pulled = theirs.pull_image_manifest(&reference, &anonymous).await.unwrap();
        assert_eq!(pulled.1, pull.image.manifest_digest.to_string());
        let accepted = [MANIFEST];
        let pinned = reference.clone_with_digest(pulled.1);
        let (raw, _) = theirs.pull_manifest_raw(&pinned, &anonymous, &accepted).await.unwrap();
        assert_eq!(raw, pull.image.manifest);
        for (descriptor, ours) in pulled.0.layers.iter().zip(layers) {
            let mut bytes = Vec::new();
            theirs.pull_blob(&reference, descriptor, &mut bytes).await.unwrap();
            assert!(bytes == ours, "{}", descriptor.digest);
        }
    });
}
