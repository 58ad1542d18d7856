//! From a table to a BPF program.
//!
//! Invariant: a call number is found by binary search. When a filter is put on, the kernel runs it for every call number there is, so the
//! depth of the search, and not the size of the table, is what a thread's start pays for. Pure.

use std::collections::BTreeMap;

use libc::sock_filter;

use super::filters::{Check, Entry};

const LOAD: u16 = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
const AND: u16 = code(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K);
const IF_EQUAL: u16 = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
const IF_AT_LEAST: u16 = code(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K);
const RETURN: u16 = code(libc::BPF_RET | libc::BPF_K);

const fn code(bits: u32) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "instruction codes have 16 bits")]
    let code = bits as u16;
    code
}

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
/// `AUDIT_ARCH_X86_64` of linux/audit.h.
const X86_64: u32 = 0xc000_003e;

/// A jump spans more instructions than it can, or a number is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a system call table is too large for a filter")]
pub(super) struct TooLarge;

/// An instruction that was assembled, counted from the program's end.
#[derive(Debug, Clone, Copy)]
struct Label(usize);

/// A program that is written from its last instruction to its first, so that where a jump goes is always known.
#[derive(Debug, Default)]
struct Assembler {
    reversed: Vec<sock_filter>,
}

impl Assembler {
    fn statement(&mut self, code: u16, k: u32) -> Label {
        self.reversed.push(sock_filter { code, jt: 0, jf: 0, k });
        Label(self.reversed.len() - 1)
    }

    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Result<Label, TooLarge> {
        let here = self.reversed.len();
        let distance = |to: Label| u8::try_from(here - 1 - to.0).map_err(|_| TooLarge);
        self.reversed.push(sock_filter { code, jt: distance(yes)?, jf: distance(no)?, k });
        Ok(Label(here))
    }

    fn check(&mut self, check: Check, yes: Label, no: Label) -> Result<Label, TooLarge> {
        let (argument, mask, value) = check.parts();
        self.branch(IF_EQUAL, value, yes, no)?;
        if mask != u32::MAX {
            self.statement(AND, mask);
        }
        // The low word of a little-endian argument.
        Ok(self.statement(LOAD, ARGUMENTS + 8 * u32::from(argument)))
    }

    fn conditions(
        &mut self,
        any_of: &[&[Check]],
        allow: Label,
        refuse: Label,
    ) -> Result<Label, TooLarge> {
        any_of.iter().rev().try_fold(refuse, |otherwise, checks| {
            checks.iter().rev().try_fold(allow, |next, check| self.check(*check, next, otherwise))
        })
    }

    /// Finds the number that was loaded among `calls`, which are sorted.
    fn search(&mut self, calls: &[(u32, Label)], refuse: Label) -> Result<Label, TooLarge> {
        match calls {
            [] => Ok(refuse),
            [(number, found)] => self.branch(IF_EQUAL, *number, *found, refuse),
            _ => {
                let (low, high) = calls.split_at(calls.len() / 2);
                let pivot = high.first().map_or(0, |(number, _)| *number);
                let high = self.search(high, refuse)?;
                let low = self.search(low, refuse)?;
                self.branch(IF_AT_LEAST, pivot, high, low)
            }
        }
    }
}

/// The program that allows what is listed and traps on anything else. Conditions of a call that is listed twice are joined, in order.
///
/// # Errors
/// [`TooLarge`].
pub(super) fn program<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
) -> Result<Vec<sock_filter>, TooLarge> {
    let mut table: BTreeMap<u32, Vec<&[Check]>> = BTreeMap::new();
    for entry in entries {
        let number = u32::try_from(entry.call).map_err(|_| TooLarge)?;
        table.entry(number).or_default().extend(entry.any_of);
    }
    let mut assembler = Assembler::default();
    let refuse = assembler.statement(RETURN, libc::SECCOMP_RET_TRAP);
    let allow = assembler.statement(RETURN, libc::SECCOMP_RET_ALLOW);
    let mut calls = Vec::with_capacity(table.len());
    for (number, any_of) in table {
        let target =
            if any_of.is_empty() { allow } else { assembler.conditions(&any_of, allow, refuse)? };
        calls.push((number, target));
    }
    assembler.search(&calls, refuse)?;
    let native = assembler.statement(LOAD, NUMBER);
    let foreign = assembler.statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS);
    assembler.branch(IF_EQUAL, X86_64, native, foreign)?;
    assembler.statement(LOAD, ARCHITECTURE);
    assembler.reversed.reverse();
    Ok(assembler.reversed)
}
