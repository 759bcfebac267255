//! What qemu-io prints about a request that is over (`print_report` in `qemu-io-cmds.c`).

use crate::block::Printed;
use crate::sim::Nanos;
use crate::store::Content;

use super::numbers::human;

/// A request as the report shows it.
pub(super) struct Report {
    /// `wrote`, `read`, `discard`.
    pub(super) what: &'static str,
    pub(super) offset: u64,
    pub(super) bytes: u64,
    /// Virtual time that it took, ns.
    pub(super) took: Nanos,
    pub(super) condensed: bool,
}

impl From<Report> for Printed {
    fn from(report: Report) -> Printed {
        Printed::later(move || report.text())
    }
}

impl Report {
    fn text(&self) -> String {
        // A rate needs a time; the shortest that real QEMU shows is a microsecond.
        let seconds = (self.took.max(1000)) as f64 / 1e9;
        let clock = clock(self.took);
        if self.condensed {
            let rate = self.bytes as f64 / seconds;
            let clock = fixed_clock(self.took);
            return format!("{},1,{clock},{rate:.3},{:.3}\n", self.bytes, 1.0 / seconds);
        }
        format!(
            "{} {}/{} bytes at offset {}\n{}, 1 ops; {clock} ({}/sec and {:.4} ops/sec)\n",
            self.what,
            self.bytes,
            self.bytes,
            self.offset,
            human(self.bytes),
            human((self.bytes as f64 / seconds) as u64),
            1.0 / seconds
        )
    }
}

fn clock(took: Nanos) -> String {
    let centis = took / 10_000_000;
    if centis < 100 { format!("00.{centis:02} sec") } else { fixed_clock(took) }
}

fn fixed_clock(took: Nanos) -> String {
    let centis = took / 10_000_000;
    let (seconds, rest) = (centis / 100, centis % 100);
    format!("{}:{:02}:{:02}.{rest:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A hex dump (`-v`).
pub(super) fn dump(content: &Content, offset: u64) -> String {
    let mut text = String::new();
    for (row, bytes) in content.to_vec().chunks(16).enumerate() {
        text.push_str(&format!("{:08x}:  ", offset + row as u64 * 16));
        for byte in bytes {
            text.push_str(&format!("{byte:02x} "));
        }
        text.push(' ');
        for byte in bytes {
            text.push(if byte.is_ascii_alphanumeric() { char::from(*byte) } else { '.' });
        }
        text.push('\n');
    }
    text
}
