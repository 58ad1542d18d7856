//! What can be a row, and which rows are meant by labels.

use std::collections::BTreeMap;

use openshell_proto::datamodel::v1::ObjectMeta;
use openshell_proto::sandbox::v1::{SandboxPolicy, SettingValue};
use openshell_proto::v1::Sandbox;
use prost::Message;

/// A message that is stored by itself.
pub trait Object: Message + Default + Clone {
    /// Stable: it is in the database.
    const KIND: &'static str;

    /// The metadata, if there is any.
    fn meta(&self) -> Option<&ObjectMeta>;

    /// The metadata, made where there was none.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
}

impl Object for Sandbox {
    const KIND: &'static str = "sandbox";

    fn meta(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.metadata.get_or_insert_default()
    }
}

/// Settings of one sandbox, whose id the row has, or of the gateway.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Scope {
    /// Id and name are the sandbox's id, or [`Self::GLOBAL`].
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ObjectMeta>,
    /// The settings by their keys.
    #[prost(btree_map = "string, message", tag = "2")]
    pub values: BTreeMap<String, SettingValue>,
    /// How many changes there were.
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    /// The policy of all sandboxes, in the gateway's scope only.
    #[prost(message, optional, tag = "4")]
    pub policy: Option<SandboxPolicy>,
    /// How many changes of the policy there were.
    #[prost(uint32, tag = "5")]
    pub policy_version: u32,
}

impl Scope {
    /// The id of the gateway's own: no sandbox's.
    pub const GLOBAL: &str = "global";

    /// The scope of this id, without settings.
    #[must_use]
    pub fn of(id: &str) -> Self {
        let metadata = ObjectMeta { id: id.into(), name: id.into(), ..ObjectMeta::default() };
        Self { metadata: Some(metadata), ..Self::default() }
    }
}

impl Object for Scope {
    const KIND: &'static str = "settings";

    fn meta(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.metadata.get_or_insert_default()
    }
}

/// Labels that a row must have. Empty: any row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(BTreeMap<String, String>);

/// A text that is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not `key=value`")]
pub struct SelectorError(String);

impl Selector {
    /// Reads `key=value,other=value`.
    ///
    /// # Errors
    ///
    /// A part without `=` or without a key, and a key with two values.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut wanted = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| SelectorError(part.to_owned()))?;
            let old = wanted.insert(key.trim().to_owned(), value.trim().to_owned());
            if key.trim().is_empty() || old.is_some_and(|old| old != value.trim()) {
                return Err(SelectorError(part.to_owned()));
            }
        }
        Ok(Self(wanted))
    }

    /// Whether the labels have all that is wanted.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}
