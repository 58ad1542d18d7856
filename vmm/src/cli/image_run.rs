//! `run` and `create` with an image: from the words to a machine in the store, and then to its run.
//!
//! Invariant: a machine that could not be started leaves nothing, unless it was to be kept and existed before.

use std::collections::BTreeMap;
use std::env;

use openshell_vmm::config::net::{NetMode, PublishSpec, parse_mode};
use openshell_vmm::config::plan::Plan;
use openshell_vmm::config::spec::{MemorySize, Spec, TimeLimit};
use openshell_vmm::config::user::UserConfig;
use openshell_vmm::explain::Explain;
use openshell_vmm::launch::image::{Pull, Source, Wanted};
use openshell_vmm::launch::process::{Wishes, process};
use openshell_vmm::launch::{Places, environment, image};
use openshell_vmm::logbook::now_unix_ms;
use openshell_vmm::machines::Store;
use openshell_vmm::machines::journal::{Event, Journal};
use openshell_vmm::machines::record::{Record, SCHEMA};
use openshell_vmm::report::{BootTrace, CODE_VMM, Outcome};
use openshell_vmm::sys::tty;

use super::failure::Failure;
use super::image_args::ImageArgs;
use super::run::RunArgs;
use super::serve::{self, Streams};

/// What a machine gets unless the user says otherwise.
const DEFAULT_CPUS: u64 = 1;
const DEFAULT_MEMORY_BYTES: u64 = 512 << 20;

/// Creates a machine and runs it, here or in the background.
pub(super) fn run<E: Explain>(
    args: RunArgs,
    trace: BootTrace,
    machine: impl FnOnce(Plan, BootTrace) -> Result<Outcome, E>,
) -> Result<u8, Failure> {
    let store = Store::of_process().map_err(|error| Failure::of(&error, CODE_VMM))?;
    store.sweep();
    let detach = args.image.detach;
    let streams = Streams { own: !detach, input: args.image.interactive };
    if streams.own && streams.input && args.image.tty && !tty::is_terminal(0) {
        return Err(Failure {
            what: "standard input is not a terminal".to_owned(),
            why: None,
            fix: Some("leave out --tty".to_owned()),
            code: CODE_VMM,
        });
    }
    let words = words_after_verb()?;
    let stays = args.image.name.is_some() || args.image.keep;
    let (record, spec) = record(args, words, !stays, &store)?;
    let held = store.create(record).map_err(|error| Failure::of(&error, CODE_VMM))?;
    let mut journal = Journal::open(&store);
    journal.add(&Event::now("create", &held.machine));
    if detach {
        let id = held.machine.record.id.clone();
        if let Err(failure) = serve::start(&held) {
            // The failure to start is what must be told.
            drop(held.remove(&store));
            return Err(failure);
        }
        super::print(format!("{id}\n").as_bytes())?;
        return Ok(0);
    }
    let directory = held.machine.directory.clone();
    let done = serve::run(&held, spec, streams, trace, journal, machine);
    if done.is_err() {
        // Nothing of it ran.
        openshell_vmm::machines::remove_own(&directory);
    }
    done
}

/// The words behind the verb of this process.
pub(super) fn words_after_verb() -> Result<Vec<String>, Failure> {
    env::args_os()
        .skip(2)
        .map(|word| {
            word.into_string().map_err(|word| Failure {
                what: format!("{} is not UTF-8", word.to_string_lossy()),
                why: Some(
                    "the words of a machine are kept, and given to its guest, as text".into(),
                ),
                fix: Some("write it in UTF-8".to_owned()),
                code: CODE_VMM,
            })
        })
        .collect()
}

/// What the words ask for, with the image found and what else can be known before there is a machine. `ephemeral`: it goes when it ends, also
/// without `--rm`.
pub(super) fn record(
    mut args: RunArgs,
    words: Vec<String>,
    ephemeral: bool,
    store: &Store,
) -> Result<(Record, Spec), Failure> {
    let asked = std::mem::take(&mut args.image);
    let config = UserConfig::of_process().map_err(|error| failed(&error))?;
    let mut spec = args.into_spec().map_err(|error| failed(&error))?;
    let words = complete(&mut spec, words, &config)?;
    let wishes = wishes(&asked, &config)?;
    let labels = labels(&asked.labels)?;
    let places = Places::of_process();
    let source = Source::parse(asked.source.as_deref().unwrap_or_default());
    let wanted = Wanted {
        pull: asked
            .pull
            .as_deref()
            .or(config.set("defaults.pull"))
            .and_then(Pull::named)
            .unwrap_or_default(),
        platform: asked.platform.as_deref(),
        quiet: asked.quiet,
        variables: image_variables(&config),
    };
    let image = image::find(&source, &wanted, store, &places).map_err(|error| failed(&error))?;
    let process = process(&image.process, &wishes).map_err(|error| failed(&error))?;
    let cwd = env::current_dir().map_err(|error| Failure {
        what: "cannot tell the working directory".to_owned(),
        why: Some(error.to_string()),
        fix: Some("change to a directory that exists".to_owned()),
        code: CODE_VMM,
    })?;
    let publish = spec.net.publish.iter();
    let port = |it: &PublishSpec| format!("{} -> {}/{}", it.host, it.guest_port, it.transport);
    let ports = publish.map(port).collect();
    let record = Record {
        schema: SCHEMA,
        id: String::new(),
        name: asked.name.clone().unwrap_or_default(),
        created_unix_ms: now_unix_ms(),
        ephemeral: asked.rm || ephemeral,
        words,
        cwd,
        image: Some(image),
        process: Some(process),
        labels,
        cpus: spec.cpus.unwrap_or(DEFAULT_CPUS),
        memory_bytes: spec.memory.map_or(DEFAULT_MEMORY_BYTES, |MemorySize(bytes)| bytes),
        ports,
    };
    Ok((record, spec))
}

/// What `openshell-rootfs` is told of the configuration.
pub(super) fn image_variables(config: &UserConfig) -> Vec<(&'static str, String)> {
    [("images.cache", "OPENSHELL_ROOTFS_CACHE"), ("images.hosts", "OPENSHELL_ROOTFS_HOSTS")]
        .into_iter()
        .filter_map(|(key, name)| Some((name, config.set(key)?.to_owned())))
        .collect()
}

/// Takes over what the configuration says and the flags do not; the words that say so as well, so that later starts are alike.
fn complete(
    spec: &mut Spec,
    words: Vec<String>,
    config: &UserConfig,
) -> Result<Vec<String>, Failure> {
    let mut more = Vec::new();
    if let (None, Some(cpus)) = (spec.cpus, config.set("defaults.cpus")) {
        spec.cpus = Some(Spec::parse_cpus(cpus).map_err(|error| failed(&error))?);
    }
    if let (None, Some(memory)) = (spec.memory, config.set("defaults.memory")) {
        spec.memory = Some(MemorySize::parse(memory).map_err(|error| failed(&error))?);
    }
    if let (None, Some(kernel)) = (&spec.kernel, config.set("defaults.kernel")) {
        spec.kernel = Some(kernel.into());
        more.extend(["--kernel".to_owned(), kernel.to_owned()]);
    }
    if let (None, Some(mode)) = (spec.net.mode, config.set("defaults.net")) {
        spec.net.mode = Some(parse_mode(mode.as_ref()).map_err(|error| failed(&error))?);
        more.extend(["--net".to_owned(), mode.to_owned()]);
    }
    more.extend(words);
    Ok(more)
}

fn wishes(asked: &ImageArgs, config: &UserConfig) -> Result<Wishes, Failure> {
    let own = |name: &str| env::var(name).ok();
    let env = environment::collect(&asked.env_file, &asked.env, &own);
    let grace = asked.stop_timeout.as_deref().or(config.set("defaults.stop_timeout"));
    let grace = grace.map(TimeLimit::parse).transpose();
    let grace = grace.map_err(|error| failed(&error))?;
    Ok(Wishes {
        command: asked.command.clone(),
        entrypoint: asked.entrypoint.clone(),
        env: env.map_err(|error| failed(&error))?,
        workdir: asked.workdir.clone(),
        user: asked.user.clone(),
        tty: asked.tty,
        stop_signal: asked.stop_signal.clone(),
        stop_grace_ms: grace.and_then(|TimeLimit(time)| u64::try_from(time.as_millis()).ok()),
    })
}

fn labels(words: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    words
        .iter()
        .map(|word| {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            if key.is_empty() || key.contains(char::is_whitespace) {
                return Err(Failure {
                    what: format!("--label {word}: a label is KEY or KEY=VALUE"),
                    why: None,
                    fix: Some("give it a key without spaces".to_owned()),
                    code: CODE_VMM,
                });
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Whether a machine of this specification has a network card.
pub(super) fn has_network(spec: &Spec) -> bool {
    spec.net.mode.unwrap_or_default() != NetMode::None
}

fn failed(error: &impl Explain) -> Failure {
    Failure::of(error, CODE_VMM)
}
