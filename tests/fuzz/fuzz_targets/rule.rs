//! Rules of egress as a user writes them, one on each line, and destinations judged by them.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use libfuzzer_sys::{Corpus, fuzz_target};
use openshell_fuzz::Script;
use openshell_usernet::Instant;
use openshell_usernet::policy::{
    Action, Denied, Fallback, Group, Pins, Policy, PolicyError, Request, Route, Rule, Scene,
    Target, Transport, kind,
};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some(at) = data.iter().position(|byte| *byte == 0) else { return Corpus::Reject };
    let Ok(text) = std::str::from_utf8(&data[..at]) else { return Corpus::Reject };
    let mut rules = Vec::new();
    for line in text.split('\n') {
        match line.parse::<Rule>() {
            Ok(rule) => {
                assert_eq!(rule.to_string().parse(), Ok(rule.clone()), "{line}");
                rules.push(rule);
            }
            Err(error) => {
                assert_eq!(error.to_string().lines().count(), 1);
                assert!((1..=line.chars().count() + 1).contains(&error.column), "{error}");
            }
        }
    }
    let policy = match Policy::new(rules.clone(), Fallback::Public) {
        Ok(policy) => policy,
        Err(PolicyError::TooMany { count }) => {
            assert_eq!(count, rules.len());
            return Corpus::Keep;
        }
        Err(PolicyError::Unreachable { index, rule, .. }) => {
            assert_eq!(rules[index], *rule);
            rules.truncate(index);
            Policy::new(rules, Fallback::Public).expect("those before it can decide")
        }
    };
    judge(&policy, Script(&data[at + 1..]));
    Corpus::Keep
});

fn judge(policy: &Policy, mut script: Script<'_>) {
    let (scene, now) = (Scene::default(), Instant::from_nanos(0));
    while script.goes_on() {
        let address = match script.byte() & 1 {
            0 => IpAddr::V4(Ipv4Addr::from_bits(script.u32())),
            _ => Ipv6Addr::from_bits(u128::from(script.u64()) << 64 | u128::from(script.u64()))
                .into(),
        };
        let mut pins = Pins::default();
        pins.pin(now, "a.example", address, Duration::ZERO);
        let to = SocketAddr::new(address, script.u16());
        for transport in [Transport::Tcp, Transport::Udp] {
            let request = Request::Flow { transport, to, live: false };
            let verdict = policy.judge(&scene, &pins, now, &request);
            match (kind(address, &scene), verdict) {
                (Err(never), verdict) => {
                    let expected =
                        if to.port() == 0 { Denied::NoPort } else { Denied::Never(never) };
                    assert_eq!(verdict, Err(expected), "{to}");
                }
                (Ok(_), Ok(Route::Socket(socket))) => {
                    let alias = scene.is_host_alias(address);
                    assert_eq!(alias, socket.ip().is_loopback(), "{to} leads to {socket}");
                    assert_eq!(socket.port(), to.port());
                }
                (Ok(kind), Ok(Route::Stack)) => assert!(scene.is_gateway(address), "{kind:?}"),
                (Ok(_), Err(_)) => {}
            }
            // No spelling is milder. What a name led to is one spelling.
            let refuses = |rule: &Rule| {
                rule.action == Action::Deny && !matches!(rule.target, Target::Name(_))
            };
            if let IpAddr::V4(v4) = address
                && policy.rules().iter().all(refuses)
            {
                let nat64 = Ipv6Addr::from_bits(0x64_ff9b << 96 | u128::from(v4.to_bits()));
                for spelling in [v4.to_ipv6_mapped(), nat64] {
                    let to = SocketAddr::new(spelling.into(), to.port());
                    let request = Request::Flow { transport, to, live: false };
                    let spelled = policy.judge(&scene, &Pins::default(), now, &request);
                    assert!(verdict.is_ok() || spelled.is_err(), "{to}");
                }
            }
        }
        let answer = policy.judge(&scene, &pins, now, &Request::Answer(address));
        if kind(address, &scene).is_ok_and(|kind| kind.group == Group::Public) {
            assert_eq!(answer, Ok(Route::Stack));
        }
    }
}
