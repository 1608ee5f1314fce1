//! D8: a build stays within its memory bound, counted by the allocator.
//!
//! The allocator counts for the whole process, so that this is a binary of its own with one test.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use tidegate_dataset::build::{BuildOptions, Builder, BuiltArtifact};
use tidegate_dataset::{Cancel, quiet};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches nothing
// but two atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `System.alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BOUND: usize = 6 << 20;

/// Rows in scattered key order; every tenth repeats one of a few keys (with its one value), and
/// some rows are long.
fn write_input(path: &Path, bytes: usize) {
    let mut out = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    writeln!(out, "id,name,amount,score,note").unwrap();
    let (mut written, mut n) = (0usize, 0u64);
    let mut row = Vec::new();
    while written < bytes {
        let id = if n % 10 == 0 { n / 10 % 7 } else { n.wrapping_mul(0x9e37_79b9_7f4a_7c15) };
        let hash = id.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let note = if id % 1000 == 8 { 60_000 } else { (hash % 150) as usize };
        row.clear();
        write!(row, "{id:020},name {},{},{}.5,", hash % 100_000, hash % 977, hash % 10_000).unwrap();
        row.resize(row.len() + note, b'a' + (hash % 26) as u8);
        row.push(b'\n');
        out.write_all(&row).unwrap();
        written += row.len();
        n += 1;
    }
    out.flush().unwrap();
}

fn build(input: &Path, work: PathBuf, memory_bytes: usize, partitions: u32) -> (BuiltArtifact, usize) {
    let mut options = BuildOptions::new(["id"], work);
    options.memory_bytes = memory_bytes;
    options.partitions = partitions;
    options.threads = 2;
    let before = NOW.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let artifact = Builder::new(options).build(&[input.to_path_buf()], &quiet, &Cancel::new()).unwrap();
    (artifact, PEAK.load(Ordering::SeqCst) - before)
}

#[test]
fn d8_a_build_of_64_times_its_memory_bound_stays_within_it() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.csv");
    write_input(&input, 64 * BOUND);
    let (small, peak) = build(&input, folder.path().join("small"), BOUND, 4);
    println!("peak {peak} bytes of {BOUND}");
    assert!(peak <= BOUND, "{peak} bytes were allocated, the bound is {BOUND}");
    assert!(small.manifest.duplicate_count > 100_000);

    let (ample, peak) = build(&input, folder.path().join("ample"), 1 << 30, 4);
    assert!(peak > 2 * BOUND, "only {peak} bytes: the bound makes no difference");
    assert_eq!(small.manifest, ample.manifest);
    for part in &small.manifest.parts {
        let bytes = |artifact: &BuiltArtifact| std::fs::read(artifact.folder.join(&part.name)).unwrap();
        assert!(bytes(&small) == bytes(&ample), "{}", part.name);
    }
}
