//! One part of a list of work (`--shard`), so that many machines can share it without talking.
//!
//! The words are nextest's. Must never depend on anything but the list itself, or the parts of two
//! machines would not add up to the whole.

use std::fmt;
use std::str::FromStr;

/// One of `count` parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shard {
    kind: Kind,
    /// From 1.
    part: u64,
    count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Every `count`th item: parts of equal size.
    Slice,
    /// By the item's name: an item stays in its part when others come or go.
    Hash,
}

impl Shard {
    /// Whether the item called `name`, at `index` in the whole list, belongs to this part.
    pub fn takes(self, index: u64, name: &str) -> bool {
        let number = match self.kind {
            Kind::Slice => index,
            Kind::Hash => hash(name),
        };
        number % self.count == self.part - 1
    }

    /// All parts of the whole that this is one of.
    pub fn all(self) -> impl Iterator<Item = Shard> {
        (1..=self.count).map(move |part| Shard { part, ..self })
    }

    /// Whether this is the part that does what must be done once for the whole list.
    pub fn is_first(self) -> bool {
        self.part == 1
    }
}

/// FNV-1a, 64 bits, its high half folded in because only the remainder is used.
fn hash(name: &str) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
    hash ^ (hash >> 32)
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Slice => "slice",
            Kind::Hash => "hash",
        };
        write!(f, "{kind}:{}/{}", self.part, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Shard, String> {
        let form = || "expected slice:M/N or hash:M/N, such as slice:1/3".to_owned();
        let (kind, rest) = text.split_once(':').ok_or_else(form)?;
        let kind = match kind {
            "slice" => Kind::Slice,
            "hash" => Kind::Hash,
            _ => return Err(form()),
        };
        let (part, count) = rest.split_once('/').ok_or_else(form)?;
        let (Ok(part), Ok(count)) = (part.parse(), count.parse()) else { return Err(form()) };
        if part == 0 || part > count {
            return Err(format!("part {part} of {count}: the first part is 1, the last is {count}"));
        }
        Ok(Shard { kind, part, count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up_to_the_whole() {
        let names: Vec<String> = (0..100).map(|n| format!("scenario-{n}")).collect();
        for kind in ["slice", "hash"] {
            let parts = (1..=3).map(|part| format!("{kind}:{part}/3").parse::<Shard>());
            let parts: Vec<Shard> = parts.map(|part| part.expect("a well-formed part")).collect();
            for (name, index) in names.iter().zip(0..) {
                let takers = parts.iter().filter(|part| part.takes(index, name)).count();
                assert_eq!(takers, 1, "{kind}: {name}");
            }
            let sizes: Vec<usize> = parts
                .iter()
                .map(|part| names.iter().zip(0..).filter(|(name, i)| part.takes(*i, name)).count())
                .collect();
            assert!(sizes.iter().all(|size| (20..=50).contains(size)), "{kind}: {sizes:?}");
        }
    }

    #[test]
    fn a_hash_is_the_same_everywhere() {
        assert_eq!(hash(""), 0xcbf2_9ce4_8422_2325 ^ 0xcbf2_9ce4);
        assert_eq!(hash("257-bitmap-sync.qemu-7.2"), hash("257-bitmap-sync.qemu-7.2"));
    }

    #[test]
    fn what_is_no_part_is_refused() {
        for text in ["", "1/3", "slice:0/3", "slice:4/3", "count:1/3", "hash:1", "hash:a/b", "slice:1/0"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
