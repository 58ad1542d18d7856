//! One session channel: what the client asks for, then one process until its end.
//!
//! Invariant: a channel ends with an exit status, or the process of a client that has gone is ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use russh::server::{Handle, Msg};
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Context;
use super::input::{self, Fed, Feed};
use crate::children::Child;
use crate::main_process::MainProcess;
use crate::process::{Program, Streams};
use crate::pty::{Pty, Size};

const VARIABLES_MAX: usize = 256;
const CHUNK: usize = 32 << 10;
/// Between asking a process to end and ending it.
const GRACE: Duration = Duration::from_secs(5);
/// The subsystem that is the main process.
const MAIN: &str = "openshell-main";

type Write = ChannelWriteHalf<Msg>;

/// What a client has said before it says what to run.
#[derive(Debug, Default)]
struct Asked {
    variables: Vec<(String, String)>,
    size: Option<Size>,
}

/// Serves a channel to its end.
pub(super) async fn serve(channel: Channel<Msg>, handle: Handle, context: &Context) {
    let id = channel.id();
    let (mut read, write) = channel.split();
    let mut asked = Asked::default();
    while let Some(message) = read.wait().await {
        match message {
            ChannelMsg::SetEnv { want_reply, variable_name, variable_value } => {
                let fits = asked.variables.len() < VARIABLES_MAX && is_name(&variable_name);
                if fits {
                    asked.variables.push((variable_name, variable_value));
                }
                reply(&handle, id, want_reply, fits).await;
            }
            ChannelMsg::RequestPty { want_reply, term, col_width, row_height, .. } => {
                asked.size = Some(Size::new(col_width, row_height));
                if !term.is_empty() {
                    asked.variables.push(("TERM".to_owned(), term));
                }
                reply(&handle, id, want_reply, true).await;
            }
            ChannelMsg::WindowChange { col_width, row_height, .. } => {
                asked.size = asked.size.map(|_| Size::new(col_width, row_height));
            }
            ChannelMsg::Exec { want_reply, command } => {
                reply(&handle, id, want_reply, true).await;
                let text = String::from_utf8(command).ok();
                let variables = std::mem::take(&mut asked.variables);
                let program = text.and_then(|text| context.sandbox.command(&text, variables));
                return start(context, program, asked.size, read, write).await;
            }
            ChannelMsg::RequestShell { want_reply } => {
                reply(&handle, id, want_reply, true).await;
                let program = context.sandbox.login(std::mem::take(&mut asked.variables));
                return start(context, program, asked.size, read, write).await;
            }
            ChannelMsg::RequestSubsystem { want_reply, name } => {
                let known = name == MAIN;
                reply(&handle, id, want_reply, known).await;
                if known {
                    return attach(&context.main, asked.size, read, &write).await;
                }
            }
            ChannelMsg::AgentForward { want_reply } | ChannelMsg::RequestX11 { want_reply, .. } => {
                reply(&handle, id, want_reply, false).await;
            }
            ChannelMsg::Close => return,
            _ => {}
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

async fn reply(handle: &Handle, id: ChannelId, wanted: bool, success: bool) {
    if wanted {
        // A session that is gone ends the channel soon.
        _ = match success {
            true => handle.channel_success(id).await,
            false => handle.channel_failure(id).await,
        };
    }
}

async fn start(
    context: &Context,
    program: Option<Program>,
    size: Option<Size>,
    read: ChannelReadHalf,
    write: Write,
) {
    let Some(program) = program else {
        let text = "the image has no shell, and the command needs one";
        return refuse(&write, text, 127).await;
    };
    match context.sandbox.start(&program, size) {
        Ok((child, streams)) => run(child, streams, read, write).await,
        Err(error) => refuse(&write, &error.line(), error.code()).await,
    }
}

async fn refuse(write: &Write, text: &str, code: u8) {
    drop(write.extended_data_bytes(1, format!("openshell: {text}\n").into_bytes()).await);
    finish(write, code).await;
}

async fn finish(write: &Write, code: u8) {
    // Each of these fails only when the client is gone.
    drop(write.exit_status(u32::from(code)).await);
    drop(write.eof().await);
    drop(write.close().await);
}

/// Carries a process's streams until its end.
async fn run(mut child: Child, streams: Streams, mut read: ChannelReadHalf, write: Write) {
    let (feed, fed) = input::channel();
    let (ended, end) = watch::channel(false);
    let mut pumps = JoinSet::new();
    let terminal = match streams {
        Streams::Pipes { input, output, errors } => {
            tokio::spawn(feed_pipe(fed, input));
            pumps.spawn(pump(output, write.make_writer(), end.clone()));
            pumps.spawn(pump(errors, write.make_writer_ext(Some(1)), end));
            None
        }
        Streams::Terminal(pty) => {
            tokio::spawn(feed_terminal(fed, Arc::clone(&pty)));
            pumps.spawn(pump_terminal(Arc::clone(&pty), write.make_writer(), end));
            Some(pty)
        }
    };
    let group = child.group();
    let mut feed = Some(feed);
    let exit = loop {
        tokio::select! {
            exit = child.wait() => break exit,
            message = read.wait() => match message {
                Some(ChannelMsg::Data { data }) => push(&mut feed, data).await,
                Some(ChannelMsg::Eof) => feed = end_input(feed, terminal.as_deref()).await,
                Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => {
                    if let Some(pty) = &terminal {
                        drop(pty.resize(Size::new(col_width, row_height)));
                    }
                }
                Some(ChannelMsg::Signal { signal }) => {
                    if let Some(signal) = signal_of(&signal) {
                        group.signal(signal);
                    }
                }
                Some(ChannelMsg::Close) | None => return abandon(child).await,
                Some(_) => {}
            },
        }
    };
    drop(feed);
    ended.send_replace(true);
    // A client that reads no more must not hold what is left for ever: it closes the channel, or the relay ends.
    loop {
        tokio::select! {
            pumped = pumps.join_next() => if pumped.is_none() { break },
            message = read.wait() => if matches!(message, None | Some(ChannelMsg::Close)) { return },
        }
    }
    finish(&write, exit.code()).await;
}

async fn push(feed: &mut Option<Feed>, data: Bytes) {
    if let Some(open) = feed
        && !open.push(data).await
    {
        // The process has closed its input.
        *feed = None;
    }
}

/// Ends a process's input. On a terminal that is a character.
async fn end_input(feed: Option<Feed>, terminal: Option<&Pty>) -> Option<Feed> {
    if let (Some(feed), Some(_)) = (&feed, terminal) {
        feed.push(Bytes::from_static(b"\x04")).await;
        // The terminal is still typed on by nobody, but the queue has to stay: its end is no end of file.
    }
    feed.filter(|_| terminal.is_some())
}

/// Ends the process of a client that has gone.
async fn abandon(mut child: Child) {
    let group = child.group();
    group.signal(Signal::HUP);
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        group.signal(Signal::KILL);
        child.wait().await;
    }
}

async fn feed_pipe(mut fed: Fed, mut input: pipe::Sender) {
    while let Some(bytes) = fed.next().await {
        if input.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn feed_terminal(mut fed: Fed, pty: Arc<Pty>) {
    while let Some(bytes) = fed.next().await {
        if pty.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Carries output to the client until its end; once the process has ended, until nothing more is there: what runs on in the
/// background does not hold the channel.
async fn pump(
    mut from: pipe::Receiver,
    mut to: impl AsyncWrite + Unpin,
    mut ended: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = from.read(&mut bytes) => read.ok(),
            // The runtime may not have noticed yet that there is something: the kernel is asked.
            _ = ended.wait_for(|ended| *ended) => rustix::io::read(&from, &mut bytes[..]).ok(),
        };
        let Some(len @ 1..) = read else { return };
        if to.write_all(&bytes[..len]).await.is_err() {
            return;
        }
    }
}

async fn pump_terminal(
    pty: Arc<Pty>,
    mut to: impl AsyncWrite + Unpin,
    mut ended: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = pty.read(&mut bytes) => read.ok(),
            _ = ended.wait_for(|ended| *ended) => pty.read_now(&mut bytes),
        };
        let Some(len @ 1..) = read else { return };
        if to.write_all(&bytes[..len]).await.is_err() {
            return;
        }
    }
}

/// Connects the client with the main process.
async fn attach(main: &MainProcess, size: Option<Size>, mut read: ChannelReadHalf, write: &Write) {
    if let Some(size) = size {
        main.resize(size);
    }
    let mut attachment = main.attach().await;
    let (mut output, mut errors) = (write.make_writer(), write.make_writer_ext(Some(1)));
    let copy = async move {
        if output.write_all(&attachment.before).await.is_err() {
            return;
        }
        while let Some(chunk) = attachment.output.recv().await {
            let written = match chunk.errors {
                true => errors.write_all(&chunk.bytes).await,
                false => output.write_all(&chunk.bytes).await,
            };
            if written.is_err() {
                return;
            }
        }
    };
    tokio::pin!(copy);
    loop {
        tokio::select! {
            () = &mut copy => break,
            message = read.wait() => match message {
                Some(ChannelMsg::Data { data }) => {
                    // Whoever reads no more has ended, or is about to.
                    tokio::select! {
                        () = &mut copy => break,
                        _ = main.feed(data.to_vec()) => {}
                    }
                }
                Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => {
                    main.resize(Size::new(col_width, row_height));
                }
                Some(ChannelMsg::Signal { signal }) => {
                    if let Some(signal) = signal_of(&signal) {
                        main.signal(signal);
                    }
                }
                Some(ChannelMsg::Close) | None => return,
                Some(_) => {}
            },
        }
    }
    // The output of a client that was too slow ends before the process does.
    match tokio::time::timeout(GRACE, main.wait()).await {
        Ok(exit) => finish(write, exit.code()).await,
        Err(_) => refuse(write, "detached: the client reads too slowly", 255).await,
    }
}

fn signal_of(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::ABRT => Signal::ABORT,
        Sig::ALRM => Signal::ALARM,
        Sig::FPE => Signal::FPE,
        Sig::HUP => Signal::HUP,
        Sig::ILL => Signal::ILL,
        Sig::INT => Signal::INT,
        Sig::KILL => Signal::KILL,
        Sig::PIPE => Signal::PIPE,
        Sig::QUIT => Signal::QUIT,
        Sig::SEGV => Signal::SEGV,
        Sig::TERM => Signal::TERM,
        Sig::USR1 => Signal::USR1,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        Sig::Custom(_) => return None,
    })
}
