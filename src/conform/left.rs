//! What a run leaves, as text that can be compared: bitmaps, and the data of raw images.
//!
//! Where actors run side by side the transcript says little; what counts is what they leave. Must never read a file while
//! a machine uses it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::scenario::Case;
use crate::scenario::ast::{QueryBitmaps, Step, Verb, VmAction};
use crate::store::Host;

/// In which pieces data is described, bytes.
const SECTOR: usize = 512;
/// What a qcow2 image begins with.
const QCOW2: &[u8] = b"QFI\xfb";

/// Lets a case that ends with a machine show all bitmaps, so that they are compared.
pub(super) fn show_bitmaps(case: &mut Case) {
    let vm = case.steps.iter().rev().find_map(|step| match &*step.verb {
        Verb::Vm(vm) => Some(vm.vm),
        _ => None,
    });
    if vm == Some(VmAction::Launch) {
        let mut steps = case.steps.to_vec();
        let verb = Verb::QueryBitmaps(QueryBitmaps { query_bitmaps: Default::default() });
        steps.push(Step { line: case.line, via: [].into(), label: None, verb: verb.into() });
        case.steps = steps.into();
    }
}

/// A transcript without what qemu-io says of the end of requests: all actors have one standard output, and who reads what of it
/// is chance.
pub(super) fn without_requests(transcript: &str) -> String {
    let is_end = |line: &&str| {
        let mut words = line.split(' ');
        let verb = matches!(words.next(), Some("read" | "wrote" | "discard"));
        let counts = verb && words.next().is_some_and(|count| count.contains('/'));
        counts || line.contains(" ops; ") || line.contains(" failed: ")
    };
    transcript.lines().filter(|line| !is_end(line)).map(|line| format!("{line}\n")).collect()
}

/// The raw images among the model's files.
pub(super) fn of_host(host: &Host) -> String {
    let read = |name: &String| {
        let store = host.open(name).ok()?;
        let data = store.read(0, store.len()).ok()?.to_vec();
        Some((Host::plain_name(name).to_owned(), data))
    };
    described(host.names().iter().filter_map(read).collect())
}

/// The raw images among the files of a real run.
pub(super) fn of_directory(dir: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(dir) else { return String::new() };
    let read = |path: &Path| {
        let name = path.file_name()?.to_str()?.strip_prefix("PID-")?.to_owned();
        Some((name, std::fs::read(path).ok()?))
    };
    let paths = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file());
    described(paths.filter_map(|path| read(&path)).collect())
}

/// One line an image: how many sectors of which byte follow each other.
fn described(images: BTreeMap<String, Vec<u8>>) -> String {
    let mut text = String::new();
    for (name, data) in images.iter().filter(|(_, data)| !data.starts_with(QCOW2)) {
        let mut runs: Vec<(usize, String)> = Vec::new();
        for sector in data.chunks(SECTOR) {
            let what = match sector.iter().all(|byte| byte == &sector[0]) {
                true => format!("{:#04x}", sector[0]),
                false => format!("{sector:02x?}"),
            };
            match runs.last_mut() {
                Some((count, last)) if *last == what => *count += 1,
                _ => runs.push((1, what)),
            }
        }
        let runs: Vec<String> = runs.into_iter().map(|(count, what)| format!("{count} x {what}")).collect();
        let _ = writeln!(text, "image {name}: {}", runs.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_io_says_of_the_end_of_requests_is_left_out() {
        let text = "read -P 1 0 64k\nread 65536/65536 bytes at offset 0\n64 KiB, X ops; XX:XX:XX.X\n{\"return\": \"\"}\n\
                    Pattern verification failed at offset 0, 65536 bytes\nwrote 512/512 bytes at offset 0\n";
        let kept = "read -P 1 0 64k\n{\"return\": \"\"}\nPattern verification failed at offset 0, 65536 bytes\n";
        assert_eq!(without_requests(text), kept);
    }

    #[test]
    fn images_are_described_by_their_sectors() {
        let mixed: Vec<u8> = (0..=255).chain(0..=255).collect();
        let images = BTreeMap::from([
            ("a".to_owned(), [vec![1; 1024], vec![0; 512]].concat()),
            ("b".to_owned(), [QCOW2, &[0; 508]].concat()),
            ("c".to_owned(), mixed),
            ("d".to_owned(), Vec::new()),
        ]);
        let text = described(images);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "image a: 2 x 0x01, 1 x 0x00");
        assert!(lines[1].starts_with("image c: 1 x [00, 01, "), "{}", lines[1]);
        assert_eq!(lines[2..], ["image d: "]);
    }
}
