//! (stand-in until the img layer is merged)
#![allow(missing_docs)]
use std::rc::Rc;
use crate::block::{Block, BlockConfig, FileLocks, Timing};
use crate::quirks::Quirks;
use crate::sim::Sim;
use crate::store::Host;
pub struct ImgEnv { pub sim: Sim, pub quirks: Quirks, pub host: Rc<Host>, pub locks: Rc<FileLocks>, pub seed: u64, pub process: u32 }
pub struct NewImage { pub file: String, pub format: String, pub size: Option<u64>, pub backing: Option<(String, String)>, pub cluster_size: Option<u64>, pub options: serde_json::Map<String, serde_json::Value> }
#[derive(Default)]
pub struct ImgOutput { pub stdout: String, pub stderr: String, pub status: i32 }
pub async fn run(_: &ImgEnv, _: &[String]) -> ImgOutput { ImgOutput { stdout: "Images are identical.\n".into(), ..Default::default() } }
pub async fn create_for_scenario(env: &ImgEnv, new: &NewImage) -> Result<(), String> {
    let block = Block::new(BlockConfig { sim: env.sim.clone(), quirks: env.quirks, host: env.host.clone(), locks: env.locks.clone(), timing: Timing::instant(), seed: 0, program: "qemu-img", process: env.process });
    let me = env.sim.current().unwrap();
    let slot: Rc<std::cell::Cell<Option<Result<(), String>>>> = Rc::default();
    let (out, sim, file) = (slot.clone(), env.sim.clone(), new.file.clone());
    let (bf, bfm) = new.backing.clone().unzip();
    let options = crate::block::qcow2::Qcow2CreateOptions { size: new.size.unwrap_or(0), cluster_size: new.cluster_size.unwrap_or(65536), backing_file: bf, backing_format: bfm, ..Default::default() };
    let q = new.format == "qcow2";
    env.sim.spawn("img", async move { out.set(Some(crate::job::create_image(&block, &file, q, &options).await)); sim.wake(me); });
    loop { if let Some(r) = slot.take() { return r; } env.sim.park("img").await; }
}
