//! The steps from PID 1's first instruction to the main process, in their order, and what follows its end.

use std::fs;
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::{UnmountFlags, unmount};

use crate::config::{self, Config};
use crate::disks;
use crate::failure::{Failure, Step};
use crate::files::{self, Given};
use crate::machine::{Machine, Outcome, Storage};
use crate::process::{self, Accounts, Main};
use crate::reap::Watch;
use crate::{agent, clock, mounts, network, texts};

/// Runs the machine from its beginning to its end.
pub fn run() -> ! {
    let machine = Machine::find();
    machine.mark();
    let mut storage = Storage::Kept(None);
    let outcome = match main_process(&mut storage) {
        Ok(outcome) => outcome,
        Err(failure) => {
            Machine::say(&failure);
            Outcome::Code(failure.exit_code())
        }
    };
    machine.end(outcome, &storage)
}

/// Ends the machine with `code` for a main process that is PID 1 itself.
pub fn exit(code: u8) -> ! {
    if let Ok(mut watch) = Watch::begin() {
        watch.end_the_rest();
    }
    Machine::find().end(Outcome::Code(code), &Storage::Kept(None))
}

fn main_process(storage: &mut Storage) -> Result<Outcome, Failure> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let mut watch = Watch::begin()?;
    let result = prepare(storage).and_then(|(config, mut main)| {
        if config.process.pid1 {
            return Err(main.replace());
        }
        let streams = main.take_ends().map(agent::Streams::connect).transpose()?;
        let main = main.start()?;
        let agent = config.agent.then(|| agent::start(&config.process, main, streams));
        let agent = agent.transpose()?;
        // Nothing shall keep the directory that the process started in.
        drop(std::env::set_current_dir("/"));
        let outcome = watch.until_end_of(main);
        if let Some(mut agent) = agent
            && agent.tell(outcome)
        {
            watch.until_end_of_agent(agent.pid);
        }
        Ok(outcome)
    });
    watch.end_the_rest();
    result
}

fn prepare(storage: &mut Storage) -> Result<(Config, Main), Failure> {
    let words = disks::start()?;
    let (config, given) = read_config(disks::mount_config(&words)?)?;
    let directory = disks::mount_root(&words)?;
    *storage = if config.volatile { Storage::Volatile } else { Storage::Kept(directory) };
    disks::pivot()?;
    mounts::all()?;
    clock::not_before(config.clock_unix_ms)?;
    clock::random_pool()?;
    files::programs(&config.programs)?;
    for file in &given {
        files::put(Step::Files, file)?;
    }
    let hostname = config.hostname.as_deref();
    if let Some(name) = hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(Step::Hostname.at(name))?;
        files::put_text(Step::Hostname, "/etc/hostname", &format!("{name}\n"))?;
    }
    let applied = network::apply(&config.network, hostname)?;
    let hosts = texts::hosts(hostname, applied.address, &config.hosts);
    files::put_text(Step::Resolver, "/etc/hosts", &hosts)?;
    if let Some(text) = texts::resolver(&applied.dns, &applied.search) {
        files::put_text(Step::Resolver, "/etc/resolv.conf", &text)?;
    }
    let accounts = Accounts::read()?;
    process::directories(&config.directories, &accounts)?;
    for hook in &config.hooks {
        process::hook(hook, &config.process)?;
    }
    let main = Main::prepare(&config.process, &accounts)?;
    Ok((config, main))
}

/// Reads the configuration on the disk at `place`, and gives up a disk that holds nothing else.
fn read_config(place: &str) -> Result<(Config, Vec<Given>), Failure> {
    let step = Step::Config;
    let shown = "/config.json";
    let path = Path::new(place).join("config.json");
    let metadata = fs::metadata(&path).map_err(step.io(shown))?;
    if metadata.len() > config::BYTES_MAX as u64 {
        return Err(Failure::new(step, "larger than 1 MiB").path(shown));
    }
    let bytes = fs::read(&path).map_err(step.io(shown))?;
    let parsed = config::parse(&bytes);
    let config = parsed.map_err(|message| Failure::new(step, message).path(shown))?;
    let given = files::read_given(&Path::new(place).join("files"))?;
    if place == disks::CONFIG {
        unmount(place, UnmountFlags::DETACH).map_err(step.at(place))?;
    }
    Ok((config, given))
}
