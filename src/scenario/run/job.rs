//! `run-job`: follows a job from its creation to its end, as iotests' run_job does.

use serde_json::{Map, Value, json};

use crate::scenario::ast::{RunJob, Step};
use crate::scenario::backend::{Backend, Event, RunError};
use crate::scenario::json;

use super::events::line;
use super::{Runner, names};

/// How long each event of the job may take, in nanoseconds.
const TIMEOUT: u64 = 20_000_000_000;

/// Whether `event` is one that run_job listens to, for the job `id`.
fn concerns(event: &Event, id: &str) -> bool {
    let key = match &*event.name {
        "BLOCK_JOB_COMPLETED" | "BLOCK_JOB_CANCELLED" | "BLOCK_JOB_ERROR" | "BLOCK_JOB_READY" => "device",
        "BLOCK_JOB_PENDING" | "JOB_STATUS_CHANGE" => "id",
        _ => return false,
    };
    event.data.get(key).is_some_and(|value| value == id)
}

impl<B: Backend> Runner<B> {
    pub(super) async fn run_job(&self, step: &Step, job: &RunJob) -> Result<(), RunError> {
        let id: &str = &job.run_job;
        loop {
            self.announce(|| names::waiting(step));
            let event = self.take_event(TIMEOUT, |event| concerns(event, id)).await?;
            let Some(event) = event else {
                let message = format!("job '{id}' had no further event within 20s");
                return Err(RunError::failed(message));
            };
            if event.name != "JOB_STATUS_CHANGE" {
                self.log(step, &line(&event));
                continue;
            }
            match event.data.get("status").and_then(Value::as_str) {
                Some("aborting") => self.job_error(step, id).await?,
                Some("ready") => self.job_command(step, "job-complete", id).await?,
                Some("pending") if !job.auto_finalize => {
                    Box::pin(self.steps(&job.pre_finalize.0)).await?;
                    let command = if job.cancel { "job-cancel" } else { "job-finalize" };
                    self.job_command(step, command, id).await?;
                }
                Some("concluded") if !job.auto_dismiss => {
                    self.job_command(step, "job-dismiss", id).await?;
                }
                Some("null") => return Ok(()),
                _ => {}
            }
        }
    }

    /// Writes the error of a job that is still listed.
    async fn job_error(&self, step: &Step, id: &str) -> Result<(), RunError> {
        let reply = self.backend.execute("query-jobs", &Map::new()).await?;
        let jobs = reply.get("return").and_then(Value::as_array);
        for job in jobs.into_iter().flatten() {
            let error = job.get("error").and_then(Value::as_str);
            if let (true, Some(error)) = (job.get("id").is_some_and(|job| job == id), error) {
                self.log(step, &format!("Job failed: {error}"));
            }
        }
        Ok(())
    }

    async fn job_command(&self, step: &Step, command: &str, id: &str) -> Result<(), RunError> {
        let arguments = Map::from_iter([("id".to_owned(), json!(id))]);
        self.log(step, &json::command(command, &arguments, None));
        let reply = self.backend.execute(command, &arguments).await?;
        self.log(step, &json::dumps(&reply, None));
        Ok(())
    }
}
