//! How fast a build is, and how fast look-ups are, each with a baseline of the same run.
//!
//! `TIDEGATE_BENCH_INPUT_MB` (64) is the size of the CSV that is built, `TIDEGATE_BENCH_MEMORY_MB`
//! (256) the build's memory bound, `TIDEGATE_BENCH_KEYS` (1 000 000) the number of keys that are
//! looked up, with values of 100 bytes. Figures are medians of several rounds; ratios are the
//! figures to go by, for they move less with the machine.
//!
//! With `TIDEGATE_BENCH_BIG_GIB` set (8 is what is wanted) one large build takes the place of all of that: so much CSV under
//! 512 MiB of memory, measured as the most that the process ever had resident. The input is kept compressed, a few percent
//! of its size; the build's own folder takes about as much room as the input, in `TMPDIR`.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::time::Instant;

use heed::types::Bytes;
use heed::{Database, EnvOpenOptions, PutFlags};
use tidegate_dataset::build::{BuildOptions, Builder, BuiltArtifact};
use tidegate_dataset::index::{Index, IndexBuilder};
use tidegate_dataset::key::KeyBytes;
use tidegate_dataset::{Cancel, infer_schema, quiet};

const ROUNDS: usize = 3;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A small generator, so that every run has the same input.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }
}

/// How long this thread was on a processor so far, in seconds: what other work on the machine does
/// not lengthen.
fn processor_seconds() -> f64 {
    let status = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = status.split(' ').next().and_then(|text| text.parse::<f64>().ok());
    nanoseconds.map_or(f64::NAN, |nanoseconds| nanoseconds / 1e9)
}

/// As [`seconds`], but on the processor.
fn busy_seconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = processor_seconds();
    let result = work();
    (processor_seconds() - start, result)
}

fn seconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

/// The most memory that the process ever had resident, in MiB.
fn peak_resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

/// Rows like those of a feature table: an id, texts, numbers, some cells empty.
fn write_table(path: &Path, bytes: u64) {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    writeln!(out, "id,name,city,country,elevation,lat,lon,zone,active").unwrap();
    let (mut random, mut written, mut row) = (Random(1), 0u64, Vec::new());
    while written < bytes {
        let r = random.next();
        row.clear();
        let zone = ["Europe/Berlin", "America/Chicago", "", "Asia/Tokyo"][(r >> 40) as usize % 4];
        writeln!(
            row,
            "{r:016x},\"Field number {}\",City {},{},{},{}.{:06},-{}.{:06},{zone},{}",
            r % 100_000,
            r % 5_000,
            ["US", "DE", "JP", "GB"][(r >> 20) as usize % 4],
            r % 4_000,
            r % 90,
            r % 999_983,
            r % 180,
            r % 999_979,
            r % 2 == 0,
        )
        .unwrap();
        out.write_all(&row).unwrap();
        written += row.len() as u64;
    }
    out.flush().unwrap();
}

/// The baseline of the build: every cell of the file parsed and looked at, and no more.
fn parse_only(path: &Path) -> u64 {
    let mut file = File::open(path).unwrap();
    let mut parser = csv_core::Reader::new();
    let (mut buffer, mut cell) = (vec![0u8; 64 * 1024], vec![0u8; 64 * 1024]);
    let mut sum = 0u64;
    loop {
        let filled = file.read(&mut buffer).unwrap();
        if filled == 0 {
            return sum;
        }
        let mut position = 0;
        while position < filled {
            let (_, read, written) = parser.read_field(&buffer[position..filled], &mut cell);
            position += read;
            sum = sum.wrapping_add(written as u64);
        }
    }
}

fn build(options: BuildOptions, input: &Path) -> BuiltArtifact {
    Builder::new(options).build(&[input.to_path_buf()], &quiet, &Cancel::new()).unwrap()
}

fn bench_build(folder: &Path) {
    let input_mb = setting("TIDEGATE_BENCH_INPUT_MB", 64);
    let memory_mb = setting("TIDEGATE_BENCH_MEMORY_MB", 256);
    let input = folder.join("table.csv");
    write_table(&input, input_mb * 1_000_000);
    let megabytes = std::fs::metadata(&input).unwrap().len() as f64 / 1e6;
    let keys = [String::from("id")];
    let (mut parsing, mut inferring, mut building) = (Vec::new(), Vec::new(), Vec::new());
    let mut artifact_bytes = 0;
    for _ in 0..ROUNDS {
        parsing.push(megabytes / busy_seconds(|| black_box(parse_only(&input))).0);
        let (time, inferred) = busy_seconds(|| infer_schema(std::slice::from_ref(&input), &keys).unwrap());
        inferring.push(megabytes / time);
        let mut options = BuildOptions::new(keys.clone(), folder.join("build"));
        options.threads = 1;
        options.memory_bytes = (memory_mb as usize) << 20;
        options.schema = Some(inferred.schema);
        let (time, artifact) = busy_seconds(|| build(options, &input));
        building.push(megabytes / time);
        artifact_bytes = artifact.manifest.bytes;
    }
    let (parse, infer, whole) = (median(parsing), median(inferring), median(building));
    println!("build, {megabytes:.0} MB of CSV, memory bound {memory_mb} MiB, by the processor time of its one thread");
    println!("  baseline: csv-core, cells only  {parse:8.1} MB/s");
    println!("  first pass: schema and digest   {infer:8.1} MB/s   {:.2} × baseline", infer / parse);
    println!("  second pass: artifact           {whole:8.1} MB/s   {:.2} × baseline", whole / parse);
    let both = 1.0 / (1.0 / infer + 1.0 / whole);
    println!("  both passes                     {both:8.1} MB/s   (wanted: at least 40)");
    println!("  artifact {:.1} MB, peak resident {} MiB", artifact_bytes as f64 / 1e6, peak_resident_mib());
    std::fs::remove_file(&input).unwrap();
    std::fs::remove_dir_all(folder.join("build")).unwrap();
}

/// The most that the process may ever have resident during the large build, in MiB.
const BIG_RESIDENT_MIB_MAX: u64 = 512;

/// Rows with a key of their own each, and as much repetition as feature tables have.
fn write_big_table(path: &Path, bytes: u64) -> u64 {
    let file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut out = zstd::Encoder::new(file, 1).unwrap();
    let header = b"id,name,city,country,elevation,lat,lon,zone,active\n";
    out.write_all(header).unwrap();
    let (mut written, mut number, mut row) = (header.len() as u64, 0_u64, Vec::new());
    while written < bytes {
        // Odd and so without a common divisor with the number of ids: each comes once, in an order without any.
        let id = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
        number += 1;
        row.clear();
        let (a, b) = (number % 4_000, number % 180);
        writeln!(
            row,
            "{id:012x},\"Field number {}\",City {},{},{a},{}.{:06},-{b}.{:06},{},{}",
            number % 100_000,
            number % 5_000,
            ["US", "DE", "JP", "GB"][number as usize % 4],
            number % 90,
            number % 999_983,
            number % 999_979,
            ["Europe/Berlin", "America/Chicago", "", "Asia/Tokyo"][number as usize / 7 % 4],
            number.is_multiple_of(2),
        )
        .unwrap();
        out.write_all(&row).unwrap();
        written += row.len() as u64;
    }
    out.finish().unwrap().flush().unwrap();
    written
}

fn bench_big_build(folder: &Path, gib: u64) {
    let input = folder.join("big.csv.zst");
    let bytes = write_big_table(&input, gib << 30);
    let megabytes = bytes as f64 / 1e6;
    // The baseline: what has to be done at the very least, with memory for one buffer.
    let (time, read) = seconds(|| {
        let mut decoder = zstd::Decoder::new(File::open(&input).unwrap()).unwrap();
        std::io::copy(&mut decoder, &mut std::io::sink()).unwrap()
    });
    assert_eq!(read, bytes);
    println!(
        "large build: {megabytes:.0} MB of CSV, kept as {:.0} MB of zstd",
        std::fs::metadata(&input).unwrap().len() as f64 / 1e6
    );
    println!(
        "  baseline: decompressed and dropped {:8.1} MB/s, peak resident {} MiB",
        megabytes / time,
        peak_resident_mib()
    );
    let keys = [String::from("id")];
    let (inferring, inferred) = seconds(|| infer_schema(std::slice::from_ref(&input), &keys).unwrap());
    let mut options = BuildOptions::new(keys, folder.join("build"));
    options.memory_bytes = 256 << 20;
    options.partitions = 64;
    options.schema = Some(inferred.schema);
    let (building, artifact) = seconds(|| build(options, &input));
    let peak = peak_resident_mib();
    println!("  first pass                         {:8.1} MB/s", megabytes / inferring);
    println!("  second pass                        {:8.1} MB/s", megabytes / building);
    println!(
        "  {} records, artifact {:.0} MB; peak resident {peak} MiB, {:.3} × the input (wanted: at most {BIG_RESIDENT_MIB_MAX})",
        artifact.manifest.record_count,
        artifact.manifest.bytes as f64 / 1e6,
        peak as f64 * 1_048_576.0 / bytes as f64
    );
    assert!(peak <= BIG_RESIDENT_MIB_MAX, "{peak} MiB were resident");
}

struct Latencies {
    p50_ns: f64,
    p99_ns: f64,
    per_second: f64,
}

/// Latencies one by one, then throughput without a clock between look-ups. The keys lie in memory
/// in the order in which they are looked up, so that fetching them costs next to nothing.
fn measure(keys: &[KeyBytes], mut get: impl FnMut(&KeyBytes) -> u64) -> Latencies {
    let mut sum = 0u64;
    let mut latencies: Vec<u32> = Vec::with_capacity(keys.len());
    for key in keys {
        let start = Instant::now();
        sum = sum.wrapping_add(get(key));
        latencies.push(start.elapsed().as_nanos() as u32);
    }
    let (time, ()) = seconds(|| {
        for key in keys {
            sum = sum.wrapping_add(get(key));
        }
    });
    black_box(sum);
    latencies.sort_unstable();
    Latencies {
        p50_ns: f64::from(latencies[latencies.len() / 2]),
        p99_ns: f64::from(latencies[latencies.len() * 99 / 100]),
        per_second: keys.len() as f64 / time,
    }
}

fn summarise(rounds: &[Latencies]) -> Latencies {
    let of = |figure: fn(&Latencies) -> f64| median(rounds.iter().map(figure).collect());
    Latencies { p50_ns: of(|l| l.p50_ns), p99_ns: of(|l| l.p99_ns), per_second: of(|l| l.per_second) }
}

fn write_records(path: &Path, count: u64) -> Vec<String> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    writeln!(out, "key,value").unwrap();
    let mut random = Random(7);
    let mut keys = Vec::with_capacity(count as usize);
    let mut value = String::new();
    for _ in 0..count {
        let key = format!("{:016x}", random.next());
        value.clear();
        while value.len() < 100 {
            value.push_str(&format!("{:016x}", random.next()));
        }
        value.truncate(100);
        writeln!(out, "{key},{value}").unwrap();
        keys.push(key);
    }
    out.flush().unwrap();
    keys
}

fn bench_look_ups(folder: &Path) {
    let count = setting("TIDEGATE_BENCH_KEYS", 1_000_000);
    let input = folder.join("records.csv");
    let keys = write_records(&input, count);
    let mut options = BuildOptions::new(["key"], folder.join("work"));
    options.threads = 1;
    let artifact = build(options, &input);
    let (time, index) = seconds(|| {
        IndexBuilder::new(folder.join("index"))
            .memory_bytes(256 << 20)
            .build(&artifact.folder, &artifact.manifest, &quiet, &Cancel::new())
            .unwrap()
    });
    println!(
        "index of {count} keys with values of 100 bytes: built in {time:.1} s, {:.0} MB",
        index.file_bytes() as f64 / 1e6
    );

    let environment_folder = folder.join("lmdb");
    std::fs::create_dir(&environment_folder).unwrap();
    let (time, (environment, database)) = seconds(|| fill_lmdb(&environment_folder, &index, &keys));
    println!("LMDB with the same records: filled in {time:.1} s");

    let look_ups = 1_000_000;
    let mut random = Random(3);
    let wanted: Vec<KeyBytes> =
        (0..look_ups).map(|_| index.key(&keys[(random.next() % count) as usize]).unwrap()).collect();
    let transaction = environment.read_txn().unwrap();
    // A round to fault all pages in, then rounds in turns.
    let of_index = |key: &KeyBytes| {
        let value = index.get(key).unwrap().unwrap();
        u64::from(value[value.len() - 1])
    };
    let of_lmdb = |key: &KeyBytes| {
        let value = database.get(&transaction, key.as_bytes()).unwrap().unwrap();
        u64::from(value[value.len() - 1])
    };
    for key in &keys {
        let key = index.key(key).unwrap();
        black_box(of_index(&key) + of_lmdb(&key));
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        theirs.push(measure(&wanted, of_lmdb));
        ours.push(measure(&wanted, of_index));
    }
    let batches = median((0..ROUNDS).map(|_| batch_throughput(&wanted, &index)).collect());
    let (ours, theirs) = (summarise(&ours), summarise(&theirs));
    println!("look-ups of random keys, one thread");
    for (name, l) in [("baseline: LMDB", &theirs), ("index", &ours)] {
        println!("  {name:<16} p50 {:6.0} ns   p99 {:6.0} ns   {:6.2} M/s", l.p50_ns, l.p99_ns, l.per_second / 1e6);
    }
    println!("  p50        {:.2} × baseline (wanted: at most 0.5)", ours.p50_ns / theirs.p50_ns);
    println!("  p99        {:.2} × baseline (wanted: at most 0.6)", ours.p99_ns / theirs.p99_ns);
    println!("  throughput {:.2} × baseline (wanted: at least 3)", ours.per_second / theirs.per_second);
    println!("  in batches of 100: {:.2} M/s, {:.2} × baseline", batches / 1e6, batches / theirs.per_second);
}

/// Look-ups per second in batches of a hundred.
fn batch_throughput(keys: &[KeyBytes], index: &Index) -> f64 {
    let mut sum = 0u64;
    let (time, ()) = seconds(|| {
        for batch in keys.chunks(100) {
            for value in index.get_many(batch).unwrap().into_iter().flatten() {
                sum = sum.wrapping_add(u64::from(value[value.len() - 1]));
            }
        }
    });
    black_box(sum);
    keys.len() as f64 / time
}

fn fill_lmdb(folder: &Path, index: &Index, keys: &[String]) -> (heed::Env, Database<Bytes, Bytes>) {
    // SAFETY: the folder is new and used by this process alone.
    let environment = unsafe { EnvOpenOptions::new().map_size(64 << 30).open(folder) }.unwrap();
    let mut transaction = environment.write_txn().unwrap();
    let database: Database<Bytes, Bytes> = environment.create_database(&mut transaction, None).unwrap();
    let mut sorted: Vec<KeyBytes> = keys.iter().map(|key| index.key(key).unwrap()).collect();
    sorted.sort_unstable();
    for key in &sorted {
        let value = index.get(key).unwrap().unwrap();
        database.put_with_flags(&mut transaction, PutFlags::APPEND, key.as_bytes(), &value).unwrap();
    }
    transaction.commit().unwrap();
    (environment, database)
}

fn main() {
    // `cargo test --benches` only asks whether it runs at all.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let gib = setting("TIDEGATE_BENCH_BIG_GIB", 0);
    if gib > 0 {
        bench_big_build(folder.path(), gib);
        return;
    }
    bench_build(folder.path());
    bench_look_ups(folder.path());
}
