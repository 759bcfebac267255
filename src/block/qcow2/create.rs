//! Creating an image: the same writes in the same order as QEMU.
//!
//! First a minimal image of size 0, which is then opened and grown like any other. QEMU's source:
//! `qcow2_co_create` in `block/qcow2.c`.

use std::rc::Rc;

use crate::block::{Block, Driver, NodeId, NodeOptions, Parent, Perm, Preallocation, ReqFlags, Role};
use crate::store::Content;

use super::Qcow2;
use super::header::{COMPAT_LAZY_REFCOUNTS, HEADER_BYTES, Header, INCOMPAT_COMPRESSION, MAGIC};
use super::options::{OpenFlags, Qcow2CreateOptions, Qcow2Options};
use super::table::prefix_content;

impl Qcow2 {
    /// Formats the file in `file`. The error is QEMU's text.
    pub async fn create(block: &Rc<Block>, file: NodeId, options: &Qcow2CreateOptions) -> Result<(), String> {
        check_options(options)?;
        let perm = Perm::CONSISTENT_READ | Perm::WRITE | Perm::RESIZE;
        let attached = block.new_backend(None, file, perm, Perm::ALL);
        block.graph_write_section_for_coroutine().await;
        let backend = attached?;
        let written = write_minimal_image(block, file, options).await;
        block.forget_backend(&backend);
        block.graph_write_section_for_coroutine().await;
        written?;
        // QEMU opens the new image twice: once to grow it, once more only to flush it.
        with_temporary_node(block, file, async |image: &Rc<Qcow2>| image.populate(block, options).await).await?;
        with_temporary_node(block, file, async |_: &Rc<Qcow2>| Ok(())).await
    }

    async fn populate(self: &Rc<Self>, block: &Rc<Block>, options: &Qcow2CreateOptions) -> Result<(), String> {
        let could_not = |what: &str, error| format!("Could not {what}: {error}");
        let allocated = self.alloc_clusters(block, 3 * self.geo.cluster_size()).await;
        match allocated {
            Ok(0) => {}
            Ok(_) => return Err("Huh, first cluster in empty image is already in use?".to_owned()),
            Err(error) => {
                return Err(format!("Could not allocate clusters for qcow2 header and refcount table: {error}"));
            }
        }
        let updated = self.update_header(block).await;
        updated.map_err(|error| could_not("update qcow2 header", error))?;
        let refused = |text: String| format!("Could not resize image: {text}");
        crate::block::check_length(options.size).map_err(refused)?;
        let resized = self.truncate(block, options.size, options.preallocation).await;
        resized.map_err(refused)?;
        if let Some(backing) = &options.backing_file {
            let format = options.backing_format.as_deref();
            let changed = self.change_backing(block, Some(backing), format).await;
            changed.map_err(|error| {
                let format = format.unwrap_or("");
                format!("Could not assign backing file '{backing}' with format '{format}': {error}")
            })?;
        }
        Ok(())
    }
}

/// Changes of the graph that opening a temporary node takes, with a backend on top.
const CHANGES_TO_OPEN: usize = 4;
/// Changes of the graph that closing it takes.
const CHANGES_TO_CLOSE: usize = 2;

/// Opens the image for a moment in a node of its own, without a backing file.
async fn with_temporary_node(
    block: &Rc<Block>,
    file: NodeId,
    work: impl AsyncFnOnce(&Rc<Qcow2>) -> Result<(), String>,
) -> Result<(), String> {
    let node = block.new_node(None, NodeOptions::default())?;
    let attached = block.attach(Parent::Node(node.id), "file", Role::Storage, file, None);
    let edge = attached.inspect_err(|_| block.remove_node(node.id))?;
    for _ in 0..CHANGES_TO_OPEN {
        block.graph_write_section_for_coroutine().await;
    }
    let result = match Qcow2::open(block, node.id, &edge, &Qcow2Options::default(), OpenFlags::default()).await {
        Ok(image) => {
            *node.driver.borrow_mut() = Driver::Qcow2(image.clone());
            let result = work(&image).await;
            // Like the closing of any node: its flush, then the driver's own.
            let _ = image.flush_to_os(block).await;
            let _ = block.co_flush(file).await;
            image.close(block).await;
            *node.driver.borrow_mut() = Driver::None;
            result
        }
        Err(text) => Err(text),
    };
    for _ in 0..CHANGES_TO_CLOSE {
        block.graph_write_section_for_coroutine().await;
    }
    block.let_go(&edge);
    block.remove_node(node.id);
    result
}

/// Checks options against each other, in QEMU's order.
fn check_options(options: &Qcow2CreateOptions) -> Result<(), String> {
    let v3 = "compatibility level 1.1 and above (use version=v3 or greater)";
    if !options.size.is_multiple_of(512) {
        return Err("Image size must be a multiple of 512 bytes".to_owned());
    }
    let cluster = options.cluster_size;
    if !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster) {
        return Err("Cluster size must be a power of two between 512 and 2048k".to_owned());
    }
    if options.extended_l2 {
        if cluster < 16384 {
            return Err("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes".to_owned());
        }
        if options.version < 3 {
            return Err(format!("Extended L2 entries are only supported with {v3}"));
        }
        return Err("backsim does not support extended L2 entries".to_owned());
    }
    if options.backing_file.is_some() && options.preallocation != Preallocation::Off {
        let text = "Backing file and preallocation can only be used at the same time if extended_l2 is on";
        return Err(text.to_owned());
    }
    if options.backing_format.is_some() && options.backing_file.is_none() {
        return Err("Backing format cannot be used without backing file".to_owned());
    }
    if options.version < 3 && options.lazy_refcounts {
        return Err(format!("Lazy refcounts only supported with {v3}"));
    }
    if !options.refcount_bits.is_power_of_two() || options.refcount_bits > 64 {
        return Err("Refcount width must be a power of two and may not exceed 64 bits".to_owned());
    }
    if options.version < 3 && options.refcount_bits != 16 {
        let text = "Different refcount widths than 16 bits require compatibility level 1.1 or above";
        return Err(format!("{text} (use version=v3 or greater)"));
    }
    if options.version < 3 && options.zstd {
        return Err(format!("Non-zlib compression type is only supported with {v3}"));
    }
    Ok(())
}

/// An image of size 0: header, refcount table, one empty refcount block.
async fn write_minimal_image(block: &Rc<Block>, file: NodeId, options: &Qcow2CreateOptions) -> Result<(), String> {
    let cluster = options.cluster_size;
    let header = Header {
        magic: MAGIC,
        version: options.version,
        cluster_bits: cluster.trailing_zeros(),
        refcount_table_offset: cluster,
        refcount_table_clusters: 1,
        refcount_order: options.refcount_bits.trailing_zeros(),
        header_length: HEADER_BYTES as u32,
        incompatible: if options.zstd { INCOMPAT_COMPRESSION } else { 0 },
        compatible: if options.lazy_refcounts { COMPAT_LAZY_REFCOUNTS } else { 0 },
        compression_type: options.zstd.into(),
        ..Header::default()
    };
    let content = prefix_content(header.encode(), cluster);
    let written = block.co_pwrite(file, 0, content, ReqFlags::NONE).await;
    written.map_err(|error| format!("Could not write qcow2 header: {error}"))?;
    // The refcount table and, behind it, the block that its only entry refers to.
    let table = Content::from_bytes((2 * cluster).to_be_bytes()).concat(Content::zeros(2 * cluster - 8));
    let written = block.co_pwrite(file, cluster, table, ReqFlags::NONE).await;
    written.map_err(|error| format!("Could not write refcount table: {error}"))
}
