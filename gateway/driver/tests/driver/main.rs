//! The driver over the wire: real tonic, a real Unix socket, machines that are stubs or a program that plays one.

#![cfg(test)]

mod fixture;
mod lifecycle;
mod managed;
mod processes;
mod requests;
mod scale;
mod watching;
