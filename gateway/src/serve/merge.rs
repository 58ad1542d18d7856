//! Changes to parts of a policy's network rules.
//!
//! Invariant: operations are applied in their order, all or none, and what they make of a policy passes the check of policies. One that finds
//! nothing to work on is an error: it was meant for another policy. Pure.

use openshell_proto::sandbox::v1::{NetworkEndpoint, NetworkPolicyRule, SandboxPolicy};
use openshell_proto::v1::PolicyMergeOperation;
use openshell_proto::v1::policy_merge_operation::Operation;
use tonic::Status;

use super::policy::check_policy;

/// Operations of one request.
const OPERATIONS_MAX: usize = 256;

/// What the operations make of a policy.
pub(super) fn merge(
    policy: &SandboxPolicy,
    operations: &[PolicyMergeOperation],
) -> Result<SandboxPolicy, Status> {
    if operations.len() > OPERATIONS_MAX {
        return Err(Status::invalid_argument("more than 256 merge operations"));
    }
    let mut next = policy.clone();
    for operation in operations {
        let Some(operation) = &operation.operation else {
            return Err(Status::invalid_argument("a merge operation that is not known"));
        };
        apply(&mut next, operation).map_err(Status::invalid_argument)?;
    }
    check_policy(&next)?;
    Ok(next)
}

fn apply(policy: &mut SandboxPolicy, operation: &Operation) -> Result<(), String> {
    let rules = &mut policy.network_policies;
    let no_rule = |name: &str| format!("the policy has no rule `{name}`");
    match operation {
        Operation::AddRule(add) => {
            let rule = add.rule.clone().unwrap_or_default();
            let name = if add.rule_name.is_empty() { &rule.name } else { &add.rule_name };
            if name.is_empty() {
                return Err("a rule without a name".to_owned());
            }
            let name = name.clone();
            match rules.get_mut(&name) {
                Some(old) => join(old, rule),
                None => drop(rules.insert(name, rule)),
            }
        }
        Operation::RemoveRule(remove) => {
            rules.remove(&remove.rule_name).ok_or_else(|| no_rule(&remove.rule_name))?;
        }
        Operation::RemoveBinary(remove) => {
            let rule =
                rules.get_mut(&remove.rule_name).ok_or_else(|| no_rule(&remove.rule_name))?;
            let before = rule.binaries.len();
            rule.binaries.retain(|binary| binary.path != remove.binary_path);
            if rule.binaries.len() == before {
                return Err(format!("the rule has no binary `{}`", remove.binary_path));
            }
        }
        Operation::RemoveEndpoint(remove) => {
            let mut found = false;
            for (name, rule) in rules.iter_mut() {
                if remove.rule_name.is_empty() || remove.rule_name == *name {
                    found |= without(rule, &remove.host, remove.port);
                }
            }
            if !found {
                return Err(no_endpoint(&remove.host, remove.port));
            }
            // A rule without endpoints allows nothing.
            rules.retain(|_, rule| !rule.endpoints.is_empty());
        }
        Operation::AddDenyRules(add) => {
            each(policy, &add.host, add.port, |endpoint| {
                extend(&mut endpoint.deny_rules, &add.deny_rules);
            })?;
        }
        Operation::AddAllowRules(add) => {
            each(policy, &add.host, add.port, |endpoint| extend(&mut endpoint.rules, &add.rules))?;
        }
    }
    Ok(())
}

/// Adds endpoints and binaries to a rule.
fn join(rule: &mut NetworkPolicyRule, more: NetworkPolicyRule) {
    for binary in more.binaries {
        if rule.binaries.iter().all(|old| old.path != binary.path) {
            rule.binaries.push(binary);
        }
    }
    for endpoint in more.endpoints {
        let same = |old: &&mut NetworkEndpoint| {
            old.host.eq_ignore_ascii_case(&endpoint.host)
                && old.path == endpoint.path
                && ports(old) == ports(&endpoint)
        };
        match rule.endpoints.iter_mut().find(same) {
            // What the new one says counts; what only the old one allows or denies stays.
            Some(old) => {
                let was = std::mem::replace(old, endpoint);
                extend(&mut old.rules, &was.rules);
                extend(&mut old.deny_rules, &was.deny_rules);
                extend(&mut old.allowed_ips, &was.allowed_ips);
            }
            None => rule.endpoints.push(endpoint),
        }
    }
}

/// Takes a port of a host out of a rule; whether it was there.
fn without(rule: &mut NetworkPolicyRule, host: &str, port: u32) -> bool {
    let mut found = false;
    rule.endpoints.retain_mut(|endpoint| {
        if !is(endpoint, host, port) {
            return true;
        }
        found = true;
        let left: Vec<u32> = ports(endpoint).into_iter().filter(|one| *one != port).collect();
        endpoint.port = left.first().copied().unwrap_or_default();
        let keep = !left.is_empty();
        endpoint.ports = if left.len() > 1 { left } else { Vec::new() };
        keep
    });
    found
}

/// Changes every endpoint of a host and port.
fn each(
    policy: &mut SandboxPolicy,
    host: &str,
    port: u32,
    mut change: impl FnMut(&mut NetworkEndpoint),
) -> Result<(), String> {
    let mut found = false;
    let endpoints = policy.network_policies.values_mut().flat_map(|rule| &mut rule.endpoints);
    for endpoint in endpoints.filter(|endpoint| is(endpoint, host, port)) {
        found = true;
        change(endpoint);
    }
    if found { Ok(()) } else { Err(no_endpoint(host, port)) }
}

fn no_endpoint(host: &str, port: u32) -> String {
    format!("the policy has no endpoint `{host}:{port}`")
}

fn is(endpoint: &NetworkEndpoint, host: &str, port: u32) -> bool {
    endpoint.host.eq_ignore_ascii_case(host) && ports(endpoint).contains(&port)
}

/// All ports of an endpoint, in order: the list, or the one.
fn ports(endpoint: &NetworkEndpoint) -> Vec<u32> {
    let mut ports = endpoint.ports.clone();
    if ports.is_empty() {
        ports.push(endpoint.port);
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn extend<T: Clone + PartialEq>(list: &mut Vec<T>, more: &[T]) {
    for one in more {
        if !list.contains(one) {
            list.push(one.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use openshell_proto::sandbox::v1::{L7Allow, L7DenyRule, L7Rule, NetworkBinary};
    use openshell_proto::v1::{
        AddAllowRules, AddDenyRules, AddNetworkRule, RemoveNetworkBinary, RemoveNetworkEndpoint,
        RemoveNetworkRule,
    };
    use proptest::prelude::*;

    use super::*;

    fn endpoint(host: &str, ports: &[u32]) -> NetworkEndpoint {
        NetworkEndpoint { host: host.into(), ports: ports.to_vec(), ..Default::default() }
    }

    fn add(name: &str, endpoint: NetworkEndpoint, binary: &str) -> Operation {
        let binaries = vec![NetworkBinary { path: binary.into(), ..Default::default() }];
        let rule = NetworkPolicyRule { endpoints: vec![endpoint], binaries, ..Default::default() };
        Operation::AddRule(AddNetworkRule { rule_name: name.into(), rule: Some(rule) })
    }

    fn remove(rule: &str, host: &str, port: u32) -> Operation {
        let remove = RemoveNetworkEndpoint { rule_name: rule.into(), host: host.into(), port };
        Operation::RemoveEndpoint(remove)
    }

    /// What the policy allows then, as `rule=host:port,port rules/denials binaries`.
    fn check(operations: &[Operation], expected: Result<&[&str], &str>) {
        let operations: Vec<_> = operations
            .iter()
            .map(|operation| PolicyMergeOperation { operation: Some(operation.clone()) })
            .collect();
        let merged = merge(&SandboxPolicy::default(), &operations);
        let text = merged.as_ref().map(|policy| {
            let show = |(name, rule): (&String, &NetworkPolicyRule)| {
                let mut text = format!("{name}=");
                for one in &rule.endpoints {
                    let (allow, deny) = (one.rules.len(), one.deny_rules.len());
                    text += &format!("{}:{:?} {allow}/{deny} ", one.host, ports(one));
                }
                let binaries: Vec<&str> =
                    rule.binaries.iter().map(|binary| binary.path.as_str()).collect();
                text + &binaries.join(" ")
            };
            policy.network_policies.iter().map(show).collect::<Vec<_>>()
        });
        match (text, expected) {
            (Ok(text), Ok(expected)) => assert_eq!(text, expected),
            (Err(refused), Err(why)) => {
                assert_eq!(refused.code(), tonic::Code::InvalidArgument);
                assert!(refused.message().contains(why), "{refused}");
            }
            (text, expected) => panic!("{text:?}, not {expected:?}"),
        }
    }

    #[test]
    fn rules_grow_and_shrink() {
        let base = add("web", endpoint("a.example", &[443]), "/bin/curl");
        check(std::slice::from_ref(&base), Ok(&["web=a.example:[443] 0/0 /bin/curl"]));
        let more = add("web", endpoint("A.EXAMPLE", &[443]), "/bin/wget");
        check(&[base.clone(), more], Ok(&["web=A.EXAMPLE:[443] 0/0 /bin/curl /bin/wget"]));
        let other = add("web", endpoint("b.example", &[80, 81]), "/bin/curl");
        let both = [base.clone(), other];
        check(&both, Ok(&["web=a.example:[443] 0/0 b.example:[80, 81] 0/0 /bin/curl"]));
        let less = [&both[..], &[remove("", "b.example", 80)]].concat();
        check(&less, Ok(&["web=a.example:[443] 0/0 b.example:[81] 0/0 /bin/curl"]));
        let none = [&less[..], &[remove("web", "b.example", 81), remove("web", "a.example", 443)]];
        check(&none.concat(), Ok(&[]));
        let gone = RemoveNetworkRule { rule_name: "web".into() };
        check(&[base.clone(), Operation::RemoveRule(gone.clone())], Ok(&[]));
        let binary =
            RemoveNetworkBinary { rule_name: "web".into(), binary_path: "/bin/curl".into() };
        let binary = Operation::RemoveBinary(binary);
        check(&[base.clone(), binary.clone()], Ok(&["web=a.example:[443] 0/0 "]));
        for (operations, why) in [
            (vec![base.clone(), remove("", "a.example", 80)], "no endpoint `a.example:80`"),
            (vec![base.clone(), remove("other", "a.example", 443)], "no endpoint"),
            (vec![Operation::RemoveRule(gone)], "no rule `web`"),
            (vec![base.clone(), binary.clone(), binary], "no binary"),
            (vec![add("", endpoint("a", &[1]), "/x")], "without a name"),
        ] {
            check(&operations, Err(why));
        }
    }

    #[test]
    fn what_is_allowed_and_denied_is_added_once() {
        let base = add("web", endpoint("a.example", &[443]), "/bin/curl");
        let allow = L7Allow { method: "GET".into(), ..Default::default() };
        let allow = Operation::AddAllowRules(AddAllowRules {
            host: "a.example".into(),
            port: 443,
            rules: vec![L7Rule { allow: Some(allow) }],
        });
        let deny = Operation::AddDenyRules(AddDenyRules {
            host: "a.example".into(),
            port: 443,
            deny_rules: vec![L7DenyRule { method: "PUT".into(), ..Default::default() }],
        });
        let all = [base.clone(), allow.clone(), deny.clone(), allow.clone(), base, deny];
        check(&all, Ok(&["web=a.example:[443] 1/1 /bin/curl"]));
        check(&[allow], Err("no endpoint `a.example:443`"));
    }

    proptest! {
        #[test]
        fn what_was_added_can_be_removed(hosts in proptest::collection::vec("[ab]{1,2}", 1..8), ports in proptest::collection::vec(1_u32..4, 1..8)) {
            let mut policy = SandboxPolicy::default();
            let pairs: Vec<_> = hosts.iter().zip(&ports).collect();
            for (host, port) in &pairs {
                apply(&mut policy, &add(host, endpoint(host, &[**port]), "/x")).unwrap();
            }
            for (host, port) in &pairs {
                let there = policy.network_policies.values().flat_map(|rule| &rule.endpoints);
                let there = there.into_iter().any(|one| is(one, host, **port));
                prop_assert_eq!(apply(&mut policy, &remove("", host, **port)).is_ok(), there);
            }
            prop_assert!(policy.network_policies.is_empty());
        }
    }
}
