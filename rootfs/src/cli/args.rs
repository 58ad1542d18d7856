//! The arguments, as clap reads them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use openshell_rootfs::image::Platform;

/// From container images to bootable ext4 images, without root and without other programs.
#[derive(Debug, Parser)]
#[command(name = "openshell-rootfs", version, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where images and layers are kept
    #[arg(long, global = true, env = "OPENSHELL_ROOTFS_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Print results, and errors, as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print errors where results go, for a program that leaves standard error to the progress
    #[arg(long, global = true, hide = true)]
    pub(crate) errors_on_stdout: bool,
    /// How to show what is going on
    #[arg(long, global = true, value_enum, default_value_t = ProgressKind::Auto, value_name = "KIND")]
    pub(crate) progress: ProgressKind,
    /// Mirrors, certificates and plain HTTP of registries, in TOML
    #[arg(long, global = true, env = "OPENSHELL_ROOTFS_HOSTS", value_name = "FILE")]
    pub(crate) hosts: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressKind {
    /// Bars on a terminal, lines elsewhere
    Auto,
    /// Bars
    Tty,
    /// Lines
    Plain,
    /// Lines of JSON
    Json,
    /// Nothing
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a disk from an image
    Build(BuildArgs),
    /// Make an image in the cache
    Pull(PullArgs),
    /// List the images in the cache
    Ls,
    /// Show what is known of an image
    Inspect(ImageArgs),
    /// Check images bit by bit
    Verify(VerifyArgs),
    /// Make the cache smaller
    Prune(PruneArgs),
    /// Remove images from the cache
    Rm(RmArgs),
    /// Print a file of an image
    Cat(CatArgs),
    /// Write the files of an image as a tar archive
    ExportTar(ExportArgs),
    /// Make the disk that one sandbox writes on
    MakeUpper(UpperArgs),
    /// Make a read-only disk with files of one sandbox
    MakeConfig(ConfigArgs),
}

/// Which image, and how to get it.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// HOST/NAME:TAG, oci:DIR[:NAME], docker-archive:FILE[:NAME], rootfs-tar:FILE (or -), dir:DIR
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// OS/ARCH[/VARIANT] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<Platform>,
    /// When to ask the registry
    #[arg(long, value_enum, default_value_t = Pull::Missing, value_name = "WHEN")]
    pub(crate) pull: Pull,
    /// Put a file into the image: SOURCE:TARGET[:MODE[:UID[:GID]]], mode in octal
    #[arg(long = "add", value_name = "SRC:DST:MODE:UID:GID")]
    pub(crate) add: Vec<String>,
    /// Memory that names and attributes of the files may take: a million files need 256M
    #[arg(long, value_parser = size, default_value = "128M", value_name = "SIZE")]
    pub(crate) max_metadata: u64,
    /// Take the image as it is: no user `sandbox`, no mount points
    #[arg(long)]
    pub(crate) plain: bool,
    /// Numbers of the user `sandbox`, for images that have none [default: 10001:10001]
    #[arg(long, value_parser = ids, value_name = "UID:GID", conflicts_with = "plain")]
    pub(crate) sandbox_user: Option<(u32, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    /// When the cache does not have the image
    Missing,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// The disk to write
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Size of the disk, such as 4G [default: a quarter more than the files, at least 256M more]
    #[arg(long, value_parser = size, value_name = "SIZE", conflicts_with = "read_only")]
    pub(crate) size: Option<u64>,
    /// Make a read-only image without free space, byte for byte the same everywhere
    #[arg(long)]
    pub(crate) read_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// A reference, a key or the beginning of one
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// References, keys, or files with an ext4 image [default: all images in the cache]
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Remove what was not used for longest until the cache takes no more than this
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub(crate) max_size: Option<u64>,
    /// Only say what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// References, keys or beginnings of keys
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    /// A reference, a key or the beginning of one
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// The file, by its path in the image
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A reference, a key or the beginning of one
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// The archive to write [default: the standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct UpperArgs {
    /// The disk to write, readable by its owner only
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Size of the disk; what is not used takes no place
    #[arg(long, value_parser = size, default_value = "64G", value_name = "SIZE")]
    pub(crate) size: u64,
    /// The image in the cache that it goes above: owner and mode of its root are taken over
    #[arg(long, value_name = "IMAGE")]
    pub(crate) base: Option<String>,
    /// Put a file on it, as `build --add` does
    #[arg(long = "add", value_name = "SRC:DST:MODE:UID:GID")]
    pub(crate) add: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The disk to write, readable by its owner only
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Put a file on it, as `build --add` does
    #[arg(long = "add", value_name = "SRC:DST:MODE:UID:GID", required = true)]
    pub(crate) add: Vec<String>,
}

/// A user and a group, neither of them root's.
fn ids(text: &str) -> Result<(u32, u32), String> {
    let id = |text: &str| text.parse().ok().filter(|id| (1..u32::MAX).contains(id));
    let both = text.split_once(':').and_then(|(user, group)| Some((id(user)?, id(group)?)));
    both.ok_or_else(|| "write UID:GID, both more than 0, such as 10001:10001".into())
}

/// Bytes: a whole number with K, M, G or T, which are powers of 1024; a bare number counts MiB.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mi" | "mib" => 1 << 20,
        "k" | "ki" | "kib" => 1 << 10,
        "g" | "gi" | "gib" => 1 << 30,
        "t" | "ti" | "tib" => 1 << 40,
        _ => return Err("a size is a whole number and K, M, G or T, such as 512M or 4G".into()),
    };
    let number: u64 = number.parse().map_err(|_| "a size begins with a whole number")?;
    number.checked_mul(unit).ok_or_else(|| "the size does not fit in 64 bits".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_agree_with_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_sandbox_user_is_never_root() {
        assert_eq!(ids("10001:20"), Ok((10001, 20)));
        for text in ["", "1", "0:1", "1:0", "1:2:3", "-1:2", "4294967295:1", "a:b"] {
            assert!(ids(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("4G"), Ok(4 << 30));
        assert_eq!(size("512"), Ok(512 << 20));
        assert_eq!(size("10Ki"), Ok(10 << 10));
        assert!(size("").is_err() && size("G").is_err() && size("1X").is_err());
        assert!(size("99999999999999T").is_err());
    }
}
