//! Lists in JSON that end at a limit, so that a document of a few megabytes cannot become hundreds in memory.
//!
//! Invariant: an [`UpTo`] never holds more elements than its limit, also while it is read.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// At most `N` elements. Empty for `null`.
#[derive(Debug)]
pub(super) struct UpTo<T, const N: usize>(pub(super) Vec<T>);

impl<T, const N: usize> Default for UpTo<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for UpTo<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Elements::<T, N>(PhantomData)).map(Self)
    }
}

struct Elements<T, const N: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Elements<T, N> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {N} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vec<T>, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = access.next_element()? {
            if elements.len() == N {
                return Err(A::Error::custom(format_args!("more than {N} elements")));
            }
            elements.push(element);
        }
        Ok(elements)
    }
}

/// At most `N` pairs of texts, in the order they stand.
#[derive(Debug, Default)]
pub(super) struct PairsUpTo<const N: usize>(pub(super) Vec<(String, String)>);

impl<'de, const N: usize> Deserialize<'de> for PairsUpTo<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Pairs::<N>).map(Self)
    }
}

struct Pairs<const N: usize>;

impl<'de, const N: usize> Visitor<'de> for Pairs<N> {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map of at most {N} texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry()? {
            if pairs.len() == N {
                return Err(A::Error::custom(format_args!("more than {N} entries")));
            }
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

/// What an absent value is, for `null`: Go's encoders write empty lists and maps like this.
pub(super) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
