//! Names: the stack's resolver at the gateway's address.

/// Where a fixed name leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixed {
    /// The guest's name for the host's loopback.
    Host,
    /// The stack itself.
    Gateway,
}

/// The names that mean the host and the stack, whatever the host's resolvers say.
pub const FIXED_NAMES: [(&str, Fixed); 4] = [
    ("host.openshell.internal", Fixed::Host),
    ("host.containers.internal", Fixed::Host),
    ("host.docker.internal", Fixed::Host),
    ("gateway.containers.internal", Fixed::Gateway),
];
