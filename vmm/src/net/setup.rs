//! From a plan to what an engine is made of.

use openshell_usernet::Config;
use openshell_usernet::config::{Forward, ForwardProtocol};
use openshell_usernet::policy::Places;
use openshell_usernet::wire::{Mac, Macs};

use crate::config::net::{MacAddress, Mtu, Transport};
use crate::config::net_plan::{HostPlan, Resolvers};
use crate::sys::limit;

use super::engine::Setup;
use super::port::Limits;
use super::refusals::RefusalLog;
use super::resolvers;

/// Descriptors that the rest of the process may need.
const OTHER_DESCRIPTORS: u64 = 256;
/// Sockets of one stack.
const MAX_SOCKETS: u64 = 16 << 10;

impl Setup {
    /// Of a plan, for a guest with this address on a link with this MTU. Raises the process's limit of descriptors. Where the plan
    /// names a file of resolvers, whoever reads it tells them.
    #[must_use]
    pub fn new(plan: HostPlan, mac: MacAddress, mtu: Mtu) -> Self {
        let defaults = Config::default();
        let forwards = plan.ports.iter().map(|port| Forward {
            protocol: match port.spec.transport {
                Transport::Tcp => ForwardProtocol::Tcp,
                Transport::Udp => ForwardProtocol::Udp,
            },
            guest_port: port.spec.guest_port,
        });
        let descriptors = limit::raise_descriptors().unwrap_or(OTHER_DESCRIPTORS * 2);
        let sockets = MAX_SOCKETS.min(descriptors.saturating_sub(OTHER_DESCRIPTORS));
        let (resolvers, search) = match plan.resolvers {
            Resolvers::These(resolvers) => (resolvers, Vec::new()),
            Resolvers::Of(path) => (Vec::new(), resolvers::search(&path)),
        };
        Self {
            config: Config {
                macs: Macs { guest: Mac(mac.0), ..defaults.macs },
                v6: plan.ipv6.then(Places::unique_local),
                policy: plan.policy,
                bounds: plan.bounds,
                search,
                mtu: mtu.bytes(),
                forwards: forwards.collect(),
                ..defaults
            },
            ports: plan.ports,
            sockets: usize::try_from(sockets).unwrap_or(usize::MAX),
            log: plan.log.map(RefusalLog::new),
            capture: plan.capture,
            limits: Limits::new(plan.bytes_per_second, plan.packets_per_second),
            resolvers,
        }
    }
}
