//! `transaction`: actions that happen together or not at all.
//!
//! QEMU's rules (`qmp_transaction` in `blockdev.c`, `blockdev/transactions` later): drain everything, prepare
//! in order, then commit all or abort all that was prepared, last first; clean in the end. The order of commit
//! and clean is a matter of the version.

use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::bitmap::hbitmap::Bits;
use crate::job::JobTxn;
use crate::qmp::args::Args;
use crate::qmp::error::{QmpError, QmpResult};
use crate::qmp::machine::Machine;

use super::backup::{BackupAction, BackupArgs};
use super::bitmaps::{BitmapAdd, BitmapMerge, BitmapName, Found, MERGE_OF_NOTHING};
use super::snapshot::{SnapshotAction, SnapshotArgs};

/// An action as asked for.
enum Action {
    Abort,
    Add(BitmapAdd),
    Remove(BitmapName),
    Clear(BitmapName),
    Enable(BitmapName),
    Disable(BitmapName),
    Merge(BitmapMerge),
    Backup(Box<BackupArgs>),
    Snapshot(SnapshotArgs),
}

impl Action {
    fn merges_nothing(&self) -> bool {
        matches!(self, Action::Merge(merge) if merge.is_empty())
    }
}

/// What a prepared action needs for the rest of its life.
enum Prepared {
    Nothing,
    /// The bitmap and its name.
    Added(Found, String),
    Removed(Found),
    /// The bitmap's contents from before.
    Changed(Found, Bits),
    /// Whether a bitmap that was switched over was enabled before.
    Switched(Found, bool),
    Backup(BackupAction),
    Snapshot(SnapshotAction),
}

const TYPES: &[&str] = &[
    "abort",
    "block-dirty-bitmap-add",
    "block-dirty-bitmap-remove",
    "block-dirty-bitmap-clear",
    "block-dirty-bitmap-enable",
    "block-dirty-bitmap-disable",
    "block-dirty-bitmap-merge",
    "blockdev-backup",
    "drive-backup",
    "blockdev-snapshot",
    "blockdev-snapshot-sync",
];

/// Types that QEMU has and this machine has not.
const OTHER_TYPES: &[&str] = &["blockdev-snapshot-internal-sync"];

impl Machine {
    /// transaction (`qmp_transaction` in `blockdev.c`).
    pub(in crate::qmp) async fn transaction(self: &Rc<Self>, arguments: &Map<String, Value>) -> QmpResult {
        let args = Args::new(arguments);
        let mut actions = Vec::new();
        for (item, name) in args.list("actions")? {
            let action = Args::element(item, &name)?;
            actions.push(self.parse_action(&action)?);
        }
        let mut grouped = false;
        if let Some(properties) = args.opt_object("properties")? {
            let modes = [("individual", false), ("grouped", true)];
            grouped = properties.opt_enum("completion-mode", &modes)?.unwrap_or(false);
            properties.finish()?;
        }
        args.finish()?;
        if grouped && self.block.quirks.grouped_checked_first {
            for (action, kind) in &actions {
                self.check_grouped(action, kind)?;
            }
        }
        self.run_actions(&actions, grouped).await?;
        Ok(json!({}))
    }

    /// blockdev-backup or drive-backup: a transaction with one action (`blockdev_do_action` in `blockdev.c`).
    pub(in crate::qmp) async fn single_backup(
        self: &Rc<Self>,
        arguments: &Map<String, Value>,
        is_drive: bool,
    ) -> QmpResult {
        let args = BackupArgs::parse(&Args::new(arguments), is_drive, self.block.quirks.since_9)?;
        let action = (Action::Backup(Box::new(args)), "");
        self.run_actions(&[action], false).await?;
        Ok(json!({}))
    }

    /// blockdev-snapshot or blockdev-snapshot-sync: likewise (`qmp_blockdev_snapshot` in `blockdev.c`).
    pub(in crate::qmp) async fn single_snapshot(
        self: &Rc<Self>,
        arguments: &Map<String, Value>,
        makes_image: bool,
    ) -> QmpResult {
        let args = SnapshotArgs::parse(&Args::new(arguments), makes_image)?;
        self.run_actions(&[(Action::Snapshot(args), "")], false).await?;
        Ok(json!({}))
    }

    fn parse_action(&self, action: &Args<'_>) -> Result<(Action, &'static str), QmpError> {
        let word = action.str("type")?;
        let Some(kind) = TYPES.iter().find(|kind| **kind == word) else {
            if OTHER_TYPES.contains(&word) {
                return Err(format!("not modelled: action '{word}'; there are {}", TYPES.join(", ")).into());
            }
            return Err(action.bad_value("type", word));
        };
        let data = action.object("data")?;
        let parsed = match *kind {
            "abort" => {
                data.finish()?;
                Action::Abort
            }
            "block-dirty-bitmap-add" => Action::Add(BitmapAdd::parse(&data)?),
            "block-dirty-bitmap-remove" => Action::Remove(BitmapName::parse(&data)?),
            "block-dirty-bitmap-clear" => Action::Clear(BitmapName::parse(&data)?),
            "block-dirty-bitmap-enable" => Action::Enable(BitmapName::parse(&data)?),
            "block-dirty-bitmap-disable" => Action::Disable(BitmapName::parse(&data)?),
            "block-dirty-bitmap-merge" => Action::Merge(BitmapMerge::parse(&data)?),
            "blockdev-snapshot" => Action::Snapshot(SnapshotArgs::parse(&data, false)?),
            "blockdev-snapshot-sync" => Action::Snapshot(SnapshotArgs::parse(&data, true)?),
            other => {
                let args = BackupArgs::parse(&data, other == "drive-backup", self.block.quirks.since_9)?;
                Action::Backup(Box::new(args))
            }
        };
        action.finish()?;
        Ok((parsed, kind))
    }

    fn check_grouped(&self, action: &Action, kind: &str) -> Result<(), QmpError> {
        let is_exempt = matches!(action, Action::Abort) && !self.block.quirks.grouped_checked_first;
        if matches!(action, Action::Backup(_)) || is_exempt {
            return Ok(());
        }
        let transaction = if self.block.quirks.grouped_checked_first { "transaction" } else { "Transaction" };
        Err(format!("Action '{kind}' does not support {transaction} property completion-mode = grouped").into())
    }

    async fn run_actions(self: &Rc<Self>, actions: &[(Action, &'static str)], grouped: bool) -> Result<(), QmpError> {
        let txn = grouped.then(|| Rc::new(JobTxn::default()));
        self.block.drain_all().await;
        let mut prepared = Vec::new();
        let mut failure = None;
        for (action, kind) in actions {
            let checked = if grouped { self.check_grouped(action, kind) } else { Ok(()) };
            let (state, result) = match checked {
                Ok(()) => self.prepare(action, txn.clone()).await,
                Err(error) => (Prepared::Nothing, Err(error)),
            };
            prepared.push(state);
            if let Err(error) = result {
                failure = Some(error);
                break;
            }
        }
        if failure.is_none() && actions.iter().any(|(action, _)| action.merges_nothing()) {
            failure = Some(MERGE_OF_NOTHING.into());
        }
        let reverse = self.block.quirks.transaction_reverse;
        match failure {
            None => {
                for state in in_order(&prepared, reverse) {
                    self.commit(state).await;
                }
            }
            Some(_) => {
                for state in prepared.iter().rev() {
                    if let Err(lost) = self.abort(state).await {
                        failure = Some(lost);
                    }
                }
            }
        }
        for state in in_order(&prepared, reverse) {
            match state {
                Prepared::Backup(backup) => self.backup_clean(backup),
                Prepared::Snapshot(snapshot) => self.snapshot_clean(snapshot).await,
                _ => {}
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn prepare(self: &Rc<Self>, action: &Action, txn: Option<Rc<JobTxn>>) -> (Prepared, Result<(), QmpError>) {
        let done = match action {
            Action::Abort => Err("Transaction aborted using Abort action".into()),
            Action::Add(add) => self.bitmap_add(add).await.map(|found| Prepared::Added(found, add.name().to_owned())),
            Action::Remove(name) => self.bitmap_remove_prepare(name).await.map(|found| {
                self.edit(&found, |bitmap| {
                    bitmap.skip_store = true;
                    bitmap.busy = true;
                });
                Prepared::Removed(found)
            }),
            Action::Clear(name) => self.bitmap_clear(name).map(|(found, old)| Prepared::Changed(found, old)),
            Action::Enable(name) => return self.enable_prepare(name),
            Action::Disable(name) => self.bitmap_switch(name, false).map(|(found, was_enabled)| match was_enabled {
                true => Prepared::Switched(found, true),
                false => Prepared::Nothing,
            }),
            Action::Merge(merge) => self.bitmap_merge(merge).map(|(found, old)| match merge.is_empty() {
                true => Prepared::Nothing,
                false => Prepared::Changed(found, old),
            }),
            Action::Backup(args) => {
                let (backup, result) = self.backup_prepare(args, txn).await;
                return (backup.map_or(Prepared::Nothing, Prepared::Backup), result);
            }
            Action::Snapshot(args) => {
                let (snapshot, result) = self.snapshot_prepare(args).await;
                return (snapshot.map_or(Prepared::Nothing, Prepared::Snapshot), result);
            }
        };
        match done {
            Ok(prepared) => (prepared, Ok(())),
            Err(error) => (Prepared::Nothing, Err(error)),
        }
    }

    /// Its abort knows only whether the bitmap was enabled before: a bitmap that exists and may not be switched, such as
    /// one that is busy, counts as disabled before, and is disabled by the abort (`block_dirty_bitmap_enable_abort`).
    fn enable_prepare(&self, name: &BitmapName) -> (Prepared, Result<(), QmpError>) {
        match self.bitmap_switch(name, true) {
            Ok((_, true)) => (Prepared::Nothing, Ok(())),
            Ok((found, false)) => (Prepared::Switched(found, false), Ok(())),
            Err(error) => match self.find_bitmap(&name.node, &name.name) {
                Ok(found) => (Prepared::Switched(found, false), Err(error)),
                Err(_) => {
                    let why =
                        "not modelled: a transaction that enables a bitmap that does not exist, which crashes QEMU";
                    (Prepared::Nothing, Err(why.into()))
                }
            },
        }
    }

    async fn commit(&self, state: &Prepared) {
        match state {
            Prepared::Removed(found) => self.bitmap_release(found),
            Prepared::Backup(backup) => self.backup_commit(backup),
            Prepared::Snapshot(snapshot) => self.snapshot_commit(snapshot).await,
            Prepared::Nothing | Prepared::Added(..) | Prepared::Changed(..) | Prepared::Switched(..) => {}
        }
    }

    /// Undoes an action. A bitmap may be gone: a backup that fails gives the name of its bitmap to the successor if its
    /// mode is `always`.
    async fn abort(&self, state: &Prepared) -> Result<(), QmpError> {
        match state {
            Prepared::Added(found, name) if self.block.quirks.rollback_by_name => {
                self.block.still_there(found.0.id)?;
                let named = found.0.bitmaps.borrow().find(name);
                if let Some(id) = named {
                    self.bitmap_release(&(found.0.clone(), id));
                }
            }
            Prepared::Added(found, _) => {
                self.check_there(found)?;
                self.bitmap_release(found);
            }
            Prepared::Removed(found) => {
                self.block.still_there(found.0.id)?;
                self.edit(found, |bitmap| {
                    bitmap.skip_store = false;
                    bitmap.busy = false;
                });
            }
            Prepared::Changed(found, old) => {
                self.check_there(found)?;
                self.edit(found, |bitmap| bitmap.restore(old.clone()));
            }
            Prepared::Switched(found, was_enabled) => {
                self.check_there(found)?;
                self.edit(found, |bitmap| bitmap.disabled = !was_enabled);
            }
            Prepared::Backup(backup) => self.backup_abort(backup).await,
            Prepared::Snapshot(snapshot) => self.snapshot_abort(snapshot).await,
            Prepared::Nothing => {}
        }
        Ok(())
    }

    fn is_there(&self, found: &Found) -> bool {
        found.0.bitmaps.borrow().get(found.1).is_some()
    }

    fn check_there(&self, found: &Found) -> Result<(), QmpError> {
        self.block.still_there(found.0.id)?;
        match self.is_there(found) {
            true => Ok(()),
            false => Err("not modelled: the rollback of a bitmap that a backup of the same transaction has replaced, \
                          where QEMU uses memory that it has freed"
                .into()),
        }
    }
}

fn in_order(states: &[Prepared], reverse: bool) -> Vec<&Prepared> {
    let mut order: Vec<&Prepared> = states.iter().collect();
    if reverse {
        order.reverse();
    }
    order
}
