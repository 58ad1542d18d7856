//! Commands for a worker, and their acknowledgement.
//!
//! Invariant: every command that was accepted is answered, or its sender learns that the worker has ended: nobody waits for ever.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::worker::Active;

/// What a worker can be told.
#[derive(Debug)]
pub(super) enum Command {
    /// Serve a queue.
    Activate(Box<Active>),
    /// Let go of the queue; answered when I/O has been reaped.
    Reset(Reply),
    /// As reset, then flush if told so, answer and end.
    Stop { flush: bool, reply: Reply },
}

#[derive(Debug, Default)]
struct State {
    commands: VecDeque<Command>,
    closed: bool,
}

/// A worker's mailbox; the bell wakes the worker.
#[derive(Debug)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    bell: EventFd,
}

impl Mailbox {
    pub(super) fn new(bell: EventFd) -> Self {
        Self { state: Mutex::default(), bell }
    }

    /// False when the worker has ended.
    pub(super) fn post(&self, command: Command) -> bool {
        {
            let mut state = lock(&self.state);
            if state.closed {
                return false;
            }
            state.commands.push_back(command);
        }
        self.bell.write(1).is_ok()
    }

    pub(super) fn take(&self) -> Option<Command> {
        lock(&self.state).commands.pop_front()
    }

    /// The worker ends: whoever waits for an answer gets to know.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let left = std::mem::take(&mut state.commands);
        drop(state);
        drop(left);
    }
}

#[derive(Debug, Default)]
struct Cell {
    answer: Mutex<Option<io::Result<()>>>,
    there: Condvar,
}

/// The worker's end; dropping it unspent answers that the worker has ended.
#[derive(Debug)]
pub(super) struct Reply(Option<Arc<Cell>>);

impl Reply {
    pub(super) fn new() -> (Self, Answer) {
        let cell = Arc::new(Cell::default());
        (Self(Some(Arc::clone(&cell))), Answer(cell))
    }

    pub(super) fn send(mut self, result: io::Result<()>) {
        self.put(result);
    }

    fn put(&mut self, result: io::Result<()>) {
        if let Some(cell) = self.0.take() {
            *lock(&cell.answer) = Some(result);
            cell.there.notify_all();
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.put(Err(io::Error::other("the block worker has ended")));
    }
}

/// The asking end.
#[derive(Debug)]
pub(super) struct Answer(Arc<Cell>);

impl Answer {
    pub(super) fn wait(self) -> io::Result<()> {
        let mut answer = lock(&self.0.answer);
        loop {
            if let Some(result) = answer.take() {
                return result;
            }
            answer = self.0.there.wait(answer).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
