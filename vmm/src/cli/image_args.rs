//! The flags of `run` and `create` that are about an image, the process in it, and the machine's life.

use std::path::PathBuf;

use clap::Args;
use openshell_vmm::launch::disks::DiskSize;
use openshell_vmm::launch::image::Pull;

/// What runs, and what becomes of it.
#[derive(Debug, Default, Args)]
pub(super) struct ImageArgs {
    /// HOST/NAME:TAG, ./DIR, FILE.ext4, oci:DIR[:NAME], docker-archive:FILE[:NAME]
    #[arg(value_name = "IMAGE")]
    pub(super) source: Option<String>,
    /// The command, instead of the image's own
    #[arg(value_name = "COMMAND", trailing_var_arg = true, requires = "source")]
    pub(super) command: Vec<String>,
    /// A name, so that the machine stays until it is removed
    #[arg(short, long, value_name = "NAME", requires = "source", help_heading = "Life")]
    pub(super) name: Option<String>,
    /// Go on in the background, and print the machine's name
    #[arg(short, long, requires = "source", help_heading = "Life")]
    pub(super) detach: bool,
    /// Remove the machine when it ends, also one with a name
    #[arg(long, requires = "source", conflicts_with = "keep", help_heading = "Life")]
    pub(super) rm: bool,
    /// Keep the machine when it ends, also one without a name
    #[arg(long, requires = "source", help_heading = "Life")]
    pub(super) keep: bool,
    /// A label, for filters; may be given several times
    #[arg(
        short,
        long = "label",
        value_name = "KEY[=VALUE]",
        requires = "source",
        help_heading = "Life"
    )]
    pub(super) labels: Vec<String>,
    /// How long the main process may take to end when it is asked to: 10s, or a bare number of seconds
    #[arg(long, value_name = "TIME", requires = "source", help_heading = "Life")]
    pub(super) stop_timeout: Option<String>,
    /// The signal that asks it, instead of the image's
    #[arg(long, value_name = "SIGNAL", requires = "source", help_heading = "Life")]
    pub(super) stop_signal: Option<String>,
    /// Set a variable, or take over this process's; may be given several times
    #[arg(short, long, value_name = "NAME[=VALUE]", requires = "source", help_heading = "Process")]
    pub(super) env: Vec<String>,
    /// Read variables from a file, one a line
    #[arg(long, value_name = "FILE", requires = "source", help_heading = "Process")]
    pub(super) env_file: Vec<PathBuf>,
    /// Where the process starts
    #[arg(short, long, value_name = "DIR", requires = "source", help_heading = "Process")]
    pub(super) workdir: Option<String>,
    /// Who the process is: NAME, UID, NAME:GROUP or UID:GID of the image
    #[arg(short, long, value_name = "USER", requires = "source", help_heading = "Process")]
    pub(super) user: Option<String>,
    /// The program, instead of the image's; its arguments are those given
    #[arg(long, value_name = "PROGRAM", requires = "source", help_heading = "Process")]
    pub(super) entrypoint: Option<String>,
    /// Give the process this standard input
    #[arg(short, long, requires = "source", help_heading = "Process")]
    pub(super) interactive: bool,
    /// Give the process a terminal
    #[arg(short, long, requires = "source", help_heading = "Process")]
    pub(super) tty: bool,
    /// When to ask the registry for the image [default: missing]
    #[arg(
        long,
        value_name = "WHEN",
        requires = "source",
        value_parser = clap::builder::PossibleValuesParser::new(Pull::NAMES),
        help_heading = "Image"
    )]
    pub(super) pull: Option<String>,
    /// OS/ARCH[/VARIANT] of the image [default: this host's]
    #[arg(long, value_name = "PLATFORM", requires = "source", help_heading = "Image")]
    pub(super) platform: Option<String>,
    /// Show nothing while the image is made
    #[arg(short, long, requires = "source", help_heading = "Image")]
    pub(super) quiet: bool,
    /// Size of the disk that the machine writes on; what is not used takes no place [default: 64G]
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = DiskSize::parse,
        requires = "source",
        help_heading = "Image"
    )]
    pub(super) disk_size: Option<DiskSize>,
}
