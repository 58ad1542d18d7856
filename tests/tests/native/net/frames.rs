//! Packets as a driver puts them into its queue: a vnet header and a frame.
//!
//! Checksums of TCP are left to the host, so that they do not depend on what a script fills in later.

pub(super) const GATEWAY_MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd];
pub(super) const GUEST_MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
pub(super) const GATEWAY: [u8; 4] = [192, 168, 127, 1];
pub(super) const GUEST: [u8; 4] = [192, 168, 127, 2];
pub(super) const HOST: [u8; 4] = [192, 168, 127, 254];

/// Where a frame lies in a packet, and what lies where in an IPv4 frame without options.
pub(super) const FRAME: u64 = 12;
pub(super) const IP: u64 = FRAME + 14;
pub(super) const TRANSPORT: u64 = IP + 20;
/// Payload of TCP without options, and of UDP and ICMP echo.
pub(super) const TCP_PAYLOAD: u64 = TRANSPORT + 20;
pub(super) const UDP_PAYLOAD: u64 = TRANSPORT + 8;

pub(super) const SYN: u8 = 2;
pub(super) const FIN: u8 = 1;
pub(super) const PSH: u8 = 8;
pub(super) const ACK: u8 = 16;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn packet(vnet: [u8; 12], to: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&vnet[..], &to, &GUEST_MAC, &kind.to_be_bytes(), payload].concat()
}

fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| match *word {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        _ => u32::from(word[0]) << 8,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

fn ipv4(from: [u8; 4], to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap();
    let [high, low] = len.to_be_bytes();
    let mut header = vec![0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    header.extend(from);
    header.extend(to);
    let checksum = !sum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    [&header, payload].concat()
}

fn to_gateway(to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    packet([0; 12], GATEWAY_MAC, 0x0800, &ipv4(GUEST, to, protocol, payload))
}

/// Who has the gateway's address?
pub(super) fn arp() -> Vec<u8> {
    let ask = [0, 1, 8, 0, 6, 4, 0, 1_u8];
    let arp = [&ask[..], &GUEST_MAC, &GUEST, &[0; 6], &GATEWAY].concat();
    packet([0; 12], [0xff; 6], 0x0806, &arp)
}

/// A DHCP message with `options`, from a guest that has no address.
pub(super) fn dhcp(options: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(GUEST_MAC);
    message.resize(236, 0);
    message.extend([0x63, 0x82, 0x53, 0x63]);
    message.extend(options);
    message.push(255);
    message.resize(300, 0);
    let udp = udp_segment(68, 67, &message);
    packet([0; 12], [0xff; 6], 0x0800, &ipv4([0; 4], [255; 4], UDP, &udp))
}

/// An echo request.
pub(super) fn echo(to: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut icmp = [&[8, 0, 0, 0, 0, 7, 0, 1][..], data].concat();
    let checksum = !sum(&icmp);
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    to_gateway(to, ICMP, &icmp)
}

fn udp_segment(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + data.len()).unwrap();
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &len.to_be_bytes(), &[0, 0], data].concat()
}

/// A datagram without a checksum.
pub(super) fn udp(to: [u8; 4], ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    to_gateway(to, UDP, &udp_segment(ports.0, ports.1, data))
}

/// A segment with acknowledgment number 0.
pub(super) fn tcp(to: [u8; 4], ports: (u16, u16), seq: u32, flags: u8, data: &[u8]) -> Vec<u8> {
    let (from_port, to_port) = (ports.0.to_be_bytes(), ports.1.to_be_bytes());
    let len = u16::try_from(20 + data.len()).unwrap();
    let pseudo = [&GUEST[..], &to, &[0, TCP], &len.to_be_bytes()].concat();
    let header = [
        &from_port[..],
        &to_port,
        &seq.to_be_bytes(),
        &[0; 4],
        &[0x50, flags, 0xff, 0xff],
        &sum(&pseudo).to_be_bytes(),
        &[0, 0],
    ]
    .concat();
    let payload = ipv4(GUEST, to, TCP, &[&header, data].concat());
    packet([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], GATEWAY_MAC, 0x0800, &payload)
}
