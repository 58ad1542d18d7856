//! The guest that all scripts run in: a loop in assembly over operations of 64-bit words, which lie behind it in memory.
//!
//! Invariant: plain integer code, port I/O and memory accesses only, so that every KVM runs it; interrupts are off except in the operation
//! that awaits one, whose handler goes on with the script and never returns from the interrupt.

#![expect(unsafe_code, reason = "the guest's code is assembled into this program's data")]

use std::arch::global_asm;

use super::LOAD_ADDR;

/// Where the script lies, guest-physical.
pub(super) const SCRIPT_ADDR: u64 = LOAD_ADDR + 0x1000;

/// The exit code of a guest whose script met what it did not expect.
pub const FAILED: u8 = 99;

/// Operations; the discriminant is the index in the table below. Operands are words unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Op {
    /// code
    Exit,
    /// address, value
    Store8,
    /// address, value
    Store16,
    /// address, value
    Store32,
    /// address, value
    Store64,
    /// address
    Load8,
    /// address
    Load16,
    /// address
    Load32,
    /// address
    Load64,
    /// mask, value: fails when the last value loaded, masked, is another one
    Expect,
    /// mask, value: fails when it is this one
    ExpectNot,
    /// prints the last value loaded, 16 hexadecimal digits and a newline
    Print,
    /// port
    In8,
    /// port, value
    Out8,
    /// port, value
    Out16,
    /// port, value
    Out32,
    /// address, mask, value, tries
    Wait8,
    /// address, mask, value, tries
    Wait16,
    /// address, mask, value, tries
    Wait32,
    /// address, value, tries: until the 16-bit value there is this one or up to 32767 ahead of it
    WaitPast16,
    /// address, length, that many bytes filled up to a word
    Copy,
    /// address, length, byte
    Fill,
    /// address, length, byte: fails when one of the bytes is another one
    Filled,
    /// address, length, that many bytes filled up to a word: fails when memory holds others
    Same,
    /// address of a counter, address of an operation: goes there while the counter, counted down, is not 0
    Again,
    /// length, that many bytes filled up to a word: prints them
    Say,
    /// byte: prints what is typed until this byte is
    Echo,
    /// sleeps with interrupts off
    Halt,
    /// computes for ever
    Spin,
    /// breaks the interrupt table, and faults
    TripleFault,
    /// address of code that returns
    Call,
    /// address of an interrupt table's descriptor: sleeps with interrupts on until the handler is entered
    AwaitInterrupt,
}

global_asm!(
    ".pushsection .rodata.openshell_bare, \"a\", @progbits",
    ".balign 16",
    "openshell_bare_start:",
    "cli",
    "cld",
    "mov r13, rsp",
    "mov esi, {script}",
    ".Lbare_next:",
    "mov r15, rsi",
    "lodsq",
    "lea rdi, [rip + .Lbare_table]",
    "movsxd rax, dword ptr [rdi + rax * 4]",
    "add rax, rdi",
    "jmp rax",
    ".balign 4",
    ".Lbare_table:",
    ".long .Lbare_exit - .Lbare_table",
    ".long .Lbare_store8 - .Lbare_table",
    ".long .Lbare_store16 - .Lbare_table",
    ".long .Lbare_store32 - .Lbare_table",
    ".long .Lbare_store64 - .Lbare_table",
    ".long .Lbare_load8 - .Lbare_table",
    ".long .Lbare_load16 - .Lbare_table",
    ".long .Lbare_load32 - .Lbare_table",
    ".long .Lbare_load64 - .Lbare_table",
    ".long .Lbare_expect - .Lbare_table",
    ".long .Lbare_expect_not - .Lbare_table",
    ".long .Lbare_print - .Lbare_table",
    ".long .Lbare_in8 - .Lbare_table",
    ".long .Lbare_out8 - .Lbare_table",
    ".long .Lbare_out16 - .Lbare_table",
    ".long .Lbare_out32 - .Lbare_table",
    ".long .Lbare_wait8 - .Lbare_table",
    ".long .Lbare_wait16 - .Lbare_table",
    ".long .Lbare_wait32 - .Lbare_table",
    ".long .Lbare_wait_past16 - .Lbare_table",
    ".long .Lbare_copy - .Lbare_table",
    ".long .Lbare_fill - .Lbare_table",
    ".long .Lbare_filled - .Lbare_table",
    ".long .Lbare_same - .Lbare_table",
    ".long .Lbare_again - .Lbare_table",
    ".long .Lbare_say - .Lbare_table",
    ".long .Lbare_echo - .Lbare_table",
    ".long .Lbare_halt - .Lbare_table",
    ".long .Lbare_spin - .Lbare_table",
    ".long .Lbare_triple_fault - .Lbare_table",
    ".long .Lbare_call - .Lbare_table",
    ".long .Lbare_await - .Lbare_table",
    // Operations.
    ".Lbare_exit:",
    "lodsq",
    ".Lbare_exit_al:",
    "mov edx, {exit_port}",
    "out dx, al",
    ".Lbare_halt:",
    "hlt",
    "jmp .Lbare_halt",
    ".Lbare_store8:",
    "call .Lbare_address_value",
    "mov byte ptr [rdi], al",
    "jmp .Lbare_next",
    ".Lbare_store16:",
    "call .Lbare_address_value",
    "mov word ptr [rdi], ax",
    "jmp .Lbare_next",
    ".Lbare_store32:",
    "call .Lbare_address_value",
    "mov dword ptr [rdi], eax",
    "jmp .Lbare_next",
    ".Lbare_store64:",
    "call .Lbare_address_value",
    "mov qword ptr [rdi], rax",
    "jmp .Lbare_next",
    ".Lbare_load8:",
    "lodsq",
    "movzx ebx, byte ptr [rax]",
    "jmp .Lbare_next",
    ".Lbare_load16:",
    "lodsq",
    "movzx ebx, word ptr [rax]",
    "jmp .Lbare_next",
    ".Lbare_load32:",
    "lodsq",
    "mov ebx, dword ptr [rax]",
    "jmp .Lbare_next",
    ".Lbare_load64:",
    "lodsq",
    "mov rbx, qword ptr [rax]",
    "jmp .Lbare_next",
    ".Lbare_expect:",
    "call .Lbare_masked",
    "jne .Lbare_fail",
    "jmp .Lbare_next",
    ".Lbare_expect_not:",
    "call .Lbare_masked",
    "je .Lbare_fail",
    "jmp .Lbare_next",
    ".Lbare_print:",
    "call .Lbare_hex",
    "mov al, 10",
    "call .Lbare_put",
    "jmp .Lbare_next",
    ".Lbare_in8:",
    "lodsq",
    "mov edx, eax",
    "in al, dx",
    "movzx ebx, al",
    "jmp .Lbare_next",
    ".Lbare_out8:",
    "call .Lbare_address_value",
    "mov edx, edi",
    "out dx, al",
    "jmp .Lbare_next",
    ".Lbare_out16:",
    "call .Lbare_address_value",
    "mov edx, edi",
    "out dx, ax",
    "jmp .Lbare_next",
    ".Lbare_out32:",
    "call .Lbare_address_value",
    "mov edx, edi",
    "out dx, eax",
    "jmp .Lbare_next",
    ".Lbare_wait8:",
    "call .Lbare_wait_operands",
    "1:",
    "movzx ebx, byte ptr [rdi]",
    "call .Lbare_seen",
    "je .Lbare_next",
    "dec rcx",
    "jnz 1b",
    "jmp .Lbare_fail",
    ".Lbare_wait16:",
    "call .Lbare_wait_operands",
    "1:",
    "movzx ebx, word ptr [rdi]",
    "call .Lbare_seen",
    "je .Lbare_next",
    "dec rcx",
    "jnz 1b",
    "jmp .Lbare_fail",
    ".Lbare_wait32:",
    "call .Lbare_wait_operands",
    "1:",
    "mov ebx, dword ptr [rdi]",
    "call .Lbare_seen",
    "je .Lbare_next",
    "dec rcx",
    "jnz 1b",
    "jmp .Lbare_fail",
    ".Lbare_wait_past16:",
    "call .Lbare_address_value",
    "mov r8, rax",
    "lodsq",
    "mov rcx, rax",
    "1:",
    "movzx ebx, word ptr [rdi]",
    "mov eax, ebx",
    "sub ax, r8w",
    "jns .Lbare_next",
    "dec rcx",
    "jnz 1b",
    "jmp .Lbare_fail",
    ".Lbare_copy:",
    "call .Lbare_address_length",
    "rep movsb",
    "jmp .Lbare_align",
    ".Lbare_fill:",
    "call .Lbare_address_length",
    "lodsq",
    "rep stosb",
    "jmp .Lbare_next",
    ".Lbare_filled:",
    "call .Lbare_address_length",
    "lodsq",
    "cmp eax, eax",
    "repe scasb",
    "mov rbx, rdi",
    "jne .Lbare_fail",
    "jmp .Lbare_next",
    ".Lbare_same:",
    "call .Lbare_address_length",
    "cmp eax, eax",
    "repe cmpsb",
    "mov rbx, rdi",
    "jne .Lbare_fail",
    ".Lbare_align:",
    "add rsi, 7",
    "and rsi, -8",
    "jmp .Lbare_next",
    ".Lbare_again:",
    "call .Lbare_address_value",
    "dec qword ptr [rdi]",
    "jz .Lbare_next",
    "mov rsi, rax",
    "jmp .Lbare_next",
    ".Lbare_say:",
    "lodsq",
    "mov rcx, rax",
    "1:",
    "test rcx, rcx",
    "jz .Lbare_align",
    "lodsb",
    "call .Lbare_put",
    "dec rcx",
    "jmp 1b",
    ".Lbare_echo:",
    "lodsq",
    "mov r8d, eax",
    "1:",
    "mov edx, {line_status_port}",
    "in al, dx",
    "test al, 1",
    "jz 1b",
    "mov edx, {serial_port}",
    "in al, dx",
    "cmp al, r8b",
    "je .Lbare_next",
    "call .Lbare_put",
    "jmp 1b",
    ".Lbare_spin:",
    "jmp .Lbare_spin",
    ".Lbare_triple_fault:",
    "push 0",
    "push 0",
    "lidt [rsp]",
    "ud2",
    ".Lbare_call:",
    "lodsq",
    "call rax",
    "jmp .Lbare_next",
    ".Lbare_await:",
    "lodsq",
    "lidt [rax]",
    "sti",
    "1:",
    "hlt",
    "jmp 1b",
    "openshell_bare_handler:",
    "mov rsp, r13",
    "jmp .Lbare_next",
    // Parts of operations.
    ".Lbare_address_length:",
    "call .Lbare_address_value",
    "mov rcx, rax",
    "ret",
    ".Lbare_address_value:",
    "lodsq",
    "mov rdi, rax",
    "lodsq",
    "ret",
    ".Lbare_masked:",
    "lodsq",
    "mov rcx, rbx",
    "and rcx, rax",
    "lodsq",
    "cmp rcx, rax",
    "ret",
    ".Lbare_wait_operands:",
    "call .Lbare_address_value",
    "mov r8, rax",
    "lodsq",
    "mov r9, rax",
    "lodsq",
    "mov rcx, rax",
    "ret",
    ".Lbare_seen:",
    "mov eax, ebx",
    "and eax, r8d",
    "cmp eax, r9d",
    "ret",
    // Prints rbx; keeps rsi.
    ".Lbare_hex:",
    "mov r11d, 16",
    "1:",
    "rol rbx, 4",
    "mov eax, ebx",
    "and eax, 15",
    "add eax, 48",
    "cmp eax, 58",
    "jb 2f",
    "add eax, 39",
    "2:",
    "call .Lbare_put",
    "dec r11d",
    "jnz 1b",
    "ret",
    // Prints al; keeps all but eax, edx and r10.
    ".Lbare_put:",
    "mov r10d, eax",
    "mov edx, {line_status_port}",
    "1:",
    "in al, dx",
    "test al, 0x20",
    "jz 1b",
    "mov edx, {serial_port}",
    "mov eax, r10d",
    "out dx, al",
    "ret",
    // Prints "FAIL <address of the operation> <value>".
    ".Lbare_fail:",
    "lea rsi, [rip + .Lbare_failed]",
    "mov ecx, 6",
    "1:",
    "lodsb",
    "call .Lbare_put",
    "dec ecx",
    "jnz 1b",
    "xchg rbx, r15",
    "call .Lbare_hex",
    "mov al, 32",
    "call .Lbare_put",
    "mov rbx, r15",
    "call .Lbare_hex",
    "mov al, 10",
    "call .Lbare_put",
    "mov al, {failed}",
    "jmp .Lbare_exit_al",
    ".Lbare_failed:",
    ".ascii \"\\nFAIL \"",
    "openshell_bare_end:",
    ".popsection",
    script = const SCRIPT_ADDR,
    exit_port = const super::EXIT_PORT,
    line_status_port = const super::SERIAL_PORT + 5,
    serial_port = const super::SERIAL_PORT,
    failed = const FAILED,
);

unsafe extern "C" {
    static openshell_bare_start: u8;
    static openshell_bare_end: u8;
    static openshell_bare_handler: u8;
}

/// Where an interrupt that the script awaits is to be handled, guest-physical.
pub(super) fn handler_addr() -> u64 {
    let start = &raw const openshell_bare_start;
    let handler = &raw const openshell_bare_handler;
    LOAD_ADDR + (handler.addr() - start.addr()) as u64
}

/// The interpreter's code, filled up to the script's place.
pub(super) fn code() -> Vec<u8> {
    let start = &raw const openshell_bare_start;
    let end = &raw const openshell_bare_end;
    let len = end.addr() - start.addr();
    // SAFETY: both symbols bound the bytes that the assembler put into this program's read-only data, in this order.
    let bytes = unsafe { std::slice::from_raw_parts(start, len) };
    let room = usize::try_from(SCRIPT_ADDR - LOAD_ADDR).expect("one page");
    assert!(len <= room, "the interpreter has outgrown its page");
    let mut code = bytes.to_vec();
    code.resize(room, 0);
    code
}
