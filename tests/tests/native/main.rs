//! native guests.
