//! `qemu-img check`: consistency of an image's metadata, and its repair (`img_check` in QEMU's `qemu-img.c`).
//!
//! The check itself is the qcow2 driver's; here is what is printed of it and the exit status.

use serde_json::{Map, Value, json};

use crate::block::qcow2::{CheckResult, Fix};
use crate::errno::Errno;

use super::args::{Opt, Parsed, Reader, long, opt, short};
use super::info::refuse_image_opts;
use super::json::pretty;
use super::options::{check_cache_mode, check_format};
use super::process::{Exit, How, Image, Outcome, Process, failure};

/// The subcommand's options.
pub(super) const OPTIONS: &[Opt] = &[
    opt("format", 'f', true),
    opt("repair", 'r', true),
    long("output", true),
    short("cache", 'T', true),
    short("quiet", 'q', false),
    opt("force-share", 'U', false),
    long("image-opts", false),
    long("object", true),
];

/// What the images of formats without a check end with.
const NOT_SUPPORTED: i32 = 63;

/// Runs the subcommand.
pub(super) async fn run(process: &Process, reader: &Reader<'_>, args: &[String]) -> Outcome<i32> {
    let parsed = reader.read(args)?;
    let fix = repair(process, reader, &parsed)?;
    let json = reader.json(&parsed)?;
    refuse_image_opts(&parsed)?;
    let filename = reader.one_file(&parsed)?;
    check_cache_mode(&parsed, "cache", "source cache")?;
    let format = parsed.get("format");
    format.map_or(Ok(()), check_format)?;
    let how = How { check: true, write: fix.any(), force_share: parsed.has("force-share"), ..How::default() };
    let image = process.open(filename, format, how).await?;
    let output = Printed { process, json, quiet: parsed.has("quiet") };
    let ended = process.told(output.check(&image, fix).await);
    process.close(image).await;
    ended
}

fn repair(process: &Process, reader: &Reader<'_>, parsed: &Parsed) -> Outcome<Fix> {
    match parsed.get("repair") {
        None => Ok(Fix::default()),
        Some("leaks") => Ok(Fix { leaks: true, errors: false }),
        Some("all") => Ok(Fix::ALL),
        Some(other) if process.quirks().img_new_usage => {
            Err(reader.usage(&format!("--repair (-r) expects 'leaks' or 'all' not '{other}'")))
        }
        Some(other) => Err(reader.usage(&format!("Unknown option value for -r (expecting 'leaks' or 'all'): {other}"))),
    }
}

/// How results are told.
struct Printed<'a> {
    process: &'a Process,
    json: bool,
    quiet: bool,
}

impl Printed<'_> {
    fn print(&self, text: &str) {
        if !self.quiet {
            self.process.print(text);
        }
    }

    async fn check(&self, image: &Image, fix: Fix) -> Outcome<i32> {
        let Some((mut result, mut outcome)) = self.once(image, fix).await else {
            let message = "This image format does not support checks".to_owned();
            return Err(Exit { message, status: NOT_SUPPORTED, ..Exit::default() });
        };
        let (leaks, corruptions) = (result.leaks_fixed, result.corruptions_fixed);
        if outcome.is_ok() && leaks + corruptions > 0 {
            if !self.json {
                self.print(&format!(
                    "The following inconsistencies were found and repaired:\n\n    {leaks} leaked clusters\n    \
                     {corruptions} corruptions\n\nDouble checking the fixed image now...\n"
                ));
            }
            if let Some((second, again)) = self.once(image, Fix::default()).await {
                outcome = again;
                result = CheckResult { leaks_fixed: leaks, corruptions_fixed: corruptions, ..second };
            }
        }
        outcome.map_err(|error| failure(format!("Check failed: {error}")))?;
        self.print(&if self.json { as_json(image, &result) } else { human(&result) });
        match result {
            _ if result.check_errors > 0 => Err(failure("Check failed")),
            _ if result.corruptions > 0 => Ok(2),
            _ if result.leaks > 0 => Ok(3),
            _ => Ok(0),
        }
    }

    /// One pass; none for a format without checks.
    async fn once(&self, image: &Image, fix: Fix) -> Option<(CheckResult, Result<(), Errno>)> {
        let qcow2 = image.node.qcow2()?;
        let block = self.process.block.clone();
        Some(self.process.co(async move { qcow2.check(&block, fix).await }).await)
    }
}

fn human(result: &CheckResult) -> String {
    let mut out = String::new();
    if result.corruptions + result.leaks + result.check_errors == 0 {
        out.push_str("No errors were found on the image.\n");
    }
    if result.corruptions > 0 {
        out.push_str(&format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n",
            result.corruptions
        ));
    }
    if result.leaks > 0 {
        out.push_str(&format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n",
            result.leaks
        ));
    }
    if result.check_errors > 0 {
        out.push_str(&format!("\n{} internal errors have occurred during the check.\n", result.check_errors));
    }
    if result.total_clusters > 0 && result.allocated_clusters > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        let (allocated, total) = (result.allocated_clusters, result.total_clusters);
        out.push_str(&format!(
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            percent(allocated, total),
            percent(result.fragmented_clusters, allocated),
            percent(result.compressed_clusters, allocated)
        ));
    }
    if result.image_end_offset > 0 {
        out.push_str(&format!("Image end offset: {}\n", result.image_end_offset));
    }
    out
}

fn as_json(image: &Image, result: &CheckResult) -> String {
    let mut map = Map::new();
    map.insert("filename".to_owned(), json!(image.filename));
    map.insert("format".to_owned(), json!(image.node.driver_name()));
    map.insert("check-errors".to_owned(), json!(result.check_errors));
    for (key, value) in [
        ("corruptions", result.corruptions),
        ("leaks", result.leaks),
        ("corruptions-fixed", result.corruptions_fixed),
        ("leaks-fixed", result.leaks_fixed),
        ("image-end-offset", result.image_end_offset),
        ("total-clusters", result.total_clusters),
        ("allocated-clusters", result.allocated_clusters),
        ("fragmented-clusters", result.fragmented_clusters),
        ("compressed-clusters", result.compressed_clusters),
    ] {
        if value > 0 {
            map.insert(key.to_owned(), json!(value));
        }
    }
    pretty(&Value::Object(map)) + "\n"
}
