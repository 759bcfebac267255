//! Drained sections, and what must not happen in them: in a section nothing begins and nothing is under way.
//!
//! What a command does itself while it drains, such as opening a node anew, is its own affair; a job's copies never are.

use std::rc::Rc;

use super::request::Request;
use super::violation::{Breach, Violation};

/// The sections that are open.
#[derive(Default)]
pub struct Drained {
    /// Nodes in sections of their own, each as often as it is in one, and whose sections these are.
    nodes: Vec<(Rc<str>, Option<Rc<str>>)>,
    /// Sections of all nodes.
    of_all: u32,
}

impl Drained {
    /// A section of all nodes has begun, or is about to end.
    pub fn all(&mut self, begins: bool) {
        self.of_all = if begins { self.of_all + 1 } else { self.of_all.saturating_sub(1) };
    }

    /// A section of a node is about to end.
    pub fn ends(&mut self, node: &str) {
        if let Some(at) = self.nodes.iter().position(|(other, _)| **other == *node) {
            self.nodes.remove(at);
        }
    }

    /// A section of a node has begun, on somebody's behalf; `requests` are under way.
    pub fn begins(&mut self, node: &Rc<str>, owner: &Option<Rc<str>>, requests: &[Request]) -> Option<Violation> {
        self.nodes.push((node.clone(), owner.clone()));
        let request = requests.iter().find(|request| request.node == *node && request.operation != "flush")?;
        let text = format!("node {node} counts as drained with a {} of it under way", request.operation);
        Some(Violation::new(Breach::NotDrained, node, text))
    }

    /// A guest's request begins.
    pub fn judge_guest(&self, disk: &Rc<str>, operation: &str) -> Option<Violation> {
        let text = || format!("a guest's {operation} of disk {disk} begins while all nodes are drained");
        (self.of_all > 0).then(|| Violation::new(Breach::NotDrained, disk, text()))
    }

    /// A request to a node begins.
    pub fn judge(&self, request: &Request) -> Option<Violation> {
        let minds = |(node, owner): &(Rc<str>, Option<Rc<str>>)| {
            *node == request.node && (*owner != request.owner || request.is_a_jobs())
        };
        if request.operation == "flush" || !self.nodes.iter().any(minds) {
            return None;
        }
        let text = format!("a {} of node {} begins in a drained section of it", request.operation, request.node);
        Some(Violation::new(Breach::NotDrained, &request.node, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(operation: &'static str, owner: &str) -> Request {
        Request { operation, owner: Some(owner.into()), ..Request::of("disk") }
    }

    #[test]
    fn only_who_drains_may_go_on_and_no_job() {
        let (mut drained, disk) = (Drained::default(), "disk".into());
        assert!(drained.begins(&disk, &Some("client".into()), &[request("flush", "guest")]).is_none());
        assert!(drained.judge(&request("write", "client")).is_none());
        assert!(drained.judge(&request("flush", "guest")).is_none());
        assert!(drained.judge(&request("write", "guest")).is_some());
        drained.ends("disk");
        assert!(drained.judge(&request("write", "guest")).is_none());
        assert!(drained.begins(&disk, &Some("job job0".into()), &[request("read", "guest")]).is_some());
        assert!(drained.judge(&request("read", "job job0")).is_some());
    }

    #[test]
    fn guests_wait_while_all_is_drained() {
        let (mut drained, disk) = (Drained::default(), "disk".into());
        drained.all(true);
        drained.all(true);
        drained.all(false);
        assert!(drained.judge_guest(&disk, "read").is_some());
        drained.all(false);
        assert!(drained.judge_guest(&disk, "read").is_none());
    }
}
