//! `completions` and `man`: files for packagers, made from the definition of the command.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::failure::Failure;

/// Print shell completions
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

/// Write the manual pages into a directory
#[derive(Debug, Args)]
#[command(hide = true)]
pub(super) struct ManArgs {
    /// Made when it does not exist
    dir: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<u8, Failure> {
    let shell = match args.shell.as_str() {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    let mut text = Vec::new();
    let mut command = super::definition();
    clap_complete::generate(shell, &mut command, "openshell-vmm", &mut text);
    super::print(&text)?;
    Ok(0)
}

pub(super) fn man(args: &ManArgs) -> Result<u8, Failure> {
    let written = fs::create_dir_all(&args.dir).and_then(|()| write_pages(args));
    written.map(|()| 0).map_err(|error| Failure {
        what: format!("cannot write manual pages to {}", args.dir.display()),
        why: Some(error.to_string()),
        fix: Some("give a directory that can be written".to_owned()),
        code: 1,
    })
}

fn write_pages(args: &ManArgs) -> io::Result<()> {
    let mut command = super::definition();
    command.build();
    write_page(args, &command, "openshell-vmm")?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_page(args, verb, &format!("openshell-vmm-{}", verb.get_name()))?;
    }
    Ok(())
}

fn write_page(args: &ManArgs, command: &clap::Command, name: &str) -> io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).title(name).render(&mut page)?;
    fs::write(args.dir.join(format!("{name}.1")), page)
}
