//! linux guests.
