use super::*;

#[test]
fn ports_are_published_on_loopback_unless_said_otherwise() {
    for (text, want) in [
        ("8080:80", "127.0.0.1:8080:80/tcp"),
        ("8080:80/tcp", "127.0.0.1:8080:80/tcp"),
        ("53:53/udp", "127.0.0.1:53:53/udp"),
        ("0.0.0.0:1:65535", "0.0.0.0:1:65535/tcp"),
        ("[::1]:8080:80/udp", "[::1]:8080:80/udp"),
    ] {
        let spec = PublishSpec::parse(text).unwrap();
        assert_eq!(spec.to_string(), want);
        assert_eq!(PublishSpec::parse(want).unwrap(), spec);
    }
}

#[test]
fn values_that_are_not_right_are_refused() {
    const PORT: &str = "a port is a number from 1 to 65535";
    const ADDRESS: &str = "not an IPv4 address, or an IPv6 address without brackets";
    for (text, want) in [
        ("80", "two ports are needed: HOST:GUEST"),
        ("", "two ports are needed: HOST:GUEST"),
        ("0:80", PORT),
        ("80:", PORT),
        ("80:+1", PORT),
        ("80:65536", PORT),
        ("::1:80:80", ADDRESS),
        ("localhost:80:80", ADDRESS),
        ("[127.0.0.1]:80:80", "not an IPv6 address in brackets"),
        ("80:80/sctp", "only /tcp or /udp may follow the ports"),
        ("80:80/udp/tcp", "only /tcp or /udp may follow the ports"),
    ] {
        let error = PublishSpec::parse(text).unwrap_err().to_string();
        assert_eq!(error, format!("--publish {text}: {want}"));
    }
    for text in ["", "5a:94", "5a:94:ef:e4:0c:eeg", "5a:94:ef:e4:0c:+e", "1:2:3:4:5:6:7"] {
        assert!(MacAddress::parse(text).unwrap_err().to_string().contains("six pairs"));
    }
    for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
        assert!(MacAddress::parse(text).unwrap_err().to_string().ends_with("one station"));
    }
    for text in ["575", "65521", "x", "-1", "1e3"] {
        assert!(Mtu::parse(text).is_err(), "{text}");
    }
    for text in ["", "0.0.0.0", "::", "1.2.3.4:0", "one.one.one.one"] {
        assert!(NetSpec::parse_dns(text).is_err(), "{text}");
    }
    assert!(NetSpec::parse_bw("100").is_err() && NetSpec::parse_bw("0M").is_err());
    assert!(NetSpec::parse_pps("0").is_err() && NetSpec::parse_pps("many").is_err());
    assert!(parse_mode("tap".as_ref()).is_err());
    for text in ["", "csum,", "tso", "CSUM"] {
        assert!(CardFeature::parse_list(text).is_err(), "{text}");
    }
    let names = CardFeature::ALL.map(|(name, _)| name).join(",");
    let all = CardFeature::ALL.map(|(_, feature)| feature);
    assert_eq!(CardFeature::parse_list(&names).unwrap(), all);
    for text in ["255", "128", "2048", "x"] {
        assert!(RingSize::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_resolver_has_port_53_unless_said_otherwise() {
    for (text, want) in [
        ("192.0.2.1", "192.0.2.1:53"),
        ("192.0.2.1:5353", "192.0.2.1:5353"),
        ("2001:db8::1", "[2001:db8::1]:53"),
        ("[2001:db8::1]:54", "[2001:db8::1]:54"),
    ] {
        assert_eq!(NetSpec::parse_dns(text).unwrap().to_string(), want);
    }
}

#[derive(Deserialize)]
struct File {
    net: NetSpec,
}

fn file(text: &str) -> Result<NetSpec, String> {
    toml::from_str::<File>(text).map(|file| file.net).map_err(|error| error.message().to_owned())
}

#[test]
fn a_file_says_all_that_flags_say() {
    let text = r#"
[net]
mode = "user"
publish = ["8080:80", "53:53/udp"]
allow = ["private"]
deny = ["192.0.2.0/24"]
policy = "policy.toml"
dns = ["192.0.2.1"]
refuse = "icmp"
resolv_conf = "resolv.conf"
ipv6 = true
mtu = 9000
mac = "5a:94:ef:e4:0c:ee"
log = "net.log"
pcap = "out.pcap"
bw = "1M"
pps = 1000
limits = ["tcp-flows=100"]
without = ["mrg_rxbuf", "csum"]
ring = 512
"#;
    let want = NetSpec {
        mode: Some(NetMode::User),
        publish: ["8080:80", "53:53/udp"]
            .iter()
            .map(|text| PublishSpec::parse(text).unwrap())
            .collect(),
        allow: vec!["private".into()],
        deny: vec!["192.0.2.0/24".into()],
        policy: Some("policy.toml".into()),
        dns: vec![NetSpec::parse_dns("192.0.2.1").unwrap()],
        resolv_conf: Some("resolv.conf".into()),
        refuse: Some(RefuseBy::Icmp),
        ipv6: true,
        mtu: Some(Mtu::parse("9000").unwrap()),
        mac: Some(MacAddress::GUEST),
        log: Some("net.log".into()),
        pcap: Some("out.pcap".into()),
        bw: Some(Bandwidth(1 << 20)),
        pps: Some(1000),
        limits: vec![NetLimit::parse("tcp-flows=100").unwrap()],
        without: vec![CardFeature::MrgRxbuf, CardFeature::Csum],
        ring_size: Some(RingSize::parse("512").unwrap()),
    };
    assert_eq!(file(text).unwrap(), want);
    assert_eq!(NetSpec::default().or(want.clone()), want);
    assert_eq!(file("net = \"none\"").unwrap().mode, Some(NetMode::None));
    let flags =
        NetSpec { allow: vec!["host".into()], mtu: Some(Mtu::ETHERNET), ..NetSpec::default() };
    let both = flags.or(want.clone());
    assert_eq!((both.allow, both.mtu), (vec!["host".into()], Some(Mtu::ETHERNET)));
    assert_eq!(both.publish, want.publish);
}

#[test]
fn a_file_that_is_not_right_is_refused() {
    for (text, want) in [
        ("net = \"tap\"", "unknown variant `tap`, expected `user` or `none`"),
        ("net = 3", "invalid type: integer `3`, expected \"user\", \"none\" or a table"),
        ("[net]\nlimits = [\"flows\"]", "flows: a limit is NAME=VALUE"),
        ("[net]\nrefuse = \"no\"", "no: none of reset, icmp, drop"),
        ("[net]\npublish = [\"80\"]", "80: two ports are needed: HOST:GUEST"),
        ("[net]\nmtu = 10", "an MTU is a number from 576 to 65520"),
        ("[net]\nring = 100", "a ring has 256, 512 or 1024 descriptors"),
        ("[net]\npps = 0", "pps: a rate of 0 would stop it for good"),
    ] {
        assert_eq!(file(text).unwrap_err(), want);
    }
    assert!(file("[net]\nports = []").unwrap_err().starts_with("unknown field `ports`"));
}
