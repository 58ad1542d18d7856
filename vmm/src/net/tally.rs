//! What happened on a network, as names and numbers for whoever reads the end of a run.
//!
//! Invariant: names never change meaning; what is zero is left out. Pure.

use openshell_usernet::policy::Denied;

use super::engine::Report;

impl Report {
    /// All counts that are not zero, in a fixed order.
    #[must_use]
    pub fn counts(&self) -> Vec<(String, u64)> {
        let sockets = &self.sockets;
        let others = [
            ("open_sockets", self.open_sockets as u64),
            ("sockets_too_many", sockets.too_many),
            ("sockets_no_port", sockets.no_port),
            ("datagrams_unsent", sockets.datagrams_unsent),
            ("datagrams_unread", sockets.datagrams_unread),
            ("policy_faults", self.policy_faults),
        ];
        let stack = self.stack.named().chain(others);
        let stack = stack.map(|(name, count)| (name.to_owned(), count));
        let names = self.names.named().map(|(name, count)| (format!("dns_{name}"), count));
        let denied = Denied::NAMES.iter().zip(self.refusals);
        let denied = denied.map(|(name, count)| (format!("denied_{name}"), count));
        stack.chain(names).chain(denied).filter(|&(_, count)| count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_zero_is_left_out() {
        assert!(Report::default().counts().is_empty());
        let mut report = Report { policy_faults: 3, ..Report::default() };
        report.stack.spoofed = 2;
        report.refusals[0] = 1;
        let counts = report.counts();
        let (names, numbers): (Vec<_>, Vec<_>) = counts.into_iter().unzip();
        assert_eq!(numbers, [2, 3, 1]);
        assert_eq!(names[..2], ["spoofed", "policy_faults"]);
        assert!(names[2].starts_with("denied_"), "{names:?}");
    }
}
