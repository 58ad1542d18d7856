//! `cargo xtask bench net`: our network stack beside passt and slirp4netns, between the same two kernels.
//!
//! Every stack stands between namespaces of its own, made alike; the same client and server run in them, and the stacks take turns. Nothing
//! here passes or fails by its figures; only work that was not done is an error.

#![expect(clippy::print_stdout, reason = "the table is what was asked for")]
#![expect(
    clippy::print_stderr,
    reason = "a case takes a minute: people want to see that it goes on"
)]

mod card;
mod cases;
mod ceiling;
mod datagrams;
mod exchanges;
mod process;
mod report;
mod rig;
mod streams;
mod system;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use openshell_benches::call::{self, Word};
use openshell_benches::results::Document;

use cases::{Case, cases};
use rig::Rig;
use system::System;

const BENCHMARK: &str = "net";

/// Measures our network stack beside others.
#[derive(Debug, Parser)]
struct Arguments {
    word: Word,
    /// Another build of a stack; its name begins with pasta, slirp4netns or openshell-vmm
    #[arg(long, value_parser = call::peer, value_name = "NAME=PATH")]
    peer: Vec<(String, PathBuf)>,
    /// Turns of each case
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Milliseconds of one run, after 300 to warm up
    #[arg(long, default_value_t = 700, value_name = "MILLISECONDS")]
    span: u64,
    /// Only cases whose name contains this, in any case; may be given several times
    #[arg(long)]
    case: Vec<String>,
    /// Only systems whose name contains this; ours always
    #[arg(long)]
    system: Vec<String>,
    /// Stacks on the last processor, clients and servers on the first; otherwise all are on all
    #[arg(long)]
    apart: bool,
    /// Begin no further case after so many seconds
    #[arg(long, default_value_t = 1500, value_name = "SECONDS")]
    limit: u64,
    /// Say the cases and measure none
    #[arg(long)]
    list: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.word {
        Word::Host => measure(&arguments),
        // The lab emulates its processor: copies cost nothing like what they cost elsewhere.
        Word::Lab => Ok(()),
        Word::Report => report::print(BENCHMARK),
    }
}

fn measure(arguments: &Arguments) -> Result<()> {
    let chosen: Vec<Case> = cases().into_iter().filter(|case| wanted(case, arguments)).collect();
    if arguments.list {
        chosen.iter().for_each(|case| println!("{}", case.name));
        return Ok(());
    }
    ensure!(!chosen.is_empty(), "no case has one of {:?} in its name", arguments.case);
    let deadline = Instant::now() + Duration::from_secs(arguments.limit);
    let cpus = apart(arguments)?;
    process::open_many_files()?;
    let systems = systems(arguments)?;
    let mut document = Document::new(BENCHMARK, "host");
    document.systems =
        systems.iter().map(|system| (system.name.clone(), system.version())).collect();
    let mut mtus: Vec<u16> = chosen.iter().map(|case| case.mtu).collect();
    mtus.dedup();
    for mtu in mtus {
        let cases: Vec<&Case> = chosen.iter().filter(|case| case.mtu == mtu).collect();
        let rigs: Vec<Rig> = systems
            .iter()
            .filter(|system| cases.iter().any(|case| case.is_for(system)))
            .map(|system| Rig::open(system, mtu, cpus.as_deref()))
            .collect::<Result<_>>()?;
        for case in cases {
            if Instant::now() > deadline {
                println!("{}: not measured, the time is over", case.name);
                continue;
            }
            take_turns(&mut document, case, &rigs, arguments)?;
            document.complete(system::OURS);
            document.write()?;
        }
    }
    Ok(())
}

/// Whether a case was asked for.
fn wanted(case: &Case, arguments: &Arguments) -> bool {
    let name = case.name.to_lowercase();
    arguments.case.is_empty()
        || arguments.case.iter().any(|part| name.contains(&part.to_lowercase()))
}

fn systems(arguments: &Arguments) -> Result<Vec<System>> {
    let program = call::fixture("openshell-vmm")?;
    let mut systems = vec![System::ours(&program, true), System::ours(&program, false)];
    systems.extend(System::installed());
    for (name, path) in &arguments.peer {
        systems.push(System::peer(name, path)?);
    }
    systems.push(System::loopback());
    let wanted = |system: &System| {
        system.name == system::OURS
            || arguments.system.is_empty()
            || arguments.system.iter().any(|part| system.name.contains(part))
    };
    systems.retain(wanted);
    Ok(systems)
}

/// Keeps this process on the first processor when asked to; which ones the stacks get then.
fn apart(arguments: &Arguments) -> Result<Option<String>> {
    if !arguments.apart {
        return Ok(None);
    }
    let count = std::thread::available_parallelism()?.get();
    ensure!(count > 1, "there is one processor only");
    process::stay_on(0)?;
    Ok(Some((count - 1).to_string()))
}

fn take_turns(
    document: &mut Document,
    case: &Case,
    rigs: &[Rig],
    arguments: &Arguments,
) -> Result<()> {
    eprintln!("{}", case.name);
    let rigs: Vec<&Rig> = rigs.iter().filter(|rig| case.is_for(&rig.system)).collect();
    for turn in 0..arguments.turns {
        for at in 0..rigs.len() {
            let rig = rigs[(at + turn) % rigs.len()];
            match case.run(rig, Duration::from_millis(arguments.span)) {
                Ok(samples) => {
                    for (figure, unit, value) in samples {
                        document.sample(&case.name, &rig.system.name, figure, unit, value);
                    }
                }
                Err(error) if rig.system.is_ours() => {
                    return Err(error).with_context(|| case.name.clone());
                }
                // A peer that cannot do it has a sample less.
                Err(error) => eprintln!("  {}: {error:#}", rig.system.name),
            }
        }
    }
    Ok(())
}
