//! Guests: requests that come from devices and not through the monitor.
//!
//! While actors run concurrently, guest I/O must not wait for the monitor's turn: it goes through a backend of
//! its own on top of the node, above any filter, as a device's does. Nothing here is visible to QMP but that
//! the node is in use.

use std::rc::Rc;

use crate::block::{Backend, Driver, Node};

use super::machine::Machine;
use super::qemu_io::{parse, run_as_guest};

impl Machine {
    /// The backend of the guest disk at `node`, made when it is first used.
    pub async fn guest(self: &Rc<Self>, node: &str) -> Result<Rc<Backend>, String> {
        if let Some(backend) = self.guests.borrow().get(node) {
            return Ok(backend.clone());
        }
        let found = self.block.lookup(Some(node), Some(node))?;
        let top = self.top_filter(found);
        let backend = self.block.new_guest(node, top.id)?;
        self.guests.borrow_mut().insert(node.to_owned(), backend.clone());
        Ok(backend)
    }

    /// The filter on top of a node, where a guest's device would be.
    fn top_filter(&self, mut node: Rc<Node>) -> Rc<Node> {
        loop {
            let above = node.parents.borrow().iter().find_map(|edge| {
                let parent = self.block.node(edge.parent_node()?);
                let is_filter = matches!(&*parent.driver.borrow(), Driver::CopyBeforeWrite(_));
                (is_filter && edge.name == "file").then_some(parent)
            });
            match above {
                Some(parent) => node = parent,
                None => return node,
            }
        }
    }

    /// A guest's request in qemu-io's words; returns what the monitor would say.
    pub async fn guest_command(self: &Rc<Self>, node: &str, line: &str) -> String {
        let mut warnings = String::new();
        let command = match parse(&self.block.quirks, line, &mut warnings) {
            Ok(command) => command,
            Err(refused) => {
                self.block.print(refused.err + &refused.out);
                return warnings + &refused.said;
            }
        };
        match self.guest(node).await {
            Ok(backend) => {
                run_as_guest(&self.block, &backend, command).await;
                warnings
            }
            Err(reason) => format!("Error: {reason}\r\n"),
        }
    }

    /// Removes the guests' disks.
    pub async fn drop_guests(&self) {
        let guests = std::mem::take(&mut *self.guests.borrow_mut());
        for backend in guests.into_values() {
            self.block.delete_backend(&backend).await;
        }
    }
}
