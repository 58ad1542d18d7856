//! Which platforms an image may be for, and which of several is the best.
//!
//! Invariant: an image for another operating system or architecture is never taken, nor one that asks for more of the
//! processor than was asked for. Pure, apart from [`Platform::host`], which reads what the processor can.

use std::fmt;
use std::str::FromStr;

use crate::image::Platform;

/// A text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no platform: write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64/v8"
)]
pub struct InvalidPlatform(String);

impl Platform {
    /// The platform of guests on this host, with the level of its processor as the variant.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: host_variant() }
    }

    /// How well an image for `offered` suits: more is better, and `None` means that it must not be taken.
    ///
    /// A variant is a level of the processor. One that is not given is the lowest for `self`, so that
    /// nothing is assumed of the processor, and the one that images mean by it for `offered`.
    #[must_use]
    pub fn suits(&self, offered: &Self) -> Option<u32> {
        let (wanted, offered) = (self.normal(), offered.normal());
        if wanted.os != offered.os || wanted.architecture != offered.architecture {
            return None;
        }
        let level = |platform: &Self| match &platform.variant {
            None => default_level(&platform.architecture),
            Some(variant) => level(variant),
        };
        match (level(&wanted), level(&offered)) {
            (Some(wanted), Some(offered)) => (offered <= wanted).then_some(offered),
            // Variants without an order: only the same one suits, or one that asks for nothing.
            _ if offered.variant.is_none() => Some(0),
            _ => (wanted.variant == offered.variant).then_some(1),
        }
    }

    /// The names that the image specification uses, for those that other tools print.
    fn normal(&self) -> Self {
        let lower = |text: &str| text.to_ascii_lowercase();
        let mut normal = Self {
            os: lower(&self.os),
            architecture: lower(&self.architecture),
            variant: self.variant.as_deref().map(lower).filter(|variant| !variant.is_empty()),
        };
        let (architecture, variant) = match normal.architecture.as_str() {
            "x86_64" | "x86-64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "i386" | "i686" => ("386", None),
            "armhf" => ("arm", Some("v7")),
            "armel" => ("arm", Some("v6")),
            _ => return normal,
        };
        normal.architecture = architecture.into();
        normal.variant = normal.variant.or(variant.map(str::to_owned));
        normal
    }
}

/// The level that no variant means, for architectures whose variants are levels.
fn default_level(architecture: &str) -> Option<u32> {
    match architecture {
        "amd64" => level("v1"),
        "arm64" => level("v8"),
        "arm" => level("v7"),
        _ => None,
    }
}

/// `v3` is 300, `v8.2` is 802.
fn level(variant: &str) -> Option<u32> {
    let digits = variant.strip_prefix('v').unwrap_or(variant);
    let (major, minor) = digits.split_once('.').unwrap_or((digits, "0"));
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number < 100);
    Some(number(major)? * 100 + number(minor)?)
}

#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<String> {
    let v2 = is_x86_feature_detected!("cmpxchg16b")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.2");
    let v3 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let v4 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let level = [v2, v3, v4].iter().take_while(|has| **has).count() + 1;
    Some(format!("v{level}"))
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<String> {
    None
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        let invalid = || InvalidPlatform(text.chars().take(80).collect());
        let word = |part: &str| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            let begins = part.starts_with(|c: char| c.is_ascii_alphanumeric());
            (begins && part.len() <= 32 && part.bytes().all(fits)).then(|| part.to_owned())
        };
        let mut parts = text.split('/');
        let mut next = || parts.next().map(|part| word(part).ok_or_else(invalid)).transpose();
        let (os, architecture, variant) = (next()?, next()?, next()?);
        let (Some(os), Some(architecture), None) = (os, architecture, parts.next()) else {
            return Err(invalid());
        };
        Ok(Self { os, architecture, variant }.normal())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best<'a>(wanted: &str, offered: &[&'a str]) -> Option<&'a str> {
        let wanted: Platform = wanted.parse().unwrap();
        let suits = |text: &&&str| wanted.suits(&text.parse().unwrap());
        let suiting: Vec<&&str> = offered.iter().filter(|text| suits(text).is_some()).collect();
        suiting.into_iter().max_by_key(|text| suits(text)).copied()
    }

    #[test]
    fn the_best_variant_not_above_what_is_wanted() {
        let amd64 = ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"];
        let arm = ["linux/arm/v5", "linux/arm/v7", "linux/arm64/v8", "linux/arm64/v9"];
        for (wanted, offered, expected) in [
            ("linux/amd64", &amd64[..], Some("linux/amd64")),
            ("linux/amd64/v3", &amd64, Some("linux/amd64/v3")),
            ("linux/amd64/v4", &amd64[..3], Some("linux/amd64/v3")),
            ("linux/amd64/v1", &amd64[1..], None),
            ("linux/x86_64", &amd64, Some("linux/amd64")),
            ("linux/arm64", &arm, Some("linux/arm64/v8")),
            ("linux/arm64/v8.2", &arm, Some("linux/arm64/v8")),
            ("linux/arm64/v9", &arm, Some("linux/arm64/v9")),
            ("linux/arm/v6", &arm, Some("linux/arm/v5")),
            ("linux/arm", &arm, Some("linux/arm/v7")),
            ("linux/arm/v7", &["linux/arm64/v8"], None),
            ("linux/amd64", &["windows/amd64", "linux/arm64", "linux/386"], None),
            ("linux/riscv64", &["linux/riscv64"], Some("linux/riscv64")),
            ("linux/mips64", &["linux/mips64/softfloat"], None),
            ("linux/mips64/softfloat", &["linux/mips64/softfloat"], Some("linux/mips64/softfloat")),
        ] {
            assert_eq!(best(wanted, offered), expected, "{wanted} among {offered:?}");
        }
    }

    #[test]
    fn a_platform_reads_back_and_anything_else_is_refused() {
        for text in ["linux/amd64", "linux/arm64/v8", "linux/arm/v6"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in
            ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/a md", "linux/../x"]
        {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn this_host_takes_images_for_its_architecture() {
        let host = Platform::host();
        let plain = Platform { variant: None, ..host.clone() };
        assert!(host.suits(&plain).is_some(), "{host}");
        assert_eq!(host.to_string().parse::<Platform>().unwrap(), host);
    }
}
