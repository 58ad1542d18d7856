//! SSH into a sandbox through a relay: what the `ssh` of a user does behind `openshell ssh-proxy`.

use std::sync::Arc;

use russh::ChannelMsg;
use russh::client::{self, Handle};
use russh::keys::PublicKeyOrCertificate;

use super::Rig;

/// The relay is the authentication: any host key will do.
#[derive(Debug)]
struct AnyKey;

impl client::Handler for AnyKey {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// A connection, for any number of commands.
pub(crate) struct Ssh(Handle<AnyKey>);

impl Rig {
    /// Connects to the SSH server of a sandbox.
    pub(crate) async fn ssh(&self, id: &str) -> Ssh {
        let stream = self.forward(id, None).await.unwrap().stream();
        let config = Arc::new(client::Config::default());
        let mut handle = client::connect_stream(config, stream, AnyKey).await.unwrap();
        assert!(handle.authenticate_none("sandbox").await.unwrap().success());
        Ssh(handle)
    }
}

impl Ssh {
    /// Runs a command line with some input to its end: its standard output. It must succeed.
    pub(crate) async fn run(&self, line: &str, input: &[u8]) -> Vec<u8> {
        let mut channel = self.0.channel_open_session().await.unwrap();
        channel.exec(true, line).await.unwrap();
        channel.data(input).await.unwrap();
        channel.eof().await.unwrap();
        let (mut output, mut errors, mut status) = (Vec::new(), Vec::new(), None);
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => output.extend_from_slice(&data),
                ChannelMsg::ExtendedData { data, .. } => errors.extend_from_slice(&data),
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                _ => {}
            }
        }
        assert_eq!(status, Some(0), "{line}: {}", String::from_utf8_lossy(&errors));
        output
    }
}
