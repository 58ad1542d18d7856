//! `config`: what is set for all machines of images, and by whom.

use clap::{Args, Subcommand};
use openshell_vmm::config::user::{self, Origin, UserConfig};
use openshell_vmm::report::json;
use serde_json::json;

use super::failure::Failure;
use super::list::table;
use super::targets::Form;

/// Show what is set for all machines of images
///
/// A flag wins over a variable, a variable over the file, the file over the default.
#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, Subcommand)]
enum ConfigVerb {
    /// Print every key and its value
    Show {
        /// Say who set it
        #[arg(long)]
        origin: bool,
        /// How it is printed
        #[arg(short, long, value_enum, default_value_t = Form::Table, value_name = "FORM")]
        output: Form,
    },
    /// Print the path of the file
    Path,
}

pub(super) fn config(args: &ConfigArgs) -> Result<u8, Failure> {
    match args.verb {
        ConfigVerb::Path => {
            let path = user::path().ok_or_else(|| Failure {
                what: "there is no place for a configuration file".to_owned(),
                why: None,
                fix: Some("set XDG_CONFIG_HOME or HOME".to_owned()),
                code: 1,
            })?;
            super::print(format!("{}\n", path.display()).as_bytes())?;
        }
        ConfigVerb::Show { origin, output } => {
            let config = UserConfig::of_process().map_err(|error| Failure::of(&error, 1))?;
            super::print(shown(&config, origin, output).as_bytes())?;
        }
    }
    Ok(0)
}

fn shown(config: &UserConfig, origin: bool, form: Form) -> String {
    let by = |origin: &Origin| match origin {
        Origin::Default => "default".to_owned(),
        Origin::File(path) => path.display().to_string(),
        Origin::Environment(name) => format!("${name}"),
    };
    let values = config.values();
    if form == Form::Json {
        let rows: Vec<_> = values
            .iter()
            .map(|one| json!({ "key": one.key, "value": one.value, "origin": by(&one.origin) }))
            .collect();
        return json::line(&json!({ "schema": "v1", "values": rows }));
    }
    let rows: Vec<_> = values
        .iter()
        .map(|one| {
            let mut row = vec![one.key.to_owned(), one.value.clone()];
            row.extend(origin.then(|| by(&one.origin)));
            row
        })
        .collect();
    table(&rows)
}
