//! What the user asked to be done with bitmaps: commands and transactions, read from their arguments.
//!
//! A command that failed has asked for nothing. This only reads JSON; what it means for a bitmap is judged in
//! [`super::bitmaps`].

use serde_json::{Map, Value};

use crate::sim::BitmapDump;

use super::bitmaps::{Bounds, Key};
use super::ranges::Ranges;

/// One wish.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    /// Added: its content starts anew.
    Added,
    /// Cleared.
    Cleared,
    /// Removed.
    Removed,
    /// Enabled or disabled.
    Switched,
    /// Another one is merged into it: node and name.
    Merged(String, String),
}

/// What a transaction that failed has done to a bitmap and undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone {
    /// Switched off or on.
    Switched,
    /// Cleared.
    Cleared,
    /// Merged another one into it.
    Merged,
}

/// All wishes of a command, in their order.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    wishes: Vec<((String, String), Wish)>,
    /// What a transaction that failed has done, and undone.
    undone: Vec<((String, String), Undone)>,
    /// It was a command of its own, over at once: nothing has come in between.
    pub alone: bool,
    /// Nodes may have been closed, and bitmaps with them.
    pub may_close: bool,
    /// A disk that has got another length: its node, bytes.
    pub resized: Option<(String, u64)>,
    /// Nodes that show another part of their file now, or another backing file.
    pub moved: Vec<String>,
}

/// What a command did to one bitmap.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its content started anew.
    pub fresh: bool,
    /// It was enabled or disabled.
    pub switched: bool,
    /// What was merged into it.
    pub merged: Bounds,
    /// One of those is of another length.
    pub unequal: bool,
}

impl Asked {
    /// What `command` asked for.
    pub fn read(command: &str, arguments: &Map<String, Value>, succeeded: bool) -> Asked {
        let may_close = matches!(command, "blockdev-del" | "blockdev-reopen");
        let mut asked = Asked { may_close, alone: command != "transaction", ..Asked::default() };
        if !succeeded && command != "transaction" {
            return asked;
        }
        if command == "transaction" {
            for action in arguments.get("actions").and_then(Value::as_array).into_iter().flatten() {
                if let (Some(kind), Some(data)) = (action["type"].as_str(), action["data"].as_object()) {
                    asked.add(kind, data);
                }
            }
        } else if command == "blockdev-reopen" {
            let options = arguments.get("options").and_then(Value::as_array).into_iter().flatten();
            let moves = |node: &&Value| ["offset", "size", "backing"].iter().any(|key| node.get(key).is_some());
            let moved = options.filter(moves);
            asked.moved = moved.filter_map(|node| node["node-name"].as_str()).map(str::to_owned).collect();
        } else if command == "block_resize" {
            let named = |key: &str| arguments.get(key).and_then(Value::as_str);
            let disk = named("node-name").or_else(|| named("device"));
            let size = arguments.get("size").and_then(Value::as_u64);
            asked.resized = disk.map(str::to_owned).zip(size.map(|size| size.next_multiple_of(512)));
        } else {
            asked.add(command, arguments);
        }
        if !succeeded {
            let undone = |wish: &Wish| match wish {
                Wish::Switched => Some(Undone::Switched),
                Wish::Cleared => Some(Undone::Cleared),
                Wish::Merged(..) => Some(Undone::Merged),
                Wish::Added | Wish::Removed => None,
            };
            let wishes = asked.wishes.drain(..);
            asked.undone = wishes.filter_map(|(key, wish)| Some((key, undone(&wish)?))).collect();
        }
        asked
    }

    fn add(&mut self, command: &str, data: &Map<String, Value>) {
        let text = |key: &str| data.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (node, name) = (text("node"), text("name"));
        let wish = match command {
            "block-dirty-bitmap-add" => Wish::Added,
            "block-dirty-bitmap-clear" => Wish::Cleared,
            "block-dirty-bitmap-remove" => Wish::Removed,
            "block-dirty-bitmap-enable" | "block-dirty-bitmap-disable" => Wish::Switched,
            "block-dirty-bitmap-merge" => {
                let target = (node.clone(), text("target"));
                for source in data.get("bitmaps").and_then(Value::as_array).into_iter().flatten() {
                    let (from, name) = match source {
                        Value::String(name) => (node.clone(), name.clone()),
                        other => (
                            other["node"].as_str().unwrap_or_default().to_owned(),
                            other["name"].as_str().unwrap_or_default().to_owned(),
                        ),
                    };
                    self.wishes.push((target.clone(), Wish::Merged(from, name)));
                }
                return;
            }
            _ => return,
        };
        self.wishes.push(((node, name), wish));
    }

    fn of<'a>(&'a self, key: &'a Key) -> impl Iterator<Item = &'a Wish> {
        let own = self.wishes.iter().filter(|(wished, _)| wished.0 == *key.0 && wished.1 == *key.1);
        own.map(|(_, wish)| wish)
    }

    /// What a transaction that failed has done to a bitmap and undone: the first that keeps its old contents to put
    /// them back, else that it was switched.
    pub fn undone(&self, key: &Key) -> Option<Undone> {
        let own = self.undone.iter().filter(|(done, _)| done.0 == *key.0 && done.1 == *key.1);
        let own: Vec<Undone> = own.map(|(_, undone)| *undone).collect();
        own.iter().find(|undone| **undone != Undone::Switched).or(own.first()).copied()
    }

    /// Whether a bitmap was removed.
    pub fn removes(&self, key: &Key) -> bool {
        self.of(key).any(|wish| *wish == Wish::Removed)
    }

    /// What became of a bitmap that is there, if it was touched; `list` is all that there is.
    pub fn change(&self, key: &Key, list: &[BitmapDump]) -> Option<Change> {
        self.of(key).next()?;
        let mut change = Change { fresh: false, switched: false, merged: Bounds::none(), unequal: false };
        let own = list.iter().find(|dump| dump.node == key.0 && dump.name == key.1);
        for wish in self.of(key) {
            match wish {
                Wish::Added | Wish::Cleared | Wish::Removed => change.fresh = true,
                Wish::Switched => change.switched = true,
                Wish::Merged(node, name) => {
                    let source = list.iter().find(|dump| *dump.node == **node && *dump.name == **name);
                    // A source that is gone, or that was changed by the same transaction, may have had anything.
                    let touched = self.wishes.iter().any(|(wished, _)| wished.0 == *node && wished.1 == *name);
                    change.unequal |= source.zip(own).is_some_and(|(source, own)| source.size != own.size);
                    match source.filter(|_| !touched) {
                        Some(source) => change.merged.add(&Bounds::exactly(source), u64::MAX),
                        None => change.merged.may = Ranges::of(&[(0, u64::MAX)]),
                    }
                }
            }
        }
        Some(change)
    }
}
