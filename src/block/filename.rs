//! What a node is called: the file name that would make the same nodes again, or else its options as JSON.
//!
//! QEMU's source: `bdrv_refresh_filename` in `block.c`. Only options that change what a guest sees ("strong" ones)
//! are told. Nothing is remembered here: a name is made when somebody asks for it.

use serde_json::{Map, Value};

use super::graph::Block;
use super::node::{Driver, Node, NodeId};
use super::qdict::{self, Dict, Member};

impl Block {
    /// The file name that queries show.
    pub fn filename(&self, id: NodeId) -> String {
        self.exact_filename(id).unwrap_or_else(|| format!("json:{}", self.full_options(id).text()))
    }

    /// The directory of the file at the bottom of a node, with its slash.
    pub(super) fn directory(&self, id: NodeId) -> Option<String> {
        let node = self.node(id);
        let child = node.primary_child();
        match &*node.driver.borrow() {
            Driver::File(file) => file.filename.rfind('/').map(|slash| file.filename[..=slash].to_owned()),
            _ => child.and_then(|child| self.directory(child)),
        }
    }

    /// A plain name, if there is one that makes the same nodes.
    fn exact_filename(&self, id: NodeId) -> Option<String> {
        let node = self.node(id);
        let child = node.primary_child();
        match &*node.driver.borrow() {
            Driver::File(file) => Some(file.filename.to_string()),
            Driver::Null(null) => null.options().is_empty().then(|| "null-co://".to_owned()),
            Driver::Blkdebug(_) => {
                let own = node.given.borrow();
                let config = own.own.get("config").and_then(Value::as_str).unwrap_or("");
                let only_config = own.own.keys().all(|key| key == "config");
                let image = child.and_then(|child| self.exact_filename(child)).filter(|_| only_config)?;
                Some(format!("blkdebug:{config}:{image}"))
            }
            // These call themselves what the node below is called.
            Driver::CopyBeforeWrite(_) | Driver::SnapshotAccess => child.map(|child| self.filename(child)),
            Driver::Raw(_) | Driver::Qcow2(_) | Driver::None => {
                let child = child.filter(|child| self.is_protocol(*child))?;
                let exact = self.exact_filename(child);
                exact.filter(|_| strong_options(&node).is_empty() && !self.backing_overridden(&node))
            }
        }
    }

    fn is_protocol(&self, id: NodeId) -> bool {
        matches!(&*self.node(id).driver.borrow(), Driver::File(_) | Driver::Null(_) | Driver::Blkdebug(_))
    }

    /// Whether the backing node is another one than the image says (`bdrv_backing_overridden`).
    fn backing_overridden(&self, node: &Node) -> bool {
        if node.options.borrow().no_io {
            // Without I/O no backing node is opened.
            return false;
        }
        let automatic = node.automatic_backing.borrow().clone();
        match node.backing() {
            Some(backing) => automatic.as_deref() != Some(&*self.filename(backing)),
            None => automatic.is_some(),
        }
    }

    /// All that is needed to make the node again.
    fn full_options(&self, id: NodeId) -> Dict {
        let node = self.node(id);
        let mut options = Dict::default();
        options.put("driver", Member::Plain(node.driver_name().unwrap_or("").into()));
        for (key, value) in self.strong_options_in_order(&node) {
            options.put(&key, value);
        }
        let overridden = self.backing_overridden(&node);
        for edge in node.children.borrow().iter() {
            if edge.name != "backing" || overridden {
                options.put(edge.name, Member::Dict(self.full_options(edge.child.get())));
            }
        }
        if overridden && node.backing().is_none() {
            options.put("backing", Member::Plain(Value::Null));
        }
        options
    }

    fn strong_options_in_order(&self, node: &Node) -> Vec<(String, Member)> {
        let strong = strong_options(node);
        if !matches!(&*node.driver.borrow(), Driver::Blkdebug(_)) {
            return strong.into_iter().map(|(key, value)| (key, Member::Plain(value))).collect();
        }
        self.as_opened(node, &strong).into_members().collect()
    }

    /// The links below which the node was opened inline, from the top.
    fn links_above(&self, node: &Node) -> Vec<&'static str> {
        let Some(parent) = node.inherits_from.get().and_then(|parent| self.try_node(parent)) else {
            return node.opened_below.borrow().clone();
        };
        let link = parent.children.borrow().iter().find(|edge| edge.child.get() == node.id).map(|edge| edge.name);
        let mut links = self.links_above(&parent);
        links.extend(link);
        links
    }

    /// The node is about to be closed: children that it has opened inline inherit from nobody any more.
    pub(super) fn disinherit_children(&self, parent: &Node) {
        for edge in parent.children.borrow().iter() {
            let child = self.node(edge.child.get());
            if child.inherits_from.get() == Some(parent.id) {
                child.opened_below.replace(self.links_above(&child));
                child.inherits_from.set(None);
            }
        }
    }

    /// The options in the order in which the node has them, after their way through those of the nodes above.
    fn as_opened(&self, node: &Node, given: &Map<String, Value>) -> Dict {
        let above = self.links_above(node);
        let prefix: String = above.iter().flat_map(|name| [name, "."]).collect();
        let mut options = Dict::default();
        for (key, value) in qdict::as_flattened(given) {
            options.put(&format!("{prefix}{key}"), Member::Plain(value.clone()));
        }
        // Each node takes its child's options out of a copy of its own.
        above.iter().fold(options, |options, name| options.copied().with_prefix(&format!("{name}.")))
    }
}

/// Options of the driver that change what is seen.
fn strong_options(node: &Node) -> Map<String, Value> {
    match &*node.driver.borrow() {
        Driver::File(file) => Map::from_iter([("filename".to_owned(), Value::from(&*file.filename))]),
        Driver::Null(null) => null.options(),
        Driver::Raw(raw) => {
            let window = raw.window();
            let given = [("offset", window.offset), ("size", window.size)];
            given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))).collect()
        }
        Driver::Blkdebug(_) => node.given.borrow().own.clone(),
        _ => Map::new(),
    }
}
