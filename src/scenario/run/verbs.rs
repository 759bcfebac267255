//! What each verb asks of the backend and writes to the transcript.

use std::rc::Rc;

use serde_json::{Map, Value};

use crate::scenario::ast::{
    Compare, Concurrently, Execute, ExpectBitmap, Image, LogMode, Match, QemuImg, QemuIo, Step, Verb, VmAction,
    WaitEvent, Workload,
};
use crate::scenario::backend::{Actor, Backend, ImageSpec, QemuImgOutput, RunError};
use crate::scenario::json::{command, dumps};
use crate::units::format_duration;

use super::events::{contains, line};
use super::{Runner, names};

/// The file of the image `name`, as transcripts and arguments have it.
fn file(name: &str) -> String {
    let prefix = "TEST_DIR/PID-";
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

impl<B: Backend> Runner<B> {
    /// Does `step`; `next` is the one behind it.
    pub(super) async fn step(&self, step: &Step, next: Option<&Step>) -> Result<(), RunError> {
        // Each on the heap: the frame of one must not be as large as that of the largest.
        match &*step.verb {
            Verb::Log(log) => self.log(step, &log.log.0),
            Verb::Image(image) => Box::pin(self.image(image)).await?,
            Verb::Vm(vm) => self.vm(vm.vm).await?,
            Verb::Execute(execute) => Box::pin(self.execute(step, execute)).await?,
            Verb::QemuIo(io) => Box::pin(self.qemu_io(step, io, next)).await?,
            Verb::RunJob(job) => Box::pin(self.run_job(step, job)).await?,
            Verb::WaitEvent(wait) => Box::pin(self.wait_event(step, wait)).await?,
            Verb::QueryBitmaps(_) => Box::pin(self.query_bitmaps(step)).await?,
            Verb::ExpectBitmap(expect) => Box::pin(self.expect_bitmap(step, expect)).await?,
            Verb::Compare(compare) => Box::pin(self.compare(step, compare)).await?,
            Verb::QemuImg(img) => Box::pin(self.qemu_img(step, img)).await?,
            Verb::Sleep(sleep) => self.backend.sleep(sleep.sleep.0).await?,
            Verb::Fault(fault) => self.backend.add_fault(&fault.fault).await?,
            Verb::Workload(workload) => Box::pin(self.workload(step, workload)).await?,
            Verb::QueryEvents(query) => {
                for event in self.new_events() {
                    if contains(&event.data, &query.matching) {
                        self.log(step, &line(&event));
                    }
                }
            }
            Verb::Concurrently(actors) => Box::pin(self.concurrently(actors)).await?,
        }
        Ok(())
    }

    async fn image(&self, image: &Image) -> Result<(), RunError> {
        let spec = ImageSpec {
            file: file(&image.image),
            format: image.format,
            size: image.size.map(|size| size.0),
            backing: image.backing.as_ref().map(|name| (file(name), image.backing_format)),
            cluster_size: image.cluster_size.map(|size| size.0),
            options: image.options.clone(),
        };
        self.backend.image(&spec).await
    }

    async fn vm(&self, action: VmAction) -> Result<(), RunError> {
        match action {
            VmAction::Launch => {
                self.backend.launch().await?;
                self.forget_events();
                Ok(())
            }
            VmAction::Shutdown => self.backend.shutdown().await,
            VmAction::Kill => self.backend.kill().await,
        }
    }

    async fn execute(&self, step: &Step, execute: &Execute) -> Result<(), RunError> {
        let indent = execute.indent.and_then(|indent| usize::try_from(indent).ok());
        if execute.log == LogMode::All {
            self.log(step, &command(&execute.execute, &execute.arguments, indent));
        }
        let reply = self.backend.execute(&execute.execute, &execute.arguments).await?;
        match (execute.log, reply.get("return")) {
            (LogMode::None, _) => {}
            (LogMode::Reply, Some(value)) => self.log(step, &dumps(value, indent)),
            _ => self.log(step, &dumps(&reply, indent)),
        }
        Ok(())
    }

    async fn qemu_io(&self, step: &Step, io: &QemuIo, next: Option<&Step>) -> Result<(), RunError> {
        let mut commands = io.command.iter().chain(io.commands.iter().flatten()).peekable();
        while let Some(command) = commands.next() {
            if let Some(following) = commands.peek() {
                self.announce(|| following.0.clone());
            } else {
                self.announce(|| next.map_or_else(names::end, names::step));
            }
            if io.log == LogMode::All {
                self.log(step, command);
            }
            let done = self.backend.qemu_io(&io.qemu_io, command).await?;
            if io.log == LogMode::None {
                continue;
            }
            if io.output {
                // The line with the rate depends on the clock.
                for text in done.output.into_text().lines().filter(|text| !is_rate(text)) {
                    self.log(step, text);
                }
            }
            self.log(step, &dumps(&done.reply, None));
        }
        Ok(())
    }

    async fn wait_event(&self, step: &Step, wait: &WaitEvent) -> Result<(), RunError> {
        let name: &str = &wait.wait_event;
        self.announce(|| names::waiting(step));
        let event =
            self.take_event(wait.timeout.0, |event| event.name == name && contains(&event.data, &wait.matching));
        let Some(event) = event.await? else {
            let timeout = format_duration(wait.timeout.0);
            let mut message = format!("no event {name}");
            if !wait.matching.is_empty() {
                message += &format!(" with {}", dumps(&Value::Object(wait.matching.clone()), None));
            }
            return Err(RunError::failed(format!("{message} within {timeout}")));
        };
        if wait.log != LogMode::None {
            self.log(step, &line(&event));
        }
        Ok(())
    }

    async fn query_bitmaps(&self, step: &Step) -> Result<(), RunError> {
        let bitmaps = self.backend.bitmaps().await?;
        self.log(step, &dumps(&Value::Object(Map::from_iter([("bitmaps".to_owned(), bitmaps.into())])), Some(2)));
        Ok(())
    }

    async fn expect_bitmap(&self, step: &Step, expect: &ExpectBitmap) -> Result<(), RunError> {
        let node: &str = &expect.expect_bitmap;
        let wanted = expect.name.as_deref().unwrap_or("");
        let bitmaps = self.backend.bitmaps().await?;
        let of_node = bitmaps.get(node).and_then(Value::as_array);
        let found = of_node.into_iter().flatten().find(|bitmap| {
            let name = bitmap.get("name").and_then(Value::as_str).unwrap_or("");
            let recording = bitmap.get("recording").and_then(Value::as_bool);
            name == wanted && (expect.recording.is_none() || recording == expect.recording)
        });
        let Some(bitmap) = found else {
            let name = if wanted.is_empty() { "(anonymous)" } else { wanted };
            let kind = match expect.recording {
                Some(true) => " that records",
                Some(false) => " that does not record",
                None => "",
            };
            return Err(RunError::failed(format!("node '{node}' has no bitmap '{name}'{kind}")));
        };
        let name = bitmap.get("name").and_then(Value::as_str).unwrap_or("(anonymous)");
        let number = |key| bitmap.get(key).and_then(Value::as_u64).unwrap_or(0);
        let have = number("count").checked_div(number("granularity")).unwrap_or(0);
        let want = expect.clusters;
        let verdict = if have == want { "OK!" } else { "ERROR!" };
        self.log(step, &format!("= Checking Bitmap {name} ="));
        self.log(step, &format!("expecting {want} dirty sectors; have {have}. {verdict}"));
        self.log(step, "");
        Ok(())
    }

    async fn compare(&self, step: &Step, compare: &Compare) -> Result<(), RunError> {
        let image = file(&compare.compare.image);
        let reference = file(&compare.compare.reference);
        if let Some(backing) = &compare.backing {
            let backing = file(backing);
            let format = compare.backing_format.word();
            let args = ["rebase", "-u", "-b", &backing, "-F", format, &image].map(str::to_owned);
            let done = self.backend.qemu_img(&args).await?;
            if done.status != 0 {
                let why = done.stderr.trim_end();
                return Err(RunError::failed(format!("qemu-img {}: {why}", args.join(" "))));
            }
        }
        let args = ["compare", &image, &reference].map(str::to_owned);
        let status = self.backend.qemu_img(&args).await?.status;
        let expected = if compare.expect == Match::Identical { 0 } else { 1 };
        let found = if status == 0 { "Identical" } else { "Mismatch" };
        let verdict = if status == expected { "OK!" } else { "ERROR!" };
        self.log(step, &format!("qemu_img compare \"{image}\" \"{reference}\" ==> {found}, {verdict}"));
        Ok(())
    }

    async fn qemu_img(&self, step: &Step, img: &QemuImg) -> Result<(), RunError> {
        let args: Vec<String> = img.qemu_img.iter().map(|arg| arg.to_string()).collect();
        if img.log == LogMode::All {
            self.log(step, &format!("qemu-img {}", args.join(" ")));
        }
        let QemuImgOutput { stdout, stderr, status } = self.backend.qemu_img(&args).await?;
        if img.log == LogMode::None {
            return Ok(());
        }
        let printed = stderr + &stdout;
        let printed = printed.trim_end_matches('\n');
        if !printed.is_empty() {
            self.log(step, printed);
        }
        if status != 0 {
            self.log(step, &format!("exit status {status}"));
        }
        Ok(())
    }

    async fn workload(&self, step: &Step, workload: &Workload) -> Result<(), RunError> {
        let done = self.backend.workload(workload).await?;
        if workload.log != LogMode::None {
            let summary = format!(
                "workload {}: {} requests, {} failed, {} bytes written, {} bytes read, {} mismatches",
                &*workload.workload, done.requests, done.failed, done.written, done.read, done.mismatches
            );
            self.log(step, &summary);
        }
        Ok(())
    }

    async fn concurrently(&self, concurrently: &Concurrently) -> Result<(), RunError> {
        let actors = concurrently.actors.iter().map(|(name, steps)| {
            let runner = Runner { actor: Some(Rc::from(&**name)), ..self.clone() };
            runner.announce(|| steps.0.first().map_or_else(names::end, names::step));
            let steps = steps.clone();
            let work: Actor = Box::pin(async move { runner.steps(&steps.0).await });
            (name.to_string(), work)
        });
        self.backend.concurrently(actors.collect()).await
    }
}

/// Whether qemu-io's line says how fast it was: `64 KiB, 1 ops; 00.00 sec (…)`.
fn is_rate(line: &str) -> bool {
    // As `qemu-io -C` writes it: bytes, operations, h:mm:ss.cc, and two rates.
    let is_condensed = |line: &str| {
        let fields: Vec<&str> = line.split(',').collect();
        fields.len() == 5
            && fields[2].contains(':')
            && fields.iter().all(|field| field.starts_with(|c: char| c.is_ascii_digit()))
    };
    line.contains(" ops; ") || is_condensed(line)
}
