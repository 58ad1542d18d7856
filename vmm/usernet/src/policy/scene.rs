//! Which addresses mean the host and the stack itself.
//!
//! Invariant: addresses are kept in their canonical form, a mapped IPv4 address as IPv4. Pure; the caller follows the host's
//! interfaces and replaces the scene when they change.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::cidr::Cidr;

/// The addresses of the guest's network, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// The network.
    pub network: Cidr,
    /// The stack itself: DNS, DHCP and echo.
    pub gateway: IpAddr,
    /// The guest.
    pub guest: IpAddr,
    /// What the guest calls the host's loopback by.
    pub host: IpAddr,
}

impl Default for Places {
    /// 192.168.127.0/24: .1, .2 and .254.
    fn default() -> Self {
        let at = |last| IpAddr::V4(Ipv4Addr::new(192, 168, 127, last));
        Self {
            network: Cidr::new(at(0), 24).expect("24 is at most 32"),
            gateway: at(1),
            guest: at(2),
            host: at(254),
        }
    }
}

impl Places {
    /// The guest's network of IPv6, where it has one: fd6f:7368:656c:6c00::/64 with ::1, ::2 and ::fe. The guest makes further
    /// addresses there itself.
    #[must_use]
    pub fn unique_local() -> Self {
        let at = |last| IpAddr::V6(Ipv6Addr::new(0xfd6f, 0x7368, 0x656c, 0x6c00, 0, 0, 0, last));
        Self {
            network: Cidr::new(at(0), 64).expect("64 is at most 128"),
            gateway: at(1),
            guest: at(2),
            host: at(0xfe),
        }
    }
}

/// Which addresses are whose.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scene {
    v4: Places,
    v6: Option<Places>,
    /// In order.
    owned: Arc<[IpAddr]>,
}

impl Scene {
    /// The guest's network, and every address that an interface of the host has.
    #[must_use]
    pub fn new(v4: Places, v6: Option<Places>, owned: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut scene = Self { v4, v6, owned: Arc::new([]) };
        scene.replace_owned(owned);
        scene
    }

    /// The addresses of the host have changed.
    pub fn replace_owned(&mut self, owned: impl IntoIterator<Item = IpAddr>) {
        let mut owned: Vec<IpAddr> = owned.into_iter().map(|ip| ip.to_canonical()).collect();
        owned.sort_unstable();
        owned.dedup();
        self.owned = owned.into();
    }

    /// Whether `address` reaches the host.
    #[must_use]
    pub fn is_host(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.is_host_alias(address) || self.owned.binary_search(&address).is_ok()
    }

    /// Whether `address` is the guest's name for the host's loopback.
    #[must_use]
    pub fn is_host_alias(&self, address: IpAddr) -> bool {
        self.places().any(|places| places.host == address.to_canonical())
    }

    /// Whether `address` is that of the stack.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.places().any(|places| places.gateway == address.to_canonical())
    }

    /// Whether `address` belongs to the guest's network.
    #[must_use]
    pub fn in_guest_network(&self, address: IpAddr) -> bool {
        self.places().any(|places| places.network.contains(address))
    }

    /// The guest's network of IPv4.
    #[must_use]
    pub const fn v4(&self) -> &Places {
        &self.v4
    }

    /// The guest's network of IPv6, where it has one.
    #[must_use]
    pub const fn v6(&self) -> Option<&Places> {
        self.v6.as_ref()
    }

    fn places(&self) -> impl Iterator<Item = &Places> {
        std::iter::once(&self.v4).chain(&self.v6)
    }
}
