use std::time::Duration;

use proptest::prelude::*;

use super::*;

const NOW: Instant = Instant::from_nanos(1_000_000_000);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The usual network, on a host with a private, a public and an IPv6 address.
fn scene() -> Scene {
    let owned = ["127.0.0.1", "10.1.2.3", "198.41.0.4", "::1", "2a00::3", "fe80::3"].map(ip);
    Scene::new(Places::default(), None, owned)
}

fn policy(rules: &[&str]) -> Policy {
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Policy::new(rules, Fallback::Public).unwrap()
}

fn flow(policy: &Policy, pins: &Pins, transport: Transport, to: &str) -> Result<Route, Denied> {
    let request = Request::Flow { transport, to: to.parse().unwrap(), live: false };
    policy.judge(&scene(), pins, NOW, &request)
}

fn tcp(policy: &Policy, to: &str) -> Result<Route, Denied> {
    flow(policy, &Pins::default(), Transport::Tcp, to)
}

fn name(policy: &Policy, name: &str) -> bool {
    policy.judge(&scene(), &Pins::default(), NOW, &Request::Name(name)).is_ok()
}

fn answer(policy: &Policy, address: &str) -> bool {
    policy.judge(&scene(), &Pins::default(), NOW, &Request::Answer(ip(address))).is_ok()
}

/// The verdicts of one address: TCP, UDP, echo, and as the answer to a lookup.
fn all_four(policy: &Policy, scene: &Scene, address: IpAddr) -> [Result<Route, Denied>; 4] {
    let pins = Pins::default();
    let to = SocketAddr::new(address, 443);
    [
        Request::Flow { transport: Transport::Tcp, to, live: false },
        Request::Flow { transport: Transport::Udp, to, live: false },
        Request::Echo { to: address, live: false },
        Request::Answer(address),
    ]
    .map(|request| policy.judge(scene, &pins, NOW, &request))
}

const PUBLIC: Option<Denied> = None;
const PRIVATE: Option<Denied> = Some(Denied::Group(Group::Private));
const LINK_LOCAL: Option<Denied> = Some(Denied::Group(Group::LinkLocal));
const METADATA: Option<Denied> = Some(Denied::Group(Group::Metadata));
const HOST: Option<Denied> = Some(Denied::Group(Group::Host));
const SPECIAL: Option<Denied> = Some(Denied::Group(Group::Special));
const LOOPBACK: Option<Denied> = Some(Denied::Never(Never::Loopback));
const UNSPECIFIED: Option<Denied> = Some(Denied::Never(Never::Unspecified));
const MULTICAST: Option<Denied> = Some(Denied::Never(Never::Multicast));
const BROADCAST: Option<Denied> = Some(Denied::Never(Never::Broadcast));
const UNASSIGNED: Option<Denied> = Some(Denied::Never(Never::Unassigned));

/// Every class of addresses, with its edges, and what the default policy says to all protocols alike.
const CLASSES: &[(Option<Denied>, &[&str])] = &[
    (PUBLIC, &["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"]),
    (
        PUBLIC,
        &["126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "223.255.255.255"],
    ),
    (PUBLIC, &["172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "198.41.0.5"]),
    (
        PUBLIC,
        &[
            "2606:4700::1111",
            "2a00::4",
            "2003::1",
            "3ffe::1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
        ],
    ),
    (PUBLIC, &["2606:4700::5efe:1.1.1.1"]),
    (PRIVATE, &["10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "172.16.0.0"]),
    (
        PRIVATE,
        &["172.31.255.255", "192.168.0.0", "192.168.126.255", "192.168.128.0", "192.168.255.255"],
    ),
    (PRIVATE, &["fc00::", "fd12:3456::1", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fec0::1"]),
    (PRIVATE, &["64:ff9b::10.0.0.1", "64:ff9b::192.168.1.1", "2002:a00:1::", "64:ff9b:1::1.1.1.1"]),
    (PRIVATE, &["2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:10.0.0.1", "::ffff:10.0.0.1"]),
    (LINK_LOCAL, &["fe80::1", "fe80::", "febf:ffff::"]),
    (METADATA, &["169.254.169.254", "169.254.0.0", "169.254.255.255", "100.100.100.200"]),
    (METADATA, &["168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"]),
    (METADATA, &["::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::"]),
    (
        METADATA,
        &["64:ff9b:1::169.254.169.254", "64:ff9b:1:a9fe:a9:fe00::", "fe80::5efe:169.254.169.254"],
    ),
    (METADATA, &["2001:0:a9fe:a9fe::fefe:fefe", "::ffff:0:169.254.169.254", "::169.254.169.254"]),
    (HOST, &["192.168.127.254", "10.1.2.3", "198.41.0.4", "2a00::3", "fe80::3"]),
    (HOST, &["::ffff:192.168.127.254", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "2002:a01:203::"]),
    (HOST, &["64:ff9b::192.168.127.254", "fe80::5efe:10.1.2.3", "2606::5efe:198.41.0.4"]),
    (SPECIAL, &["192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255"]),
    (SPECIAL, &["198.51.100.1", "203.0.113.1", "240.0.0.1", "255.255.255.254"]),
    (
        SPECIAL,
        &[
            "2001:db8::1",
            "2001:0:808:808::fefe:fefd",
            "3fff::1",
            "100::1",
            "5f00::1",
            "4000::1",
            "::1.2.3.4",
        ],
    ),
    (SPECIAL, &["::ffff:0:1.2.3.4", "2001:20::1", "64:ff9b::1:1.2.3.4", "::ffff:198.51.100.1"]),
    (LOOPBACK, &["127.0.0.1", "127.0.0.0", "127.255.255.255", "::1", "::ffff:127.0.0.1"]),
    (LOOPBACK, &["64:ff9b::127.0.0.1", "2002:7f00:1::", "::127.0.0.1", "::ffff:0:127.0.0.1"]),
    (
        LOOPBACK,
        &[
            "64:ff9b:1::127.0.0.1",
            "64:ff9b:1:7f00:0:100::",
            "fe80::5efe:127.0.0.1",
            "2606::200:5efe:127.1.1.1",
        ],
    ),
    (LOOPBACK, &["2001:0:7f00:1::1", "2001:0:101:101:0:0:80ff:fffe"]),
    (UNSPECIFIED, &["0.0.0.0", "0.1.2.3", "0.255.255.255", "::", "::ffff:0.0.0.0", "::2"]),
    (UNSPECIFIED, &["64:ff9b::", "2002::", "fe80::5efe:0:0", "64:ff9b:1::1"]),
    (
        MULTICAST,
        &[
            "224.0.0.1",
            "239.255.255.250",
            "ff02::1",
            "ff05::2",
            "64:ff9b::224.0.0.1",
            "2002:e000:1::",
        ],
    ),
    (BROADCAST, &["255.255.255.255", "::ffff:255.255.255.255", "64:ff9b::255.255.255.255"]),
    (
        UNASSIGNED,
        &["192.168.127.0", "192.168.127.2", "192.168.127.3", "192.168.127.253", "192.168.127.255"],
    ),
    (UNASSIGNED, &["::ffff:192.168.127.2", "64:ff9b::192.168.127.9", "2002:c0a8:7f02::"]),
];

#[test]
fn every_class_of_addresses_is_judged_alike_by_default_whatever_the_protocol() {
    for &(expected, addresses) in CLASSES {
        for address in addresses {
            let verdicts = all_four(&Policy::default(), &scene(), ip(address));
            for (verdict, protocol) in verdicts.into_iter().zip(["tcp", "udp", "icmp", "dns"]) {
                assert_eq!(verdict.err(), expected, "{protocol} {address}");
                match verdict {
                    Ok(Route::Socket(to)) => assert_eq!(to.ip(), ip(address).to_canonical()),
                    Ok(Route::Stack) => assert_eq!(protocol, "dns", "{address}"),
                    Err(_) => {}
                }
            }
        }
    }
}

#[test]
fn what_is_never_reached_no_rule_opens() {
    let rules = ["allow any", "allow dns:*", "allow 0.0.0.0/0", "allow [::]/0"];
    for rules in rules.map(|rule| policy(&[rule])) {
        for (expected, addresses) in CLASSES {
            let Some(Denied::Never(_)) = expected else { continue };
            for address in *addresses {
                for verdict in all_four(&rules, &scene(), ip(address)) {
                    assert_eq!(verdict.err(), *expected, "{address}");
                }
            }
        }
    }
    let denied = tcp(&policy(&["allow any"]), "1.1.1.1:0");
    assert_eq!(denied, Err(Denied::NoPort));
}

#[test]
fn what_is_closed_by_default_opens_by_its_group_and_by_any() {
    for (expected, addresses) in CLASSES {
        let Some(Denied::Group(group)) = *expected else { continue };
        for (name, of) in Group::NAMES.into_iter().filter(|(name, _)| *name != "multicast") {
            let by_group = policy(&[&format!("allow {name}")]);
            for address in *addresses {
                for verdict in all_four(&by_group, &scene(), ip(address)) {
                    assert_eq!(verdict.is_ok(), group == of, "{address} by {name}");
                }
                assert!(
                    all_four(&policy(&["allow any"]), &scene(), ip(address))
                        .iter()
                        .all(Result::is_ok)
                );
            }
        }
    }
}

#[test]
fn the_gateway_has_dns_dhcp_and_echo_and_nothing_else() {
    for rules in [Policy::default(), policy(&["allow any"]), policy(&["deny any"])] {
        for (transport, port, open) in [
            (Transport::Udp, 53, true),
            (Transport::Tcp, 53, true),
            (Transport::Udp, 67, true),
            (Transport::Tcp, 67, false),
            (Transport::Tcp, 80, false),
            (Transport::Udp, 80, false),
            (Transport::Tcp, 22, false),
        ] {
            let verdict =
                flow(&rules, &Pins::default(), transport, &format!("192.168.127.1:{port}"));
            assert_eq!(
                verdict,
                if open { Ok(Route::Stack) } else { Err(Denied::Gateway) },
                "{port}"
            );
        }
        let echo = Request::Echo { to: ip("192.168.127.1"), live: false };
        assert_eq!(rules.judge(&scene(), &Pins::default(), NOW, &echo), Ok(Route::Stack));
    }
}

#[test]
fn one_port_of_the_host_opens_no_other_and_leads_to_its_loopback() {
    let rules = policy(&["allow tcp:host:17670"]);
    assert_eq!(
        tcp(&rules, "192.168.127.254:17670"),
        Ok(Route::Socket("127.0.0.1:17670".parse().unwrap()))
    );
    assert_eq!(tcp(&rules, "10.1.2.3:17670"), Ok(Route::Socket("10.1.2.3:17670".parse().unwrap())));
    let host = Err(Denied::Group(Group::Host));
    assert_eq!(tcp(&rules, "192.168.127.254:17671"), host);
    assert_eq!(tcp(&rules, "10.1.2.3:22"), host);
    assert_eq!(flow(&rules, &Pins::default(), Transport::Udp, "192.168.127.254:17670"), host);
    let echo = Request::Echo { to: ip("192.168.127.254"), live: false };
    assert_eq!(rules.judge(&scene(), &Pins::default(), NOW, &echo), host);
}

#[test]
fn a_wide_range_opens_neither_the_host_nor_metadata_in_it() {
    for (rule, address, open) in [
        ("allow 10.0.0.0/8", "10.9.9.9", true),
        ("allow 10.0.0.0/8", "10.1.2.3", false),
        ("allow 10.1.2.3", "10.1.2.3", true),
        ("allow 0.0.0.0/0", "192.168.127.254", false),
        ("allow 192.168.127.254", "192.168.127.254", true),
        ("allow 0.0.0.0/0", "169.254.169.254", false),
        ("allow 100.64.0.0/10", "100.100.100.200", false),
        ("allow 169.254.0.0/16", "169.254.169.254", true),
        ("allow 169.254.169.254", "169.254.169.254", true),
        ("allow fd00::/8", "fd00:ec2::254", false),
        ("allow fd00::/8", "fd01::254", true),
        ("allow 64:ff9b::/96", "64:ff9b::1.1.1.1", true),
        ("allow 64:ff9b::/96", "64:ff9b::10.0.0.1", false),
        ("allow 10.0.0.0/8", "64:ff9b::10.0.0.1", false),
        ("allow 10.0.0.0/8", "::ffff:10.0.0.1", true),
        ("allow ::/0", "10.0.0.1", false),
    ] {
        let verdicts = all_four(&policy(&[rule]), &scene(), ip(address));
        assert!(verdicts.iter().all(|verdict| verdict.is_ok() == open), "{rule}: {address}");
    }
    for (rule, address) in [
        ("deny 1.1.1.0/24", "1.1.1.1"),
        ("deny 1.1.1.0/24", "::ffff:1.1.1.1"),
        ("deny 1.1.1.0/24", "64:ff9b::1.1.1.1"),
        ("deny 1.1.1.0/24", "2002:101:101::"),
        ("deny ::ffff:1.1.1.0/120", "1.1.1.1"),
        ("deny 64:ff9b::/96", "64:ff9b::1.1.1.1"),
    ] {
        let verdicts = all_four(&policy(&[rule]), &scene(), ip(address));
        let [flows @ .., answer] = verdicts;
        assert_eq!(flows, [Err(Denied::Rule(0)); 3], "{rule}: {address}");
        assert_eq!(answer, Ok(Route::Stack), "it is public");
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = policy(&[
        "deny tcp:10.0.0.5",
        "allow tcp:10.0.0.0/24:80,8000-8100",
        "deny tcp:1.1.1.0/24:443",
        "allow icmp:private",
    ]);
    for (to, expected) in [
        ("10.0.0.5:80", Err(Denied::Rule(0))),
        ("10.0.0.6:80", Ok(())),
        ("10.0.0.6:7999", PRIVATE.map_or(Ok(()), Err)),
        ("10.0.0.6:8000", Ok(())),
        ("10.0.0.6:8100", Ok(())),
        ("10.0.0.6:8101", PRIVATE.map_or(Ok(()), Err)),
        ("1.1.1.1:443", Err(Denied::Rule(2))),
        ("1.1.1.1:80", Ok(())),
    ] {
        assert_eq!(tcp(&rules, to).map(drop), expected, "{to}");
    }
    assert!(flow(&rules, &Pins::default(), Transport::Udp, "1.1.1.1:443").is_ok());
    let echo = Request::Echo { to: ip("10.0.0.5"), live: false };
    assert!(rules.judge(&scene(), &Pins::default(), NOW, &echo).is_ok());
    let nothing =
        Policy::new(vec!["allow 1.1.1.1:443".parse().unwrap()], Fallback::Nothing).unwrap();
    assert!(tcp(&nothing, "1.1.1.1:443").is_ok());
    assert_eq!(tcp(&nothing, "1.1.1.1:80"), Err(Denied::Group(Group::Public)));
    assert!(!name(&nothing, "example.org"));
    let [_, _, echo, _] = all_four(&nothing, &scene(), ip("1.1.1.1"));
    assert_eq!(echo, Err(Denied::Group(Group::Public)), "a rule of ports is not one of echoes");
}

#[test]
fn a_name_opens_the_public_addresses_it_led_to_and_no_others() {
    let rules = policy(&["allow tcp:*.example.org:443", "allow dns:example.net", "deny any"]);
    let mut pins = Pins::default();
    for (name, address) in [
        ("a.example.org", "1.1.1.1"),
        ("example.org", "1.1.1.2"),
        ("a.example.com", "1.1.1.3"),
        ("a.example.org", "10.0.0.1"),
        ("a.example.org", "10.1.2.3"),
    ] {
        pins.pin(NOW, name, ip(address), Duration::from_secs(60));
    }
    for (to, open) in [
        ("1.1.1.1:443", true),
        ("[::ffff:1.1.1.1]:443", true),
        ("1.1.1.1:80", false),
        ("1.1.1.2:443", false),
        ("1.1.1.3:443", false),
        ("1.1.1.4:443", false),
        ("10.0.0.1:443", false),
        ("10.1.2.3:443", false),
    ] {
        assert_eq!(flow(&rules, &pins, Transport::Tcp, to).is_ok(), open, "{to}");
    }
    for (of, open) in [
        ("a.example.org", true),
        ("b.a.example.org", true),
        ("example.org", false),
        ("badexample.org", false),
        ("example.net", true),
    ] {
        assert_eq!(name(&rules, of), open, "{of}");
    }
    let later = NOW + Duration::from_secs(61);
    let to = "1.1.1.1:443".parse().unwrap();
    let request = |live| Request::Flow { transport: Transport::Tcp, to, live };
    assert_eq!(rules.judge(&scene(), &pins, later, &request(false)), Err(Denied::Rule(2)));
    assert!(rules.judge(&scene(), &pins, later, &request(true)).is_ok(), "a live flow goes on");
}

#[test]
fn a_refusal_of_names_reaches_their_lookup_and_what_it_led_to() {
    let rules = policy(&["deny *.example.org", "deny example.net:25"]);
    assert!(!name(&rules, "a.example.org") && name(&rules, "example.org"));
    assert!(name(&rules, "example.net"), "one port refused leaves the others to look up");
    let mut pins = Pins::default();
    pins.pin(NOW, "example.net", ip("1.1.1.1"), Duration::ZERO);
    assert_eq!(flow(&rules, &pins, Transport::Tcp, "1.1.1.1:25"), Err(Denied::Rule(1)));
    assert!(flow(&rules, &pins, Transport::Tcp, "1.1.1.1:443").is_ok());
    // Another resolver would tell the guest what this one does not.
    for port in [53, 853, 5353, 5355] {
        assert_eq!(tcp(&rules, &format!("8.8.8.8:{port}")), Err(Denied::OtherResolver), "{port}");
        assert!(tcp(&Policy::default(), &format!("8.8.8.8:{port}")).is_ok(), "no names judged");
        let meant = policy(&[&format!("allow 8.8.8.8:{port}"), "deny *.example.org"]);
        assert!(tcp(&meant, &format!("8.8.8.8:{port}")).is_ok());
        assert_eq!(tcp(&meant, &format!("8.8.4.4:{port}")), Err(Denied::OtherResolver));
    }
    let wide = policy(&["allow 8.8.8.8", "deny *.example.org"]);
    assert_eq!(tcp(&wide, "8.8.8.8:53"), Err(Denied::OtherResolver));
}

#[test]
fn names_and_answers_follow_what_may_be_reached() {
    for (rules, looked_up) in [
        (&["deny public"][..], false),
        (&["deny any"], false),
        (&["deny tcp:public"], true),
        (&["deny public:25"], true),
        (&["allow public:443", "deny any"], true),
        (&["allow 1.1.1.1:443", "deny any"], false),
        (&["allow private", "deny any"], false),
        (&["allow dns:any", "deny any"], true),
        (&["deny dns:any"], false),
        (&["deny dns:*.org"], false),
        (&["deny private"], true),
    ] {
        assert_eq!(name(&policy(rules), "example.org"), looked_up, "{rules:?}");
    }
    for (rules, address, given) in [
        (&["allow tcp:10.0.0.0/24:443"][..], "10.0.0.7", true),
        (&["allow tcp:10.0.0.0/24:443"], "10.0.1.7", false),
        (&["allow *.example.org"], "10.0.0.7", false),
        (&["deny tcp:1.1.1.1:25"], "1.1.1.1", true),
        (&["deny 1.1.1.1"], "1.1.1.1", true),
        (&["allow *.example.org", "allow dns:any", "deny any"], "1.1.1.1", true),
        (&["deny 10.0.0.0/24", "allow private"], "10.0.0.7", false),
        (&["deny tcp:10.0.0.0/24", "allow private"], "10.0.0.7", true),
        (&["allow host:17670"], "10.1.2.3", true),
        (&["allow dns:any"], "10.0.0.7", false),
    ] {
        assert_eq!(answer(&policy(rules), address), given, "{rules:?} {address}");
    }
}

#[test]
fn rules_that_can_never_decide_are_refused() {
    for (rules, unreachable) in [
        (&["deny public", "allow name:a.example:443"][..], Some(1)),
        (&["deny any", "allow host:1"], Some(1)),
        (&["deny *.example", "allow a.example"], Some(1)),
        (&["deny *", "allow *.example"], Some(1)),
        (&["deny 10.0.0.0/8", "allow 10.0.0.0/24"], Some(1)),
        (&["allow 10.0.0.0/8:1-9", "deny 10.0.0.0/8:2-3"], Some(1)),
        (&["allow host", "allow private", "deny tcp:host:22"], Some(2)),
        (&["allow 10.0.0.0/24", "deny 10.0.0.0/8"], None),
        (&["allow 10.0.0.0/8", "allow 10.1.2.3"], None),
        (&["allow a.example", "deny *.example"], None),
        (&["deny tcp:public", "allow name:a.example:443"], None),
        (&["deny public:25", "allow name:a.example:443"], None),
        (&["deny public:25", "allow name:a.example:25"], None),
        (&["deny public", "allow private"], None),
    ] {
        let parsed = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let made = Policy::new(parsed, Fallback::Public);
        match unreachable {
            None => assert!(made.is_ok(), "{rules:?}"),
            Some(wrong) => {
                let Err(PolicyError::Unreachable { index, rule, .. }) = made else {
                    panic!("{rules:?}")
                };
                assert_eq!(
                    (index, rule.to_string()),
                    (wrong, rules[wrong].parse::<Rule>().unwrap().to_string())
                );
            }
        }
    }
    let many = |count: u32| {
        (0..count)
            .map(|n| Rule {
                action: Action::Deny,
                protocol: None,
                target: Target::Range(Cidr::single(Ipv4Addr::from_bits(n + (1 << 24)).into())),
                ports: Ports::default(),
            })
            .collect()
    };
    assert!(Policy::new(many(256), Fallback::Public).is_ok());
    assert_eq!(Policy::new(many(257), Fallback::Public), Err(PolicyError::TooMany { count: 257 }));
}

#[test]
fn rules_without_an_order_go_from_the_specific_to_the_wide() {
    let order = [
        "allow [2606::1]:80",
        "deny 10.1.2.3",
        "allow 10.1.2.3",
        "deny 10.1.0.0/16:25",
        "allow tcp:10.1.0.0/16",
        "deny 10.1.0.0/16",
        "allow 10.0.0.0/8",
        "deny [2606::/32]",
        "deny www.a.example",
        "allow *.a.example:443",
        "deny *.example",
        "allow *",
        "allow public:443",
        "deny tcp:metadata",
        "deny public",
        "allow private",
        "allow any:22",
        "deny any",
    ];
    let expected: Vec<Rule> = order.map(|rule| rule.parse().unwrap()).into();
    let mut rules = expected.clone();
    rules.reverse();
    rules.sort_by(Rule::by_specificity);
    let [first, second] = [expected.clone(), rules]
        .map(|rules| rules.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(first, second);
    assert!(
        Policy::new(expected, Fallback::Public).is_err(),
        "two are the same but for the action"
    );
}

#[test]
fn rules_read_as_they_are_written() {
    for (text, canonical) in [
        ("allow tcp:10.0.0.0/8:443", "allow tcp:10.0.0.0/8:443"),
        ("allow host:17670", "allow host:17670"),
        ("allow name:*.example.org:443", "allow name:*.example.org:443"),
        ("deny public", "deny public"),
        ("deny ANY", "deny any"),
        ("allow UDP:Link-Local", "allow udp:link-local"),
        ("allow Example.ORG.", "allow name:example.org"),
        ("allow *", "allow name:*"),
        ("allow name:localnet", "allow name:localnet"),
        ("allow   1.1.1.1:53,80,8000-8100", "allow 1.1.1.1:53,80,8000-8100"),
        ("allow 2606:4700::1", "allow [2606:4700::1]"),
        ("allow 2606::1:443", "allow [2606::1:443]"),
        ("allow tcp:[2606::1]:443", "allow tcp:[2606::1]:443"),
        ("allow [2606::]/32:443", "allow [2606::/32]:443"),
        ("allow [2606::/32]:443", "allow [2606::/32]:443"),
        ("allow fd00::/8", "allow [fd00::/8]"),
        ("deny ::ffff:10.0.0.0/104", "deny 10.0.0.0/8"),
        ("deny 10.0.0.1/32", "deny 10.0.0.1"),
        ("deny icmp:any", "deny icmp:any"),
        ("allow dns:any", "allow dns:any"),
        ("deny multicast", "deny multicast"),
        ("allow 0.0.0.0/0", "allow 0.0.0.0/0"),
    ] {
        let rule: Rule = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(rule.to_string(), canonical, "{text}");
        assert_eq!(canonical.parse(), Ok(rule), "{text}");
    }
}

#[test]
fn a_wrong_rule_is_refused_by_its_word_and_column() {
    for (text, message) in [
        ("permit any", "column 1: `permit`: a rule begins with `allow` or `deny`"),
        ("", "column 1: ``: a rule begins"),
        ("allow", "column 6: ``: something is missing here"),
        ("allow tpc:1.1.1.1", "column 7: `tpc`: not known here; did you mean `tcp`?"),
        ("allow pubilc", "column 7: `pubilc`: not known here; did you mean `public`?"),
        ("allow metdata:80", "column 7: `metdata`: not known here; did you mean `metadata`?"),
        ("allow hosts", "column 7: `hosts`: not known here; did you mean `host`?"),
        ("allow everything", "column 7: `everything`: neither an address"),
        ("allow tcp:", "column 11: ``: something is missing here"),
        ("allow tcp:10.0.0/8", "column 11: `10.0.0/8`: not a range"),
        ("allow 10.0.0.0/33", "column 7: `10.0.0.0/33`: not a range"),
        ("allow 10.0.0.0/+8", "column 7: `10.0.0.0/+8`: not a range"),
        ("allow 10.0.0.0/", "column 7: `10.0.0.0/`: not a range"),
        (
            "allow 10.1.2.3/8",
            "column 7: `10.1.2.3/8`: bits below the prefix are set; the range is 10.0.0.0/8",
        ),
        ("allow 1.2.3.256", "column 7: `1.2.3.256`: not a range"),
        ("allow [fd00::1", "column 7: `[fd00::1`: an IPv6 address ends with `]`"),
        ("allow [fd00::g]:1", "column 7: `[fd00::g]`: not a range"),
        ("allow [fd00::1]443", "column 16: `443`: neither"),
        ("allow host:", "column 12: ``: something is missing here"),
        ("allow host:80,", "column 15: ``: something is missing here"),
        ("allow host:0", "column 12: `0`: not a port"),
        ("allow host:80,65536", "column 15: `65536`: not a port"),
        ("allow host:+80", "column 12: `+80`: not a port"),
        ("allow host:90-80", "column 12: `90-80`: a range of ports ends"),
        ("allow host:80-", "column 12: `80-`: not a port"),
        ("allow host:80:90", "column 12: `80:90`: not a port"),
        ("allow icmp:host:80", "column 17: `80`: icmp has no ports"),
        ("deny dns:a.example:53", "column 20: `53`: dns has no ports"),
        ("deny dns:10.0.0.0/8", "column 10: `10.0.0.0/8`: after `dns:`"),
        ("allow a..example", "column 7: `a..example`: a label has 1 to 63"),
        ("allow a.*.example", "column 7: `a.*.example`: `*` stands alone"),
        (
            "allow *.m\u{fc}nchen.example",
            "column 7: `*.m\u{fc}nchen.example`: write it in its ASCII form",
        ),
        ("allow name:a b.example", "column 12: `a b.example`: a label has letters"),
        ("allow name:", "column 12: ``: something is missing here"),
        (
            "allow host.docker.internal:80",
            "column 7: `host.docker.internal`: the host's own name; write `host`",
        ),
        (
            "allow 127.0.0.1:80",
            "column 7: `127.0.0.1`: always denied; the host's loopback is `host`",
        ),
        ("allow [::1]:80", "column 7: `[::1]`: always denied; the host's loopback is `host`"),
        ("allow multicast", "column 7: `multicast`: always denied"),
        ("allow 224.0.0.1", "column 7: `224.0.0.1`: always denied"),
        ("allow \u{fc}:1", "column 7: `\u{fc}`: neither"),
        ("allow a\nb", "column 7: `a\\nb`: neither"),
    ] {
        let error = text.parse::<Rule>().unwrap_err().to_string();
        assert!(error.starts_with(message), "{text}: {error}\nwanted {message}");
        assert_eq!(error.lines().count(), 1);
    }
    let many: Vec<String> = (1..=65).map(|port| port.to_string()).collect();
    let error = format!("allow host:{}", many.join(",")).parse::<Rule>().unwrap_err();
    assert_eq!(error.reason, RuleFault::TooManyPorts);
}

#[test]
fn a_replaced_policy_ends_what_it_no_longer_allows() {
    let mut egress = Egress::new(Policy::default().into(), scene());
    let to: SocketAddr = "1.1.1.1:443".parse().unwrap();
    assert!(egress.flow(NOW, Transport::Tcp, to).is_ok());
    let before = egress.generation();
    egress.replace_policy(policy(&["deny 1.1.1.1"]).into());
    assert_ne!(egress.generation(), before);
    assert_eq!(egress.live_flow(NOW, Protocol::Tcp, to), Err(Denied::Rule(0)));
    egress.replace_policy(Policy::default().into());
    assert!(egress.live_flow(NOW, Protocol::Tcp, to).is_ok());
    egress.replace_owned([to.ip()]);
    assert_eq!(egress.live_flow(NOW, Protocol::Udp, to), Err(Denied::Group(Group::Host)));
    assert_eq!(egress.counts()[Denied::Group(Group::Host).kind()], 1);
    assert_eq!(egress.counts()[Denied::Rule(7).kind()], 1);
}

#[test]
fn refusals_are_told_with_their_names_and_are_bounded() {
    let mut egress = Egress::new(policy(&["deny 1.1.1.1:25", "deny evil.example"]).into(), scene());
    let address = ip("1.1.1.1");
    egress.answer(NOW, "mail.example", address, Some(Duration::ZERO)).unwrap();
    assert!(egress.answer(NOW, "rebind.example", ip("10.0.0.1"), None).is_err());
    assert!(egress.name(NOW, "evil.example").is_err());
    assert!(egress.flow(NOW, Transport::Tcp, SocketAddr::new(address, 25)).is_err());
    assert!(egress.echo(NOW, ip("127.0.0.1")).is_err());
    let told: Vec<Refusal> = std::iter::from_fn(|| egress.take_refusal()).collect();
    let names: Vec<_> = told.iter().map(|refusal| refusal.name.as_deref()).collect();
    assert_eq!(names, [Some("rebind.example"), Some("evil.example"), Some("mail.example"), None]);
    assert_eq!(told[2].why.to_string(), "rule 1");
    for _ in 0..1000 {
        assert!(egress.echo(NOW, ip("127.0.0.1")).is_err());
    }
    let told = std::iter::from_fn(|| egress.take_refusal()).count();
    assert_eq!(told, 28, "the rest of the burst");
    let later = NOW + Duration::from_secs(1);
    assert!(egress.echo(later, ip("127.0.0.1")).is_err());
    assert_eq!(egress.take_refusal().unwrap().untold, 972);
    assert_eq!(egress.counts()[0], 1002);
}

#[test]
fn kinds_of_refusals_have_places_of_their_own() {
    let mut all: Vec<Denied> =
        Group::NAMES.iter().map(|&(_, group)| Denied::Group(group)).collect();
    all.extend([LOOPBACK, UNSPECIFIED, MULTICAST, BROADCAST, UNASSIGNED].into_iter().flatten());
    all.extend([
        Denied::Gateway,
        Denied::OtherResolver,
        Denied::NoPort,
        Denied::Rule(3),
        Denied::Name,
    ]);
    let mut places: Vec<usize> = all.iter().map(|denied| denied.kind()).collect();
    places.sort_unstable();
    assert_eq!(places, (0..Denied::KINDS).collect::<Vec<_>>());
}

fn any_ports() -> impl Strategy<Value = Ports> {
    let range = (1_u16.., 1_u16..).prop_map(|(a, b)| (a.min(b), a.max(b)));
    prop::collection::vec(range, 0..4).prop_map(|ranges| Ports::new(ranges).unwrap())
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let range = prop_oneof![
        (any::<u32>(), 0_u8..=32)
            .prop_map(|(bits, len)| Cidr::new(Ipv4Addr::from_bits(bits).into(), len)),
        (any::<u128>(), 0_u8..=128)
            .prop_map(|(bits, len)| Cidr::new(Ipv6Addr::from_bits(bits).into(), len)),
    ];
    let target = prop_oneof![
        Just(Target::Any),
        prop::sample::select(Group::NAMES.to_vec()).prop_map(|(_, group)| Target::Group(group)),
        range.prop_map(|range| Target::Range(range.unwrap())),
        "(\\*\\.)?[a-z][a-z0-9-]{0,9}(\\.[a-z]{1,5}){0,2}"
            .prop_map(|text| Target::Name(NamePattern::new(&text).unwrap())),
    ];
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let protocol = prop::option::of(prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]));
    (action, protocol, target, any_ports()).prop_map(|(action, protocol, target, ports)| Rule {
        action,
        protocol,
        target,
        ports,
    })
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    let known = CLASSES.iter().flat_map(|(_, addresses)| addresses.iter().map(|text| ip(text)));
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        prop::sample::select(known.collect::<Vec<_>>()),
    ]
}

proptest! {
    #[test]
    fn a_shown_rule_reads_back(rule in any_rule()) {
        match rule.to_string().parse::<Rule>() {
            Ok(read) => prop_assert_eq!(read, rule),
            Err(error) => {
                prop_assert_eq!(rule.action, Action::Allow);
                prop_assert!(matches!(error.reason, RuleFault::Loopback | RuleFault::Never));
            }
        }
    }

    #[test]
    fn any_text_is_a_rule_or_an_error_of_one_line(text in "(allow |deny )?(tcp:|name:)?[\\[\\]a-z0-9.:/*,\n\u{e9}-]{0,30}") {
        match text.parse::<Rule>() {
            Ok(rule) => prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule)),
            Err(error) => {
                prop_assert_eq!(error.to_string().lines().count(), 1);
                prop_assert!((1..=text.chars().count() + 1).contains(&error.column));
            }
        }
    }

    #[test]
    fn no_spelling_of_an_address_is_milder_than_it(address in any::<u32>(), rules in prop::collection::vec(any_rule(), 0..6)) {
        let v4 = Ipv4Addr::from_bits(address);
        let rules: Vec<Rule> = rules.into_iter().filter(|rule| rule.action == Action::Deny).collect();
        let Ok(policy) = Policy::new(rules, Fallback::Public) else { return Ok(()) };
        let plain = all_four(&policy, &scene(), v4.into());
        let [a, b, c, d] = v4.octets();
        let high = u16::from_be_bytes([a, b]);
        let low = u16::from_be_bytes([c, d]);
        for spelling in [
            v4.to_ipv6_mapped(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2606, 0, 0, 0, 0, 0x5efe, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
        ] {
            let spelled = all_four(&policy, &scene(), spelling.into());
            for (plain, spelled) in plain.iter().zip(spelled) {
                prop_assert!(plain.is_ok() || spelled.is_err(), "{} as {}", v4, spelling);
            }
        }
    }

    #[test]
    fn what_a_rule_covers_it_decides(first in any_rule(), second in any_rule(), address in any_address(), port in 1_u16..) {
        if first.covers(&second) {
            let mut pins = Pins::default();
            pins.pin(NOW, "a.b", address, Duration::ZERO);
            let alone = Policy { rules: vec![first.clone()], ..Policy::default() };
            let both = Policy { rules: vec![first, second], ..Policy::default() };
            let to = SocketAddr::new(address, port);
            for request in [
                Request::Flow { transport: Transport::Tcp, to, live: false },
                Request::Echo { to: address, live: false },
                Request::Answer(address),
                Request::Name("a.b"),
            ] {
                let judged = |policy: &Policy| policy.judge(&scene(), &pins, NOW, &request);
                // A rule of names makes other resolvers closed, which is no decision of its own.
                if judged(&both) != Err(Denied::OtherResolver) {
                    prop_assert_eq!(judged(&alone), judged(&both));
                }
            }
        }
    }
}
