//! Kernel configurations: the lines `CONFIG_X=value` and `# CONFIG_X is not set`, which say the same thing in our
//! fragments, in the lists of required options and in the `.config` of a build.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result, bail};

/// Options and their values as written after `=`; `None` is off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    options: BTreeMap<String, Option<String>>,
}

impl Config {
    /// Reads a configuration. After a value or `is not set`, ` # ` and anything behind it is a comment.
    ///
    /// # Errors
    /// A line is neither an option nor a comment, or an option is given twice.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut config = Self::default();
        for (index, line) in text.lines().enumerate() {
            let Some((name, value)) =
                parse_line(line).with_context(|| format!("line {}: {line}", index + 1))?
            else {
                continue;
            };
            if config.options.insert(name.to_owned(), value.map(str::to_owned)).is_some() {
                bail!("line {}: {name} is given twice", index + 1);
            }
        }
        Ok(config)
    }

    /// Takes over every option of `later`.
    pub(super) fn merge(&mut self, later: Self) {
        self.options.extend(later.options);
    }

    /// Fails with the list of what `required` says and this configuration does not.
    pub(super) fn must_have(&self, required: &Self) -> Result<()> {
        let broken: Vec<String> = required
            .options
            .iter()
            // An option that a .config does not mention is off.
            .filter(|(name, value)| self.options.get(*name).unwrap_or(&None) != *value)
            .map(|(name, value)| line(name, value.as_deref()))
            .collect();
        if !broken.is_empty() {
            bail!("the built config lacks:\n  {}", broken.join("\n  "));
        }
        Ok(())
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.options {
            writeln!(f, "{}", line(name, value.as_deref()))?;
        }
        Ok(())
    }
}

fn line(name: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => format!("{name}={value}"),
        None => format!("# {name} is not set"),
    }
}

/// One line: an option with its value, or `None` for a comment or an empty line.
fn parse_line(line: &str) -> Result<Option<(&str, Option<&str>)>> {
    let line = line.trim_end();
    if let Some(rest) = line.strip_prefix("# CONFIG_") {
        let Some((_, after)) = rest.split_once(" is not set") else {
            return Ok(None);
        };
        let end = line.len() - after.len() - " is not set".len();
        let name = &line["# ".len()..end];
        check_name(name)?;
        comment_only(after)?;
        return Ok(Some((name, None)));
    }
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, rest) = line.split_once('=').context("no '='")?;
    check_name(name)?;
    let length = value_length(rest)?;
    comment_only(&rest[length..])?;
    match &rest[..length] {
        "" => bail!("no value"),
        "n" => Ok(Some((name, None))),
        value => Ok(Some((name, Some(value)))),
    }
}

/// Bytes of `rest` that are the value: up to the closing quote, or up to white space.
fn value_length(rest: &str) -> Result<usize> {
    let Some(quoted) = rest.strip_prefix('"') else {
        return Ok(rest.find(char::is_whitespace).unwrap_or(rest.len()));
    };
    let mut escaped = false;
    for (index, byte) in quoted.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return Ok(index + 2),
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    bail!("a string without end")
}

fn comment_only(rest: &str) -> Result<()> {
    let text = rest.trim_start();
    if text.is_empty() || (text.starts_with('#') && text.len() < rest.len()) {
        return Ok(());
    }
    bail!("text after the value: {text}")
}

fn check_name(name: &str) -> Result<()> {
    let valid = name.strip_prefix("CONFIG_").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    });
    if !valid {
        bail!("{name:?} is not an option name");
    }
    Ok(())
}
