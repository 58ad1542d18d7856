//! The network card, and the stack behind it, as a guest without an operating system finds them.

mod card;
mod frames;
mod stack;
