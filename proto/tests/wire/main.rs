//! The wire format of the messages, which other programs speak as well.

#[cfg(test)]
mod golden;
