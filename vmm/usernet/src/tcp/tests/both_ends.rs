//! Both ends at random: see the header.
