//! Policies and settings, of one sandbox and of all.

use openshell_proto::sandbox::v1::{
    GetGatewayConfigRequest, GetSandboxConfigRequest, GetSandboxConfigResponse, NetworkEndpoint,
    NetworkPolicyRule, PolicySource, SandboxPolicy, SettingScope, SettingValue, setting_value,
};
use openshell_proto::v1::policy_merge_operation::Operation;

use super::*;

#[tokio::test]
async fn a_policy_gets_a_version_with_each_change() {
    let lab = Lab::new().await;
    let row = lab.create("one").await;
    let token = lab.token(&row);
    let mut client = lab.client.clone();
    let policy = SandboxPolicy { version: 1, ..Default::default() };
    let change = || UpdateConfigRequest {
        name: "one".into(),
        policy: Some(policy.clone()),
        ..Default::default()
    };
    for _ in 0..2 {
        let answer = client.update_config(with(&token, change())).await.unwrap().into_inner();
        assert_eq!(answer.version, 2);
    }
    let stale = UpdateConfigRequest {
        policy: Some(Default::default()),
        expected_resource_version: 99,
        ..change()
    };
    assert_eq!(client.update_config(stale).await.unwrap_err().code(), Code::Aborted);
}

fn text(text: &str) -> Option<SettingValue> {
    Some(SettingValue { value: Some(setting_value::Value::StringValue(text.to_owned())) })
}

fn set(global: bool, key: &str, value: &str) -> UpdateConfigRequest {
    let name = if global { String::new() } else { "one".to_owned() };
    let (setting_key, setting_value) = (key.to_owned(), text(value));
    UpdateConfigRequest { name, global, setting_key, setting_value, ..Default::default() }
}

fn delete(global: bool, key: &str) -> UpdateConfigRequest {
    UpdateConfigRequest { delete_setting: true, setting_value: None, ..set(global, key, "") }
}

async fn config(lab: &Lab, row: &Sandbox) -> GetSandboxConfigResponse {
    let request = GetSandboxConfigRequest { sandbox_id: id(row).into() };
    let request = with(&lab.token(row), request);
    lab.client.clone().get_sandbox_config(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn settings_of_the_gateway_win_over_a_sandboxs_own() {
    let lab = Lab::new().await;
    let (row, other) = (lab.create("one").await, lab.create("two").await);
    let mut client = lab.client.clone();
    let mut revision = config(&lab, &row).await.config_revision;
    let steps = [
        (set(false, "log_level", "debug"), Some(("debug", SettingScope::Sandbox))),
        (set(true, "log_level", "warn"), Some(("warn", SettingScope::Global))),
        (delete(true, "log_level"), Some(("debug", SettingScope::Sandbox))),
        (delete(false, "log_level"), None),
    ];
    for (request, expected) in steps {
        let deletes = request.delete_setting;
        let answer = client.update_config(request).await.unwrap().into_inner();
        assert_eq!(answer.deleted, deletes);
        let found = config(&lab, &row).await;
        assert!(found.config_revision > revision, "a supervisor must see the change");
        revision = found.config_revision;
        let found = found.settings.get("log_level");
        let found = found.map(|found| (found.value.clone(), found.scope()));
        assert_eq!(found, expected.map(|(value, scope)| (text(value), scope)));
    }
    assert!(config(&lab, &other).await.settings.is_empty());

    client.update_config(set(true, "a.b-c_1", "x")).await.unwrap();
    let all = client.get_gateway_config(GetGatewayConfigRequest {}).await.unwrap().into_inner();
    assert_eq!((all.settings.len(), all.settings["a.b-c_1"].clone()), (1, text("x").unwrap()));
    let kept = client.update_config(set(true, "a.b-c_1", "x")).await.unwrap().into_inner();
    assert_eq!(kept.settings_revision, all.settings_revision, "nothing has changed");
    let refused = client.update_config(set(false, "a.b-c_1", "y")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}

#[tokio::test]
async fn what_is_no_change_of_a_configuration_is_refused() {
    let lab = Lab::new().await;
    let row = lab.create("one").await;
    let mut client = lab.client.clone();
    let policy = Some(SandboxPolicy::default());
    let long = "x".repeat(4097);
    let unset = UpdateConfigRequest { setting_value: None, ..set(false, "k", "") };
    for (request, code) in [
        (UpdateConfigRequest { name: "one".into(), ..Default::default() }, Code::InvalidArgument),
        (set(false, "k k", "v"), Code::InvalidArgument),
        (set(false, &"k".repeat(65), "v"), Code::InvalidArgument),
        (set(true, "policy", "v"), Code::InvalidArgument),
        (set(false, "k", &long), Code::InvalidArgument),
        (unset, Code::InvalidArgument),
        (delete(false, "policy"), Code::InvalidArgument),
        (UpdateConfigRequest { policy, ..set(false, "k", "v") }, Code::InvalidArgument),
        (UpdateConfigRequest { name: "none".into(), ..set(false, "k", "v") }, Code::NotFound),
        (
            UpdateConfigRequest { expected_resource_version: 99, ..set(false, "k", "v") },
            Code::Aborted,
        ),
    ] {
        let shown = format!("{request:?}");
        assert_eq!(client.update_config(request).await.unwrap_err().code(), code, "{shown}");
    }
    // A supervisor brings the policy of its own sandbox, and says nothing else.
    let merge = PolicyMergeOperation {
        operation: Some(Operation::RemoveRule(RemoveNetworkRule { rule_name: "r".into() })),
    };
    let merge = UpdateConfigRequest {
        name: "one".into(),
        merge_operations: vec![merge],
        ..Default::default()
    };
    for request in [set(false, "k", "v"), delete(false, "k"), set(true, "k", "v"), merge] {
        let refused = client.update_config(with(&lab.token(&row), request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    for number in 0..64 {
        client.update_config(set(false, &format!("k{number}"), "v")).await.unwrap();
    }
    let full = client.update_config(set(false, "more", "v")).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn the_gateways_policy_is_everybodys_until_it_is_deleted() {
    let lab = Lab::new().await;
    let row = lab.create("one").await;
    let mut client = lab.client.clone();
    let before = config(&lab, &row).await;
    assert_eq!((before.policy_source(), before.global_policy_version), (PolicySource::Sandbox, 0));
    let policy = SandboxPolicy { version: 1, ..Default::default() };
    let global =
        UpdateConfigRequest { global: true, policy: Some(policy.clone()), ..Default::default() };
    let answer = client.update_config(global).await.unwrap().into_inner();
    assert_eq!(answer.version, 1);
    let during = config(&lab, &row).await;
    assert_eq!((during.policy_source(), during.global_policy_version), (PolicySource::Global, 1));
    assert_eq!((during.policy, during.policy_hash), (Some(policy.clone()), answer.policy_hash));
    let own =
        UpdateConfigRequest { name: "one".into(), policy: Some(policy), ..Default::default() };
    let refused = client.update_config(own).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let answer = client.update_config(delete(true, "policy")).await.unwrap().into_inner();
    assert!(answer.deleted && answer.policy_hash.is_empty());
    let after = config(&lab, &row).await;
    assert_eq!(after.policy_source(), PolicySource::Sandbox);
    assert_eq!(after.policy_hash, before.policy_hash);
    assert!(after.config_revision > during.config_revision);
}

#[tokio::test]
async fn parts_of_a_policy_change_together_or_not_at_all() {
    let lab = Lab::new().await;
    let row = lab.create("one").await;
    let mut client = lab.client.clone();
    let endpoint = NetworkEndpoint { host: "a.example".into(), port: 443, ..Default::default() };
    let rule = NetworkPolicyRule { endpoints: vec![endpoint], ..Default::default() };
    let add =
        Operation::AddRule(AddNetworkRule { rule_name: "web".into(), rule: Some(rule.clone()) });
    let none = Operation::RemoveRule(RemoveNetworkRule { rule_name: "none".into() });
    let request = |operations: &[&Operation]| UpdateConfigRequest {
        name: "one".into(),
        merge_operations: operations
            .iter()
            .map(|operation| PolicyMergeOperation { operation: Some((*operation).clone()) })
            .collect(),
        ..Default::default()
    };
    let refused = client.update_config(request(&[&add, &none])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(config(&lab, &row).await.policy.unwrap().network_policies.is_empty());
    for _ in 0..2 {
        let answer = client.update_config(request(&[&add])).await.unwrap().into_inner();
        assert_eq!(answer.version, 2, "the second time nothing changes");
    }
    let found = config(&lab, &row).await;
    let policy = found.policy.unwrap();
    assert_eq!((found.version, &policy.network_policies["web"]), (2, &rule));
    assert!(policy.filesystem.is_some(), "the rest stays");
}
