//! From what was asked of the network to a card, and the stack behind it.

use std::io;
use std::sync::{Arc, OnceLock};

use crate::config::net::CardFeature;
use crate::config::plan::NetPlan;
use crate::jail::Jail;
use crate::net::PacketLink as _;
use crate::net::engine::{Host, Setup};
use crate::net::follow::{FileWatch, Followed};
use crate::virtio::net::{Card, Net, Port, Serve, features};
use crate::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC};

fn bit(feature: CardFeature) -> u64 {
    match feature {
        CardFeature::Csum => features::CSUM,
        CardFeature::GuestCsum => features::GUEST_CSUM,
        CardFeature::HostTso4 => features::HOST_TSO4,
        CardFeature::HostTso6 => features::HOST_TSO6,
        CardFeature::HostUso => features::HOST_USO,
        CardFeature::GuestTso4 => features::GUEST_TSO4,
        CardFeature::GuestTso6 => features::GUEST_TSO6,
        CardFeature::GuestUso4 => features::GUEST_USO4,
        CardFeature::GuestUso6 => features::GUEST_USO6,
        CardFeature::MrgRxbuf => features::MRG_RXBUF,
        CardFeature::CtrlVq => features::CTRL_VQ,
        CardFeature::CtrlGuestOffloads => features::CTRL_GUEST_OFFLOADS,
        CardFeature::Mtu => features::MTU,
        CardFeature::Status => features::STATUS,
        CardFeature::EventIdx => F_EVENT_IDX,
        CardFeature::IndirectDesc => F_INDIRECT_DESC,
    }
}

/// What happened on a machine's network: names and numbers, once its thread has ended.
pub(super) type Tally = Arc<OnceLock<Vec<(String, u64)>>>;

/// The card, and what there will be to say of it. Its thread sleeps until a driver is ready; the stack, and the thread that looks at
/// the host's resolvers, are made then.
///
/// # Errors
/// What the host said.
pub(super) fn device(plan: NetPlan, jail: Jail) -> io::Result<(Net, Tally)> {
    let card = card(&plan);
    let tally = Tally::default();
    let told = Arc::clone(&tally);
    let prepare = Box::new(move || serve(plan, card.ring_size, jail, told));
    Ok((Net::new(card, prepare, jail)?, tally))
}

/// Makes the stack's host side. A host that has no descriptor or thread left for it has no network: the card says so.
fn serve(plan: NetPlan, ring_size: u16, jail: Jail, tally: Tally) -> Serve {
    let followed = Followed::of(&plan.host);
    let mut setup = Setup::new(plan.host, plan.mac, plan.mtu);
    // A guest whose whole ring is held back could not even acknowledge.
    setup.config.bounds.parked = usize::from(ring_size / 2);
    let Ok((mut host, commands)) = Host::new(setup) else { return Box::new(|_| ()) };
    // Without the thread, what the files say now stays.
    let watch = FileWatch::spawn(jail, followed.clone(), commands.clone());
    if watch.is_err() {
        followed.tell(&commands);
    }
    Box::new(move |port: &mut Port| {
        // Both end with the thread.
        let _kept = (&commands, &watch);
        // As above.
        host.serve(port).ok();
        if port.has_ended() {
            let counters = port.counters();
            let card = counters.named().filter(|&(_, count)| count > 0);
            let card = card.map(|(name, count)| (format!("card_{name}"), count));
            tally.set(card.chain(host.report().counts()).collect()).ok();
        }
    })
}

/// The card that the guest sees.
fn card(plan: &NetPlan) -> Card {
    let left_out = plan.without.iter().fold(0, |bits, &feature| bits | bit(feature));
    Card {
        mac: plan.mac.0,
        mtu: plan.mtu.bytes(),
        features: features::ALL & !left_out,
        ring_size: plan.ring_size.descriptors(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_but_the_address_can_be_left_out() {
        let bits = CardFeature::ALL.map(|(_, feature)| bit(feature));
        let all = bits.iter().fold(0, |all, bit| all | bit);
        assert_eq!(all | features::MAC, features::ALL);
        assert!(bits.iter().all(|bit| bit.count_ones() == 1));
    }
}
