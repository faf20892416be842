//! The connection table's file: taken over from a process that was killed, locked, refused, set aside. Needs root.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nomagic_core::conntrack::{Conntrack, Flow, Hit, Phase, Refused};
use nomagic_core::tuple::{Proto, Tuple, splitmix64};
use nomagic_core::wire::tcp;
use nomagic_xsk::EdgeError;
use nomagic_xsk::region::{Table, remove};

/// Tells the test's process that it is the one to be killed, and the file.
const CHILD: &str = "NOMAGIC_TEST_TABLE";
const FLOWS: u32 = 1_000_000;
const CAPACITY: u32 = 1_250_000;

/// A directory that goes with its owner, and what is mounted on it.
struct Dir(PathBuf);

impl Dir {
    fn new(tag: &str) -> Dir {
        let path = Path::new("/dev/shm").join(format!("nmx-region-{tag}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Dir(path)
    }

    fn mount(&self, args: &[&str]) {
        assert!(Command::new("mount").args(args).arg(&self.0).status().unwrap().success(), "needs root");
    }

    fn table(&self) -> PathBuf {
        self.0.join("conntrack")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // Lazily: tables stay mapped.
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.0).status();
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Flow `i`: every second one is IPv6, every third one has a source port of ours.
fn flow(i: u32) -> Flow {
    let v6 = i % 2 == 1;
    let addr = |n: u32| if v6 { [0xfd00 << 48, u64::from(n)] } else { [0, 0x0a00_0000 + u64::from(n)] };
    let (client, port) = (addr(0x1_0000 + (i >> 14)), 1_024 + (i & 0x3fff) as u16);
    Flow {
        proto: Proto::Tcp,
        v6,
        announced: !i.is_multiple_of(3),
        client,
        client_port: port,
        service: addr(1),
        service_port: 80,
        backend: addr(2 + (i >> 14)),
        backend_port: 8080,
        source: if i.is_multiple_of(3) { addr(9) } else { client },
        source_port: port,
        stats: i,
    }
}

fn create(table: &Conntrack<'_>, mut flow: Flow) -> Result<Hit, Refused> {
    let (hash, port) = (table.hash(&flow.original()), std::iter::once(flow.source_port));
    if flow.replaces_source() {
        assert!(table.snat_ports().take(&flow, u64::MAX).is_ok());
    }
    let pending = table.reserve(&mut flow, hash, Phase::first(Proto::Tcp, tcp::SYN), 1, port)?;
    table.commit(pending)
}

fn find(table: &Conntrack<'_>, key: &Tuple) -> Option<Hit> {
    table.lookup(key, table.hash(key))
}

fn open(path: &Path, capacity: u32) -> Result<Table, EdgeError> {
    Table::in_file(path, capacity, 1, |flow| Some(flow.stats))
}

/// Creates all flows, and then creates and ends others on two threads.
fn fill_until_killed(path: &Path) {
    let Table { conntrack: table, file: _locked, .. } = open(path, CAPACITY).unwrap();
    for i in 0..FLOWS {
        create(&table, flow(i)).unwrap();
        if (i + 1) % 1_000 == 0 {
            println!("{}", i + 1);
        }
    }
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            scope.spawn(move || {
                let mut random = thread;
                loop {
                    let f = flow(FLOWS + splitmix64(&mut random) as u32 % 50_000);
                    match find(&table, &f.original()) {
                        Some(hit) => drop(table.end(&hit)),
                        None => drop(create(&table, f)),
                    }
                }
            });
        }
    });
}

#[test]
fn a_million_connections_survive_the_kill_of_their_process() {
    if let Some(path) = std::env::var_os(CHILD) {
        return fill_until_killed(Path::new(&path));
    }
    let dir = Dir::new("kill");
    // Killed while it fills the table, and while it creates and ends in a full one.
    for (kill_at, then) in [(300_000, Duration::ZERO), (FLOWS, Duration::from_millis(200))] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "region::a_million_connections_survive_the_kill_of_their_process", "--nocapture"])
            .env(CHILD, dir.table())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (mut created, mut killed) = (0, false);
        for line in lines {
            // The harness's words may stand before a number.
            created = line.split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(created);
            if created >= kill_at && !killed {
                assert!(
                    matches!(open(&dir.table(), CAPACITY), Err(EdgeError::TableFile { detail, .. }) if detail.contains("another process"))
                );
                std::thread::sleep(then);
                child.kill().unwrap();
                // Lines that are still in the pipe are read on: they are promises too.
                killed = true;
            }
        }
        assert!(!child.wait().unwrap().success() && created >= kill_at, "killed at {created}");

        let start = Instant::now();
        let Table { conntrack: table, taken_over, file } = open(&dir.table(), CAPACITY).unwrap();
        let took = start.elapsed();
        let recovered = taken_over.expect("it was taken over");
        println!("killed after {created} connections; taken over in {took:?}: {recovered:?}");
        assert!(!recovered.detached && recovered.connections >= created && recovered.not_whole <= 2, "{recovered:?}");
        assert_eq!(table.live(), u64::from(recovered.connections));
        for i in 0..created {
            let f = flow(i);
            let [original, reply] = [f.original(), f.reply()].map(|key| find(&table, &key).and_then(|hit| table.flow(&hit)));
            assert_eq!((original, reply), (Some(f), Some(f)), "connection {i}");
        }
        // Every other place is free.
        let strangers = (2 * FLOWS..3 * FLOWS).take_while(|_| table.live() < u64::from(CAPACITY));
        let strangers = strangers.filter(|&i| create(&table, flow(i)).is_ok()).count() as u32;
        assert_eq!(strangers, CAPACITY - recovered.connections);
        // The next round begins with a new table.
        drop(file);
        assert!(remove(&dir.table()).unwrap());
        assert!(dir.names().is_empty());
    }
}

#[test]
fn a_table_left_in_order_goes_on_and_its_seed_with_it() {
    let dir = Dir::new("order");
    let first = open(&dir.table(), 4_096).unwrap();
    assert!(first.taken_over.is_none());
    (0..100).for_each(|i| assert!(create(&first.conntrack, flow(i)).is_ok()));
    first.conntrack.detach();
    assert!(matches!(open(&dir.table(), 4_096), Err(EdgeError::TableFile { .. })), "locked by this process itself");
    drop(first);
    let next = Table::in_file(&dir.table(), 4_096, 2, |flow| (flow.stats < 60).then_some(7)).unwrap();
    let recovered = next.taken_over.unwrap();
    assert_eq!((recovered.detached, recovered.connections, recovered.not_whole, recovered.unwanted), (true, 60, 0, 40));
    assert_eq!((next.conntrack.seed(), next.conntrack.snat_ports().in_use()), (1, 20));
    assert!((0..60).all(|i| find(&next.conntrack, &flow(i).reply()).is_some_and(|hit| hit.stats == 7)));
    assert_eq!(fs::metadata(dir.table()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_does_not_fit_is_set_aside_and_the_latest_is_kept() {
    let dir = Dir::new("aside");
    let aside = dir.0.join("conntrack.set-aside");
    // Another capacity.
    let first = open(&dir.table(), 4_096).unwrap();
    create(&first.conntrack, flow(1)).unwrap();
    drop(first);
    assert!(open(&dir.table(), 2_048).unwrap().taken_over.is_none());
    assert_eq!(dir.names(), ["conntrack", "conntrack.set-aside"]);
    assert!(fs::metadata(&aside).unwrap().len() > fs::metadata(dir.table()).unwrap().len());
    // Torn: the header says something else. The file that was set aside before makes room.
    let mut bytes = fs::read(dir.table()).unwrap();
    bytes[16] ^= 1;
    fs::write(dir.table(), &bytes).unwrap();
    assert!(open(&dir.table(), 2_048).unwrap().taken_over.is_none());
    assert!(dir.names().len() == 2 && fs::read(&aside).unwrap() == bytes);
    // Of another boot of the machine.
    let table = open(&dir.table(), 2_048).unwrap();
    assert!(table.taken_over.is_some());
    drop(table);
    let file = OpenOptions::new().read(true).write(true).open(dir.table()).unwrap();
    let words = nomagic_sys::memory::file_words(std::os::fd::AsFd::as_fd(&file), Conntrack::words_needed(2_048)).unwrap();
    Conntrack::format(words, 2_048, 1, [1, 2]).unwrap().detach();
    assert!(open(&dir.table(), 2_048).unwrap().taken_over.is_none());
    // No table at all.
    fs::write(dir.table(), "something that somebody wrote").unwrap();
    assert!(open(&dir.table(), 2_048).unwrap().taken_over.is_none());
    assert_eq!(fs::read_to_string(&aside).unwrap(), "something that somebody wrote");
    assert!(remove(&dir.table()).unwrap() && !remove(&dir.table()).unwrap());
    assert!(dir.names().is_empty());
}

#[test]
fn files_that_are_not_ours_alone_are_refused_by_name() {
    let dir = Dir::new("refused");
    let refused = |word: &str| {
        let (opened, removed) = (open(&dir.table(), 2_048).map(|t| t.taken_over), remove(&dir.table()));
        for text in [opened.unwrap_err().to_string(), removed.unwrap_err().to_string()] {
            assert!(text.contains("conntrack") && text.contains(word), "{text}");
        }
        assert!(!dir.0.join("conntrack.set-aside").exists());
    };
    fs::write(dir.0.join("other"), "").unwrap();
    symlink(dir.0.join("other"), dir.table()).unwrap();
    refused("symbolic link");
    fs::remove_file(dir.table()).unwrap();
    fs::create_dir(dir.table()).unwrap();
    refused("directory");
    fs::remove_dir(dir.table()).unwrap();
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(dir.table()).unwrap();
    for mode in [0o640, 0o602, 0o700] {
        fs::set_permissions(dir.table(), Permissions::from_mode(mode)).unwrap();
        refused("chmod 0600");
    }
    fs::set_permissions(dir.table(), Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(dir.table(), dir.0.join("again")).unwrap();
    refused("hard link");
    fs::remove_file(dir.0.join("again")).unwrap();
    std::os::unix::fs::chown(dir.table(), Some(65_534), None).expect("needs root");
    refused("user 65534");
    fs::remove_file(dir.table()).unwrap();
    assert!(Command::new("mkfifo").args(["-m", "600"]).arg(dir.table()).status().unwrap().success());
    refused("no regular file");
    fs::remove_file(dir.table()).unwrap();
    assert!(open(&dir.0.join("nowhere/conntrack"), 2_048).map(drop).unwrap_err().to_string().contains("nowhere/conntrack"));
}

#[test]
fn a_file_system_without_room_is_an_error_and_not_a_signal() {
    let dir = Dir::new("room");
    dir.mount(&["-t", "tmpfs", "-o", "size=1m", "none"]);
    let text = open(&dir.table(), 65_536).map(drop).unwrap_err().to_string();
    assert!(text.contains("no room") && text.contains("conntrack"), "{text}");
    assert_eq!(fs::metadata(dir.table()).unwrap().len(), 0, "what there was of it is given back");
    assert!(create(&open(&dir.table(), 1_024).unwrap().conntrack, flow(1)).is_ok(), "a smaller one fits");
}

/// Needs `sysctl vm.nr_hugepages=8` or more to see more than the refusal.
#[test]
fn huge_pages_come_from_a_hugetlbfs() {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let free = meminfo.lines().find(|l| l.starts_with("HugePages_Free:")).and_then(|l| l.split_whitespace().nth(1)).unwrap();
    let enough = free.parse::<u64>().unwrap() >= 8;
    let dir = Dir::new("huge");
    dir.mount(&["-t", "hugetlbfs", "none"]);
    println!("{free} huge pages were free");
    let first = open(&dir.table(), 16_384).map(|t| create(&t.conntrack, flow(1)).is_ok());
    if !enough {
        return assert!(first.map(drop).unwrap_err().to_string().contains("no room"));
    }
    assert!(first.unwrap());
    let next = open(&dir.table(), 16_384).unwrap();
    assert!(next.taken_over.is_some_and(|r| r.connections == 1) && find(&next.conntrack, &flow(1).reply()).is_some());
    assert_eq!(fs::metadata(dir.table()).unwrap().len(), 4 << 20, "whole huge pages");
}
