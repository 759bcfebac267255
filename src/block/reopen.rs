//! Giving nodes new options without closing them: all of a queue, or none.
//!
//! A node's options are checked first, then its links to `backing` and `file` change, then permissions are
//! recomputed for all; a failure undoes everything. Inline children are in the queue with their parent, since they
//! inherit from it. QEMU's source: `bdrv_reopen_queue` and `bdrv_reopen_multiple` in `block.c`.

use std::rc::Rc;

use serde_json::{Map, Value};

use super::graph::Block;
use super::node::{Driver, Edge, Given, Node, NodeId, NodeOptions, Parent, Role};
use super::open::{BackingRef, ChildRef, CommonOptions, DriverOptions, Inherit, OpenOptions, resolve};
use super::qcow2::Qcow2Options;
use super::qdict;
use super::raw::Window;

/// A child as the new options give it.
enum NewChild {
    Name(String),
    Inline(OpenOptions),
    None,
}

/// A node with its new options.
struct Entry {
    node: Rc<Node>,
    given: Given,
    next: NodeOptions,
    driver: &'static str,
    children: Vec<(&'static str, NewChild)>,
    window: Window,
    /// The options of a qcow2 node.
    qcow2: Qcow2Options,
    /// The node keeps its options and only inherits others.
    keeps: bool,
    /// What the node was told by its own name.
    told: Option<OpenOptions>,
    /// How often the reopening has come upon the node again.
    again: u32,
}

/// What a node in the queue has from its parent.
#[derive(Clone, Copy)]
struct Parentage<'a> {
    inherit: Inherit<'a>,
    /// The options that the parent was given, or that it keeps; what is not set is no new value for a child.
    set: Option<&'a CommonOptions>,
}

impl Parentage<'_> {
    const NONE: Parentage<'static> = Parentage { inherit: Inherit::Nothing, set: None };
}

/// `own` options, and the parent's where there are none.
fn inherited(own: &CommonOptions, parent: Option<&CommonOptions>) -> CommonOptions {
    let from = |field: fn(&CommonOptions) -> Option<bool>| field(own).or(parent.and_then(field));
    CommonOptions {
        read_only: from(|options| options.read_only),
        auto_read_only: from(|options| options.auto_read_only),
        direct: from(|options| options.direct),
        no_flush: from(|options| options.no_flush),
        force_share: from(|options| options.force_share),
        ..own.clone()
    }
}

/// The options of a node that keeps them: its own, the parent's new ones, or else those that have a value now.
fn kept(given: &Given, parent: Option<&CommonOptions>, now: &NodeOptions) -> CommonOptions {
    let all = CommonOptions {
        read_only: Some(now.read_only),
        auto_read_only: Some(now.auto_read_only),
        direct: Some(now.direct),
        no_flush: Some(now.no_flush),
        force_share: Some(now.force_share),
        ..CommonOptions::default()
    };
    inherited(&inherited(&given.common, parent), Some(given.set.as_ref().unwrap_or(&all)))
}

/// A change of the graph that can be undone.
enum Change {
    Moved { edge: Rc<Edge>, from: NodeId },
    Added(Rc<Edge>),
    Removed(Rc<Edge>),
}

impl Change {
    /// The node that has lost a parent by it.
    fn left(&self) -> Option<NodeId> {
        match self {
            Change::Moved { from, .. } => Some(*from),
            Change::Removed(edge) => Some(edge.child.get()),
            Change::Added(_) => None,
        }
    }
}

type Checked = Result<(), String>;

impl Block {
    /// Reopens all `nodes`, or none of them; the caller has drained everything.
    pub async fn reopen(self: &Rc<Self>, nodes: Vec<(Rc<Node>, OpenOptions)>) -> Checked {
        let mut queue = Vec::new();
        for (node, options) in &nodes {
            self.enqueue(node, Some(options), Parentage::NONE, &mut queue);
        }
        self.reopen_queue(queue).await
    }

    /// Makes a node read-only and leaves everything else as it is (`bdrv_reopen_set_read_only`).
    pub async fn reopen_read_only(self: &Rc<Self>, node: &Rc<Node>) -> Checked {
        let before = node.given.borrow().common.read_only;
        node.given.borrow_mut().common.read_only = Some(true);
        let mut queue = Vec::new();
        self.enqueue(node, None, Parentage::NONE, &mut queue);
        self.reopen_queue(queue).await.inspect_err(|_| node.given.borrow_mut().common.read_only = before)
    }

    /// Whatever comes of it, it is one change of the graph (`bdrv_reopen_multiple`).
    async fn reopen_queue(self: &Rc<Self>, queue: Vec<Entry>) -> Checked {
        let result = self.reopen_all(queue).await;
        self.graph_write_section().await;
        result
    }

    async fn reopen_all(self: &Rc<Self>, queue: Vec<Entry>) -> Checked {
        if self.quirks.reopen_counts_drains {
            for entry in &queue {
                for _ in 0..entry.again {
                    self.drained_begin(entry.node.id).await;
                }
            }
        }
        for entry in &queue {
            let (block, id) = (self.clone(), entry.node.id);
            let flushed = self.sim.run_coroutine("flush", async move { block.co_flush(id).await }).await;
            flushed.map_err(|error| format!("Error flushing drive: {error}"))?;
        }
        let mut changes = Vec::new();
        let mut result = Ok(());
        // Whose permissions may be others now: each node's, and then those of what it has left.
        let mut roots = Vec::new();
        for entry in &queue {
            let known = changes.len();
            result = self.prepare_reopen(entry, &mut changes).await;
            if result.is_err() {
                break;
            }
            roots.push(entry.node.id);
            roots.extend(changes[known..].iter().filter_map(Change::left));
        }
        let before: Vec<NodeOptions> = queue.iter().map(|entry| entry.node.options.borrow().clone()).collect();
        if result.is_ok() {
            result = self.refresh_reopened(&queue, roots);
        }
        if let Err(reason) = result {
            self.undo(changes, &queue, before);
            return Err(reason);
        }
        // What nodes stand on comes before them.
        queue.iter().rev().for_each(|entry| self.commit_reopen(entry));
        for left in changes.iter().filter_map(Change::left) {
            self.unref(left).await;
        }
        for entry in queue.iter().rev().filter(|entry| !entry.next.read_only) {
            let driver = entry.node.driver.borrow().clone();
            if let Driver::Qcow2(image) = driver {
                let block = self.clone();
                let finished = async move { image.finish_reopen(&block).await };
                self.sim.run_coroutine("load bitmaps", finished).await;
            }
        }
        Ok(())
    }

    /// Adds a node and the children that inherit from it.
    fn enqueue(&self, node: &Rc<Node>, options: Option<&OpenOptions>, parent: Parentage<'_>, queue: &mut Vec<Entry>) {
        let inherit = parent.inherit;
        let earlier = queue.iter().find(|entry| entry.node.id == node.id);
        let again = earlier.map_or(0, |entry| entry.again + 1);
        // What it was told before counts more than what its parent lets it keep.
        let told = options.cloned().or_else(|| earlier.and_then(|entry| entry.told.clone()));
        let options = told.as_ref();
        let mut given = match options {
            Some(options) => Given { common: options.common.clone(), own: options.own.clone(), set: None },
            None => node.given.borrow().clone(),
        };
        let set = match options {
            Some(options) => inherited(&options.common, parent.set),
            None => kept(&given, parent.set, &node.options.borrow()),
        };
        let next = match (options, inherit) {
            // A node that keeps its options keeps what it has inherited too.
            (None, Inherit::Nothing) => {
                let read_only = given.common.read_only.unwrap_or(node.is_read_only());
                NodeOptions { read_only, ..node.options.borrow().clone() }
            }
            // A child that keeps its options keeps what it has inherited, too, where its parent says nothing new.
            (None, inherit) => {
                let discard_unmap = given.common.discard_unmap.unwrap_or(node.discard_unmap());
                NodeOptions { discard_unmap, ..resolve(&set, inherit) }
            }
            // Unlike other options, `discard` does not go back to its default.
            (Some(_), inherit) => {
                let discard_unmap = given.common.discard_unmap.unwrap_or(node.discard_unmap());
                NodeOptions { discard_unmap, ..resolve(&given.common, inherit) }
            }
        };
        let window = match (options.map(|options| &options.driver), &*node.driver.borrow()) {
            (Some(DriverOptions::Raw { window, .. }), _) => *window,
            (None, Driver::Raw(raw)) => raw.window(),
            _ => Window::default(),
        };
        let qcow2 = match (options.map(|options| &options.driver), &*node.driver.borrow()) {
            (Some(DriverOptions::Qcow2 { options, .. }), _) => options.clone(),
            (None, Driver::Qcow2(image)) => image.options(),
            _ => Qcow2Options::default(),
        };
        given.set = Some(set.clone());
        let entry = Entry {
            node: node.clone(),
            given,
            next: next.clone(),
            driver: options.map_or(node.driver_name().unwrap_or(""), |options| options.driver.name()),
            children: options.map(|options| new_children(&options.driver)).unwrap_or_default(),
            window,
            qcow2,
            keeps: options.is_none(),
            told: options.cloned(),
            again,
        };
        let mut inherited = Vec::new();
        for edge in node.children.borrow().iter().rev() {
            let child = self.node(edge.child.get());
            if child.inherits_from.get() != Some(node.id) {
                continue;
            }
            let wanted = entry.children.iter().find(|(name, _)| *name == edge.name).map(|(_, wanted)| wanted);
            let options = match wanted {
                Some(NewChild::Name(name)) if **name == *child.name => None,
                Some(NewChild::Inline(options)) => Some(options.clone()),
                None if entry.keeps => None,
                _ => continue,
            };
            inherited.push((child, options, edge.role));
        }
        match queue.iter().position(|other| other.node.id == node.id) {
            Some(index) => queue[index] = entry,
            None => queue.push(entry),
        }
        for (child, options, role) in inherited {
            // A backing file is read-only whatever its overlay is.
            let below = CommonOptions { read_only: Some(true), auto_read_only: Some(false), ..set.clone() };
            let parent = match role {
                Role::Cow => Parentage { inherit: Inherit::Backing(&next), set: Some(&below) },
                _ => Parentage { inherit: Inherit::Child(&next), set: Some(&set) },
            };
            self.enqueue(&child, options.as_ref(), parent, queue);
        }
    }

    async fn prepare_reopen(self: &Rc<Self>, entry: &Entry, changes: &mut Vec<Change>) -> Checked {
        let node = &entry.node;
        entry.next.check_detect_zeroes()?;
        let driver = node.driver.borrow().clone();
        if matches!(driver, Driver::None) {
            self.abort("a node that corruption has left without a driver is reopened");
            return Err(String::new());
        }
        if matches!(driver, Driver::CopyBeforeWrite(_) | Driver::SnapshotAccess) {
            let (driver, name) = (node.driver_name().unwrap_or(""), &node.name);
            return Err(format!("Block format '{driver}' used by node '{name}' does not support reopening files"));
        }
        check_reset(node, &entry.given.own)?;
        if let (Driver::Raw(_), Some(file)) = (&driver, node.primary_child()) {
            entry.window.check(self.length(&self.node(file)))?;
        }
        if let Driver::Qcow2(image) = &driver {
            let (block, image, options) = (self.clone(), image.clone(), entry.qcow2.clone());
            let read_only = entry.next.read_only;
            let prepared = async move { image.prepare_reopen(&block, &options, read_only).await };
            let prepared = self.sim.run_coroutine("qcow2 reopen", prepared).await;
            let wordless = || format!("failed while preparing to reopen image '{}'", self.filename(node.id));
            prepared.map_err(|reason| reason.unwrap_or_else(wordless))?;
        }
        let child = |name: &str| entry.children.iter().find(|(known, _)| *known == name).map(|(_, child)| child);
        // It must be told of one that the image names, too, though it may not be open.
        let named = node.qcow2().is_some_and(|image| image.backing_name().is_some());
        if (named || node.backing().is_some()) && child("backing").is_none() && !entry.keeps {
            return Err(format!("backing is missing for '{}'", node.name));
        }
        self.change_child(node, "backing", child("backing"), changes).await?;
        self.change_child(node, "file", child("file"), changes).await?;
        self.check_left(entry)
    }

    /// Points a link at another node (`bdrv_reopen_parse_file_or_backing`).
    async fn change_child(
        &self,
        node: &Rc<Node>,
        name: &'static str,
        wanted: Option<&NewChild>,
        changes: &mut Vec<Change>,
    ) -> Checked {
        let wanted = match wanted {
            None | Some(NewChild::Inline(_)) => return Ok(()),
            Some(NewChild::None) => None,
            Some(NewChild::Name(wanted)) => Some(self.lookup(None, Some(wanted))?),
        };
        if let Some(wanted) = &wanted
            && self.reaches(wanted.id, node.id)
        {
            return Err(format!("Making '{}' a {name} child of '{}' would create a cycle", wanted.name, node.name));
        }
        let current = node.child(name);
        match (current, wanted) {
            (Some(edge), Some(wanted)) if edge.child.get() == wanted.id => {}
            (None, None) => {}
            (None, Some(_)) if name == "file" => {
                return Err(match node.filtered_child() {
                    None => "Cannot set file child to format node without file child".to_owned(),
                    Some(_) => {
                        let driver = node.driver_name().unwrap_or("");
                        format!("'{}' is a {driver} filter node that does not support a file child", node.name)
                    }
                });
            }
            (Some(edge), Some(wanted)) => {
                self.graph_write_section().await;
                let from = edge.child.get();
                self.reference(&self.node(from));
                self.redirect(&edge, wanted.id);
                changes.push(Change::Moved { edge, from });
            }
            (Some(edge), None) => {
                self.graph_write_section().await;
                self.unlink(&edge);
                changes.push(Change::Removed(edge));
            }
            (None, Some(wanted)) => {
                self.graph_write_section().await;
                let edge = Edge::new(name, Parent::Node(node.id), Role::Cow, wanted.id);
                self.link(&edge);
                self.reference(&wanted);
                changes.push(Change::Added(edge));
            }
        }
        Ok(())
    }

    /// What is left of the options must be as it was.
    fn check_left(&self, entry: &Entry) -> Checked {
        let node = &entry.node;
        let old = node.given.borrow();
        let mut left = Map::new();
        for (key, value) in &entry.given.own {
            if !is_mutable(node, key) {
                left.insert(key.clone(), value.clone());
            }
        }
        left.insert("driver".to_owned(), entry.driver.into());
        for (name, child) in &entry.children {
            match child {
                NewChild::Name(reference) => drop(left.insert((*name).to_owned(), reference.as_str().into())),
                NewChild::Inline(options) if !self.inherits(node, name) => {
                    left.insert(format!("{name}.driver"), options.driver.name().into());
                    for (key, value) in &options.own {
                        left.insert(format!("{name}.{key}"), value.clone());
                    }
                }
                _ => {}
            }
        }
        for (key, new) in qdict::in_order(&left) {
            let same = if key == "driver" {
                new.as_str() == node.driver_name()
            } else if let Some(edge) = node.child(key) {
                new.as_str() == Some(&*self.node(edge.child.get()).name)
            } else if key == "force-share" {
                // QEMU compares what has become a string with what is still a boolean.
                entry.keeps
            } else {
                old.own.get(key) == Some(new)
            };
            if !same {
                return Err(format!("Cannot change the option '{key}'"));
            }
        }
        Ok(())
    }

    fn inherits(&self, node: &Node, child: &str) -> bool {
        node.child(child).is_some_and(|edge| self.node(edge.child.get()).inherits_from.get() == Some(node.id))
    }

    /// Sets the options and asks whether everybody can live with them.
    fn refresh_reopened(&self, queue: &[Entry], mut roots: Vec<NodeId>) -> Checked {
        for entry in queue {
            let was_writable = !entry.node.is_read_only();
            *entry.node.options.borrow_mut() = entry.next.clone();
            entry.node.was_writable.set(was_writable);
        }
        if self.quirks.reopen_refreshes_last_first {
            roots.reverse();
        }
        let result = self.refresh_permissions(&roots);
        queue.iter().for_each(|entry| entry.node.was_writable.set(false));
        result
    }

    fn undo(&self, changes: Vec<Change>, queue: &[Entry], before: Vec<NodeOptions>) {
        for (entry, before) in queue.iter().zip(before) {
            *entry.node.options.borrow_mut() = before;
        }
        for change in changes.into_iter().rev() {
            match change {
                Change::Moved { edge, from } => {
                    self.redirect(&edge, from);
                    let node = self.node(from);
                    node.references.set(node.references.get() - 1);
                }
                Change::Removed(edge) => self.link(&edge),
                Change::Added(edge) => {
                    self.unlink(&edge);
                    let node = self.node(edge.child.get());
                    node.references.set(node.references.get() - 1);
                }
            }
        }
        let roots: Vec<NodeId> = queue.iter().map(|entry| entry.node.id).collect();
        // What was held before was held without a conflict.
        let _ = self.refresh_permissions(&roots);
    }

    fn commit_reopen(&self, entry: &Entry) {
        let node = &entry.node;
        *node.given.borrow_mut() = entry.given.clone();
        let driver = node.driver.borrow().clone();
        match driver {
            Driver::Raw(raw) => {
                raw.set_window(entry.window);
                self.look_at_length(node);
            }
            Driver::Blkdebug(_) if self.quirks.reopen_looks_at_length => self.look_at_length(node),
            Driver::Qcow2(image) => image.commit_reopen(entry.qcow2.clone(), entry.next.read_only),
            _ => {}
        }
    }
}

/// Options that a node was given and that are not given again must be of those that can be reset.
fn check_reset(node: &Node, new: &Map<String, Value>) -> Checked {
    for (key, _) in qdict::in_order(&node.given.borrow().own) {
        if !new.contains_key(key) && !is_mutable(node, key) {
            return Err(format!("Option '{key}' cannot be reset to its default value"));
        }
    }
    Ok(())
}

/// Whether the driver takes another value of the option while it runs (`mutable_opts`).
fn is_mutable(node: &Node, key: &str) -> bool {
    match &*node.driver.borrow() {
        Driver::Qcow2(_) => key != "force-share",
        Driver::Raw(_) => matches!(key, "offset" | "size"),
        _ => false,
    }
}

fn new_children(driver: &DriverOptions) -> Vec<(&'static str, NewChild)> {
    let of = |child: &ChildRef| match child {
        ChildRef::Name(name) => NewChild::Name(name.clone()),
        ChildRef::Inline(options) => NewChild::Inline((**options).clone()),
    };
    match driver {
        DriverOptions::File { .. } | DriverOptions::Null(_) => Vec::new(),
        DriverOptions::Raw { file, .. } | DriverOptions::SnapshotAccess { file } => vec![("file", of(file))],
        DriverOptions::Qcow2 { file, backing, .. } => {
            let mut children = vec![("file", of(file))];
            match backing {
                BackingRef::FromImage => {}
                BackingRef::None => children.push(("backing", NewChild::None)),
                BackingRef::Given(child) => children.push(("backing", of(child))),
            }
            children
        }
        DriverOptions::Blkdebug(options) => vec![("image", of(&options.image))],
        DriverOptions::CopyBeforeWrite { file, target, .. } => vec![("file", of(file)), ("target", of(target))],
        DriverOptions::Other { file, .. } => file.iter().map(|file| ("file", of(file))).collect(),
    }
}
