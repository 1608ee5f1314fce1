//! A full disk: a small file system that is filled and given room again; files that must not grow any more.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::distr::Alphanumeric;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use tidegate_state::driver::sqlite::{SqliteOptions, SqliteStore};
use tidegate_state::driver::{CommitError, DriverError};
use tidegate_state::{Entity, Ref, Revision, Root, State, StateOptions, SubmissionId};

use crate::writers::{FOLDER, acknowledged_in, batch, declaration, store_in};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    text: String,
}

impl Entity for Note {
    const COLLECTION: &'static str = "notes";
    type Parent = Root;
    type Id = String;
}

/// A file system of 16 MB, taken down when it is dropped.
struct SmallDisk {
    folder: PathBuf,
    _parent: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> Result<Self, String> {
        let parent = tempfile::tempdir().map_err(|error| error.to_string())?;
        let folder = parent.path().join("disk");
        std::fs::create_dir(&folder).map_err(|error| error.to_string())?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"])
            .arg(&folder)
            .output()
            .map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
        }
        Ok(SmallDisk { folder, _parent: parent })
    }

    /// A file that takes all room that is left but `rest` bytes; removing it gives the room back.
    fn fill(&self, rest: u64) -> PathBuf {
        let ballast = self.folder.join("ballast");
        let block = vec![1u8; 4_096];
        let mut file = std::fs::File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(rest)).unwrap();
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.folder).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.folder.display());
        }
    }
}

fn integrity(path: &Path) -> String {
    rusqlite::Connection::open(path).unwrap().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x11_a_full_disk_refuses_writes_loses_nothing_and_goes_on_with_room() {
    let disk = match SmallDisk::new() {
        Ok(disk) => disk,
        Err(reason) => {
            println!("skipped: no file system of 16 MB could be mounted ({reason}); d30 covers the file's own limit");
            return;
        }
    };
    let path = store_in(&disk.folder);
    let store = SqliteStore::open(&path, SqliteOptions::default()).unwrap();
    let driver = store.driver();
    let epoch = driver.open(&[declaration()]).await.unwrap().epoch;
    let mut seen = Revision::ZERO;
    let mut acknowledged = Vec::new();
    for round in 0..20u64 {
        // Different rests: the write-ahead log is full, its index is, a copy into the database finds no room.
        let ballast = disk.fill(round * 24_000);
        let mut refused = 0;
        for number in 0..60 {
            let begun = driver.begin(epoch, seen, 10_000).await.unwrap();
            let (submission, now) = (SubmissionId::random(), begun.session.now());
            let outcome = begun.session.commit(batch(seen, now, submission, 2_000 + number * 100)).await;
            match outcome {
                Ok(()) => {
                    seen = seen.next();
                    acknowledged.push(submission);
                }
                Err(CommitError::NotCommitted(DriverError::Full(_) | DriverError::Unavailable(_))) => {
                    refused += 1;
                    assert_eq!(
                        driver.find_submission(submission, Revision::ZERO).await.unwrap(),
                        None,
                        "it left no trace"
                    );
                }
                Err(other) => panic!("{other:?}"),
            }
            // Reads go on.
            assert_eq!(driver.meta().await.unwrap().head, seen);
        }
        assert!(refused > 0 || round > 2, "the disk was not full");
        std::fs::remove_file(ballast).unwrap();
        let begun = driver.begin(epoch, seen, 10_000).await.unwrap();
        let (submission, now) = (SubmissionId::random(), begun.session.now());
        begun.session.commit(batch(seen, now, submission, 10)).await.unwrap();
        seen = seen.next();
        acknowledged.push(submission);
    }
    let log = driver.stored().await.unwrap().log;
    let found: Vec<SubmissionId> = log.iter().map(|row| row.submission).collect();
    assert_eq!(found, acknowledged);
    assert_eq!(integrity(&path), "ok");
    drop((driver, store));
    let again = SqliteStore::open(&path, SqliteOptions::default()).unwrap().driver();
    assert_eq!(again.stored().await.unwrap().log, log);
}

/// Not a test by itself: what a test starts under a limit on the size of files. It writes well beyond that, notes what it
/// was told of each submission, and ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_beyond_the_limit() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let driver = SqliteStore::open(store_in(folder), SqliteOptions::default()).unwrap().driver();
    let meta = driver.open(&[declaration()]).await.unwrap();
    let mut notes = std::fs::File::create(acknowledged_in(folder)).unwrap();
    let mut seen = meta.head;
    for number in 0..400usize {
        let begun = driver.begin(meta.epoch, seen, 10_000).await.unwrap();
        let (submission, now) = (SubmissionId::random(), begun.session.now());
        // Small ones fit in where large ones do not.
        let padding = [20, 9_000, 60_000][number % 3];
        let told = match begun.session.commit(batch(seen, now, submission, padding)).await {
            Ok(()) => "committed",
            Err(CommitError::NotCommitted(_)) => "refused",
            Err(CommitError::Unknown(_)) => "unknown",
        };
        writeln!(notes, "{told} {submission}").unwrap();
        let head = driver.meta().await.unwrap().head;
        assert_eq!(head, if told == "committed" { seen.next() } else { seen }, "reads go on, and see what was told");
        seen = head;
    }
}

#[test]
fn d30_what_was_told_of_a_commit_that_did_not_fit_is_true_after_a_restart() {
    for limit in [400, 900, 2_000] {
        let folder = tempfile::tempdir().unwrap();
        // The limit's signal is ignored, so that writing beyond it is an error and no death.
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$0\" \"$@\"");
        let status = Command::new("sh")
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "disk::writes_beyond_the_limit", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        let notes = std::fs::read_to_string(acknowledged_in(folder.path())).unwrap();
        let told = |word: &str| -> Vec<String> {
            let of_word = notes.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
            of_word.map(str::to_owned).collect()
        };
        let (committed, refused, unknown) = (told("committed"), told("refused"), told("unknown"));
        println!("limit {limit}: {} committed, {} refused, {} unknown", committed.len(), refused.len(), unknown.len());
        assert!(!committed.is_empty() && !refused.is_empty(), "the limit was met");

        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let found: Vec<String> = runtime.block_on(async {
            let store = SqliteStore::open(store_in(folder.path()), SqliteOptions::default()).unwrap();
            let log = store.driver().stored().await.unwrap().log;
            log.iter().map(|row| row.submission.to_string()).collect()
        });
        let certain: Vec<&String> = found.iter().filter(|submission| !unknown.contains(submission)).collect();
        assert_eq!(certain, committed.iter().collect::<Vec<_>>());
        assert!(refused.iter().all(|submission| !found.contains(submission)));
        assert_eq!(integrity(&store_in(folder.path())), "ok");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d30_a_state_says_that_its_store_is_full_until_a_write_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("store.db"), SqliteOptions::default()).unwrap();
    let options = StateOptions { write_limit: Duration::from_millis(200), ..StateOptions::new("server") };
    let state = State::open(store.driver(), options).await.unwrap();
    let place: Ref<Note> = Ref::root("a").unwrap();
    // What the store can't make smaller, and each time another.
    let mut random = StdRng::seed_from_u64(30);
    let mut write = async |length: usize| {
        let text = (0..length).map(|_| random.sample(Alphanumeric) as char).collect();
        let (place, note) = (place.clone(), Note { text });
        state.write(move |tx| tx.put(&place, note.clone())).await.map(|_| ())
    };
    write(10).await.unwrap();
    assert_eq!(state.store_full(), None);
    store.set_bytes_max(Some(300 << 10)).await.unwrap();
    // The write-ahead log takes what the file has no pages for; then it is over.
    let mut refused = None;
    for _ in 0..50 {
        if let Err(error) = write(100_000).await {
            refused = Some(error);
            break;
        }
    }
    let refused = refused.expect("the store is bounded").to_string();
    for part in ["has no room left", "free some", "nothing was committed"] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    assert!(state.store_full().unwrap().contains("no room left"));
    assert!(state.snapshot().contains(place.path()), "it is read on");
    store.set_bytes_max(None).await.unwrap();
    write(10).await.unwrap();
    assert_eq!(state.store_full(), None);
    state.close().await;
}
