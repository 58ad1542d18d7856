//! The services' calls, each with the kind of caller that it is for.
//!
//! Invariant: every call but `Health` judges its caller in its first line.

use openshell_proto::inference::v1::inference_server::Inference;
use openshell_proto::inference::v1::{GetInferenceBundleRequest, GetInferenceBundleResponse};
use openshell_proto::sandbox::v1 as policy;
use openshell_proto::v1::open_shell_server::OpenShell;
use openshell_proto::v1::{self as api, exec_sandbox_input};
use tonic::{Request, Response, Status, Streaming};

use super::supervisors::first;
use super::{Gateway, Reply, workspace};
use crate::logs::{Filter, LINES};

type Answer<T> = Result<Response<T>, Status>;

fn sandbox(row: api::Sandbox) -> Response<api::SandboxResponse> {
    Response::new(api::SandboxResponse { sandbox: Some(row) })
}

#[tonic::async_trait]
impl OpenShell for Gateway {
    type WatchSandboxStream = Reply<api::SandboxStreamEvent>;
    type ExecSandboxStream = Reply<api::ExecSandboxEvent>;
    type ExecSandboxInteractiveStream = Reply<api::ExecSandboxEvent>;
    type ForwardTcpStream = Reply<api::TcpForwardFrame>;
    type ConnectSupervisorStream = Reply<api::GatewayMessage>;
    type RelayStreamStream = Reply<api::RelayFrame>;

    async fn health(&self, _: Request<api::HealthRequest>) -> Answer<api::HealthResponse> {
        let status = match self.compute().store().ping().await {
            Ok(()) => api::ServiceStatus::Healthy,
            Err(_) => api::ServiceStatus::Unhealthy,
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(api::HealthResponse { status: status.into(), version }))
    }

    async fn get_current_user(
        &self,
        request: Request<api::GetCurrentUserRequest>,
    ) -> Answer<api::GetCurrentUserResponse> {
        let subject = self.caller(&request)?.user()?;
        Ok(Response::new(api::GetCurrentUserResponse {
            display_name: subject.clone(),
            subject,
            ..Default::default()
        }))
    }

    async fn get_gateway_info(
        &self,
        request: Request<api::GetGatewayInfoRequest>,
    ) -> Answer<api::GetGatewayInfoResponse> {
        self.caller(&request)?.user()?;
        let about = &self.0.about;
        let capabilities = api::ComputeDriverCapabilities {
            driver_name: about.driver_name.clone(),
            driver_version: about.driver_version.clone(),
        };
        Ok(Response::new(api::GetGatewayInfoResponse {
            status: api::ServiceStatus::Healthy.into(),
            gateway_version: env!("CARGO_PKG_VERSION").to_owned(),
            compute_drivers: vec![api::ComputeDriverInfo {
                name: about.driver.clone(),
                capabilities: Some(capabilities),
            }],
        }))
    }

    async fn get_gateway_config(
        &self,
        request: Request<policy::GetGatewayConfigRequest>,
    ) -> Answer<policy::GetGatewayConfigResponse> {
        self.caller(&request)?.user()?;
        self.gateway_config().await.map(Response::new)
    }

    async fn create_sandbox(
        &self,
        request: Request<api::CreateSandboxRequest>,
    ) -> Answer<api::SandboxResponse> {
        self.caller(&request)?.user()?;
        self.create(request.into_inner()).await.map(sandbox)
    }

    async fn get_sandbox(
        &self,
        request: Request<api::GetSandboxRequest>,
    ) -> Answer<api::SandboxResponse> {
        self.caller(&request)?.user()?;
        let request = request.into_inner();
        self.find(&request.workspace, &request.name).await.map(sandbox)
    }

    async fn list_sandboxes(
        &self,
        request: Request<api::ListSandboxesRequest>,
    ) -> Answer<api::ListSandboxesResponse> {
        self.caller(&request)?.user()?;
        let sandboxes = self.list(request.get_ref()).await?;
        Ok(Response::new(api::ListSandboxesResponse { sandboxes }))
    }

    async fn delete_sandbox(
        &self,
        request: Request<api::DeleteSandboxRequest>,
    ) -> Answer<api::DeleteSandboxResponse> {
        self.caller(&request)?.user()?;
        let request = request.into_inner();
        let deleted = self.delete(&request.workspace, &request.name).await?;
        Ok(Response::new(api::DeleteSandboxResponse { deleted }))
    }

    async fn stop_sandbox(
        &self,
        request: Request<api::StopSandboxRequest>,
    ) -> Answer<api::SandboxResponse> {
        self.caller(&request)?.user()?;
        let request = request.into_inner();
        self.compute().stop(workspace(&request.workspace), &request.name).await.map(sandbox)
    }

    async fn start_sandbox(
        &self,
        request: Request<api::StartSandboxRequest>,
    ) -> Answer<api::SandboxResponse> {
        self.caller(&request)?.user()?;
        let request = request.into_inner();
        self.compute().start(workspace(&request.workspace), &request.name).await.map(sandbox)
    }

    async fn watch_sandbox(
        &self,
        request: Request<api::WatchSandboxRequest>,
    ) -> Answer<Self::WatchSandboxStream> {
        self.caller(&request)?.user()?;
        self.follow(request.into_inner()).await.map(Response::new)
    }

    async fn get_sandbox_logs(
        &self,
        request: Request<api::GetSandboxLogsRequest>,
    ) -> Answer<api::GetSandboxLogsResponse> {
        self.caller(&request)?.user()?;
        let request = request.into_inner();
        self.row(&request.sandbox_id).await?;
        let filter = Filter {
            since_ms: request.since_ms,
            sources: request.sources,
            min_level: request.min_level,
        };
        let count = if request.lines == 0 { LINES } else { request.lines as usize };
        let (logs, total) = self.0.logs.last(&request.sandbox_id, &filter, count);
        let buffer_total = u32::try_from(total).unwrap_or(u32::MAX);
        Ok(Response::new(api::GetSandboxLogsResponse { logs, buffer_total }))
    }

    async fn exec_sandbox(
        &self,
        request: Request<api::ExecSandboxRequest>,
    ) -> Answer<Self::ExecSandboxStream> {
        self.caller(&request)?.user()?;
        self.execute(request.into_inner(), tokio_stream::empty()).await.map(Response::new)
    }

    async fn exec_sandbox_interactive(
        &self,
        request: Request<Streaming<api::ExecSandboxInput>>,
    ) -> Answer<Self::ExecSandboxInteractiveStream> {
        self.caller(&request)?.user()?;
        let mut inbound = request.into_inner();
        let Some(exec_sandbox_input::Payload::Start(start)) = first(&mut inbound).await?.payload
        else {
            return Err(Status::invalid_argument("first message is no start"));
        };
        self.execute(start, inbound).await.map(Response::new)
    }

    async fn forward_tcp(
        &self,
        request: Request<Streaming<api::TcpForwardFrame>>,
    ) -> Answer<Self::ForwardTcpStream> {
        self.caller(&request)?.user()?;
        self.forward(request.into_inner()).await.map(Response::new)
    }

    async fn create_ssh_session(
        &self,
        request: Request<api::CreateSshSessionRequest>,
    ) -> Answer<api::CreateSshSessionResponse> {
        self.caller(&request)?.user()?;
        self.ssh_session(&request.get_ref().sandbox_id).await.map(Response::new)
    }

    async fn revoke_ssh_session(
        &self,
        request: Request<api::RevokeSshSessionRequest>,
    ) -> Answer<api::RevokeSshSessionResponse> {
        self.caller(&request)?.user()?;
        let revoked = self.0.ssh.revoke(&request.get_ref().token);
        Ok(Response::new(api::RevokeSshSessionResponse { revoked }))
    }

    async fn get_sandbox_config(
        &self,
        request: Request<policy::GetSandboxConfigRequest>,
    ) -> Answer<policy::GetSandboxConfigResponse> {
        let id = &request.get_ref().sandbox_id;
        self.caller(&request)?.may_see(id)?;
        self.config_of(id).await.map(Response::new)
    }

    async fn update_config(
        &self,
        request: Request<api::UpdateConfigRequest>,
    ) -> Answer<api::UpdateConfigResponse> {
        let caller = self.caller(&request)?;
        self.change_config(caller, request.into_inner()).await.map(Response::new)
    }

    async fn connect_supervisor(
        &self,
        request: Request<Streaming<api::SupervisorMessage>>,
    ) -> Answer<Self::ConnectSupervisorStream> {
        let caller = self.caller(&request)?;
        self.session(caller, request.into_inner()).await.map(Response::new)
    }

    async fn relay_stream(
        &self,
        request: Request<Streaming<api::RelayFrame>>,
    ) -> Answer<Self::RelayStreamStream> {
        let caller = self.caller(&request)?;
        self.relay(&caller, request.into_inner()).await.map(Response::new)
    }

    async fn report_main_process_exit(
        &self,
        request: Request<api::ReportMainProcessExitRequest>,
    ) -> Answer<api::ReportMainProcessExitResponse> {
        self.caller(&request)?.speaks_for(&request.get_ref().sandbox_id)?;
        self.compute().main_process_exited(request.get_ref()).await?;
        Ok(Response::new(api::ReportMainProcessExitResponse {}))
    }

    async fn get_sandbox_provider_environment(
        &self,
        request: Request<api::GetSandboxProviderEnvironmentRequest>,
    ) -> Answer<api::GetSandboxProviderEnvironmentResponse> {
        self.caller(&request)?.speaks_for(&request.get_ref().sandbox_id)?;
        Ok(Response::new(api::GetSandboxProviderEnvironmentResponse {
            provider_env_revision: 1,
            ..Default::default()
        }))
    }

    async fn push_sandbox_logs(
        &self,
        request: Request<Streaming<api::PushSandboxLogsRequest>>,
    ) -> Answer<api::PushSandboxLogsResponse> {
        let caller = self.caller(&request)?;
        self.take_logs(caller, request.into_inner()).await?;
        Ok(Response::new(api::PushSandboxLogsResponse {}))
    }

    async fn report_policy_status(
        &self,
        request: Request<api::ReportPolicyStatusRequest>,
    ) -> Answer<api::ReportPolicyStatusResponse> {
        self.caller(&request)?.speaks_for(&request.get_ref().sandbox_id)?;
        let report = request.get_ref();
        tracing::info!(
            sandbox_id = report.sandbox_id,
            version = report.version,
            status = report.status,
            "policy status"
        );
        Ok(Response::new(api::ReportPolicyStatusResponse {}))
    }

    async fn submit_policy_analysis(
        &self,
        request: Request<api::SubmitPolicyAnalysisRequest>,
    ) -> Answer<api::SubmitPolicyAnalysisResponse> {
        self.caller(&request)?.sandbox()?;
        let count = request.get_ref().proposed_chunks.len();
        let why = "this gateway keeps no drafts of policies".to_owned();
        Ok(Response::new(api::SubmitPolicyAnalysisResponse {
            rejected_chunks: u32::try_from(count).unwrap_or(u32::MAX),
            rejection_reasons: if count == 0 { vec![] } else { vec![why] },
            ..Default::default()
        }))
    }

    async fn issue_sandbox_token(
        &self,
        request: Request<api::IssueSandboxTokenRequest>,
    ) -> Answer<api::IssueSandboxTokenResponse> {
        self.caller(&request)?.sandbox()?;
        Err(Status::unimplemented("sandboxes of this gateway are made with their token"))
    }

    async fn refresh_sandbox_token(
        &self,
        request: Request<api::RefreshSandboxTokenRequest>,
    ) -> Answer<api::RefreshSandboxTokenResponse> {
        let id = self.caller(&request)?.sandbox()?;
        // A sandbox that is gone gets no more of them.
        self.row(&id).await?;
        let token = self.0.keys.mint(&id).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(api::RefreshSandboxTokenResponse {
            token: token.text,
            expires_at_ms: token.expires_at_ms,
            extension_credentials: vec![],
        }))
    }
}

#[tonic::async_trait]
impl Inference for Gateway {
    async fn get_inference_bundle(
        &self,
        request: Request<GetInferenceBundleRequest>,
    ) -> Answer<GetInferenceBundleResponse> {
        self.caller(&request)?.sandbox()?;
        Ok(Response::new(GetInferenceBundleResponse::default()))
    }
}
