//! The connection table's file: recovered after a killed process, locked, refused, set aside. Needs root.

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
use nomagic_xsk::region::{ConntrackMemory, remove};

/// Set to the file's path in the process that is to be killed.
const CHILD: &str = "NOMAGIC_TEST_TABLE";
const FLOWS: u32 = 1_000_000;
const CAPACITY: u32 = 1_250_000;

/// A directory that is removed with its mounts when dropped.
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

/// Flow `i`: every second one is IPv6, every third one has a source port allocated by nomagic.
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
        counted: None,
    }
}

fn create(table: &Conntrack<'_>, mut flow: Flow) -> Result<Hit, Refused> {
    let (hash, port) = (table.hash(&flow.original()), std::iter::once(flow.source_port));
    if flow.replaces_source() {
        table.snat_ports().take(&flow, nomagic_core::services::PortLimits::NONE).unwrap();
    }
    let pending = table.reserve(&mut flow, hash, Phase::first(Proto::Tcp, tcp::SYN), 1, port)?;
    table.commit(pending)
}

fn find(table: &Conntrack<'_>, key: &Tuple) -> Option<Hit> {
    table.lookup(key, table.hash(key))
}

fn open(path: &Path, capacity: u32) -> Result<ConntrackMemory, EdgeError> {
    ConntrackMemory::in_file(path, capacity, 1, |flow| Some(flow.stats))
}

/// Creates all flows, then creates and ends others on two threads.
fn fill_until_killed(path: &Path) {
    let ConntrackMemory { conntrack: table, file: _locked, .. } = open(path, CAPACITY).unwrap();
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
    // Killed while filling the table, and while creating and ending flows in a full one.
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
            // The test harness may print text before a number.
            created = line.split_whitespace().last().and_then(|word| word.parse().ok()).unwrap_or(created);
            if created >= kill_at && !killed {
                assert!(
                    matches!(open(&dir.table(), CAPACITY), Err(EdgeError::TableFile { detail, .. }) if detail.contains("another process"))
                );
                std::thread::sleep(then);
                child.kill().unwrap();
                // Lines still in the pipe count as well.
                killed = true;
            }
        }
        assert!(!child.wait().unwrap().success() && created >= kill_at, "killed at {created}");

        let start = Instant::now();
        let ConntrackMemory { conntrack: table, taken_over, file } = open(&dir.table(), CAPACITY).unwrap();
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
        // All other slots are free.
        let strangers = (2 * FLOWS..3 * FLOWS).take_while(|_| table.live() < u64::from(CAPACITY));
        let strangers = strangers.filter(|&i| create(&table, flow(i)).is_ok()).count() as u32;
        assert_eq!(strangers, CAPACITY - recovered.connections);
        // The next round starts with a new table.
        drop(file);
        assert!(remove(&dir.table()).unwrap());
        assert!(dir.names().is_empty());
    }
}

#[test]
fn a_table_continues_with_its_seed_after_a_clean_shutdown() {
    let dir = Dir::new("order");
    let first = open(&dir.table(), 4_096).unwrap();
    assert!(first.taken_over.is_none());
    (0..100).for_each(|i| {
        create(&first.conntrack, flow(i)).unwrap();
    });
    first.conntrack.detach();
    assert!(matches!(open(&dir.table(), 4_096), Err(EdgeError::TableFile { .. })), "locked by this process itself");
    drop(first);
    let next = ConntrackMemory::in_file(&dir.table(), 4_096, 2, |flow| (flow.stats < 60).then_some(7)).unwrap();
    let recovered = next.taken_over.unwrap();
    assert_eq!((recovered.detached, recovered.connections, recovered.not_whole, recovered.unwanted), (true, 60, 0, 40));
    assert_eq!((next.conntrack.seed(), next.conntrack.snat_ports().in_use()), (1, 20));
    assert!((0..60).all(|i| find(&next.conntrack, &flow(i).reply()).is_some_and(|hit| hit.stats == 7)));
    assert_eq!(fs::metadata(dir.table()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn files_that_do_not_fit_are_set_aside_and_the_latest_are_kept() {
    let dir = Dir::new("aside");
    let aside = |n: u32| dir.0.join(format!("conntrack.set-aside.{n}"));
    // Another capacity.
    let first = open(&dir.table(), 4_096).unwrap();
    create(&first.conntrack, flow(1)).unwrap();
    drop(first);
    assert!(open(&dir.table(), 2_048).unwrap().taken_over.is_none());
    assert_eq!(dir.names(), ["conntrack", "conntrack.set-aside.1"]);
    assert!(fs::metadata(aside(1)).unwrap().len() > fs::metadata(dir.table()).unwrap().len());
    // Torn: the header differs.
    let mut bytes = fs::read(dir.table()).unwrap();
    bytes[16] ^= 1;
    fs::write(dir.table(), &bytes).unwrap();
    assert!(open(&dir.table(), 2_048).unwrap().taken_over.is_none());
    assert_eq!(dir.names(), ["conntrack", "conntrack.set-aside.1", "conntrack.set-aside.2"]);
    assert!(fs::read(aside(2)).unwrap() == bytes);
    // From another boot of the machine.
    let table = open(&dir.table(), 2_048).unwrap();
    assert!(table.taken_over.is_some());
    drop(table);
    let file = OpenOptions::new().read(true).write(true).open(dir.table()).unwrap();
    let words = nomagic_sys::memory::file_words(std::os::fd::AsFd::as_fd(&file), Conntrack::words_needed(2_048)).unwrap();
    Conntrack::format(words, 2_048, 1, [1, 2]).unwrap().detach();
    assert!(open(&dir.table(), 2_048).unwrap().taken_over.is_none());
    // Not a table.
    fs::write(dir.table(), "something that somebody wrote").unwrap();
    assert!(open(&dir.table(), 2_048).unwrap().taken_over.is_none());
    assert_eq!(fs::read_to_string(aside(4)).unwrap(), "something that somebody wrote");
    assert_eq!(
        dir.names(),
        ["conntrack", "conntrack.set-aside.2", "conntrack.set-aside.3", "conntrack.set-aside.4"],
        "the oldest is removed"
    );
    // Of an earlier version, without a number.
    fs::write(dir.0.join("conntrack.set-aside"), "").unwrap();
    assert!(remove(&dir.table()).unwrap() && !remove(&dir.table()).unwrap());
    assert!(dir.names().is_empty());
}

#[test]
fn files_not_exclusive_to_this_process_are_refused_with_a_reason() {
    let dir = Dir::new("refused");
    let refused = |word: &str| {
        let (opened, removed) = (open(&dir.table(), 2_048).map(|t| t.taken_over), remove(&dir.table()));
        for text in [opened.unwrap_err().to_string(), removed.unwrap_err().to_string()] {
            assert!(text.contains("conntrack") && text.contains(word), "{text}");
        }
        assert!(!dir.names().iter().any(|name| name.contains("set-aside")));
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
    refused("not a regular file");
    fs::remove_file(dir.table()).unwrap();
    assert!(open(&dir.0.join("nowhere/conntrack"), 2_048).map(drop).unwrap_err().to_string().contains("nowhere/conntrack"));
}

#[test]
fn a_file_system_without_room_is_an_error_and_not_a_signal() {
    let dir = Dir::new("room");
    dir.mount(&["-t", "tmpfs", "-o", "size=1m", "none"]);
    let text = open(&dir.table(), 65_536).map(drop).unwrap_err().to_string();
    assert!(text.contains("no room") && text.contains("conntrack"), "{text}");
    assert_eq!(fs::metadata(dir.table()).unwrap().len(), 0, "the partial allocation is released");
    assert!(create(&open(&dir.table(), 1_024).unwrap().conntrack, flow(1)).is_ok(), "a smaller one fits");
}

#[test]
fn a_file_that_is_cut_leaves_an_empty_table_that_works() {
    let dir = Dir::new("cut");
    for left in [0, 4_096, 200_000] {
        let opened = open(&dir.table(), 4_096).unwrap();
        let (table, file) = (opened.conntrack, opened.file.unwrap());
        (0..1_000).for_each(|i| {
            create(&table, flow(i)).unwrap();
        });
        assert_eq!(file.problem(), None);
        OpenOptions::new().write(true).open(dir.table()).unwrap().set_len(left).unwrap();
        // The last flow is beyond the end.
        assert!(find(&table, &flow(999).original()).is_none());
        let found = (0..1_000).filter(|i| find(&table, &flow(*i).original()).is_some()).count();
        let created = (5_000..9_000).filter(|i| create(&table, flow(*i)).is_ok()).count();
        assert_eq!(
            (found, created, table.live()),
            (0, 4_000, 4_000),
            "cut to {left}: all are gone, and there is room for as many as before"
        );
        assert!((5_000..9_000).all(|i| find(&table, &flow(i).reply()).is_some()) && table.seed() == 1);
        let problem = file.problem().unwrap();
        assert!(problem.contains("was cut") && problem.contains("Restart nomagic"), "{problem}");
        drop(file);
        let next = open(&dir.table(), 4_096).unwrap();
        assert!(next.taken_over.is_none(), "what is left of the file is no table");
        drop(next);
        assert!(remove(&dir.table()).unwrap());
    }
}

/// Set to the file's path in the process that runs out of something.
const SHORT: &str = "NOMAGIC_TEST_SHORT";

#[test]
fn a_shortage_leaves_the_file() {
    if let Some(path) = std::env::var_os(SHORT) {
        let error = open(Path::new(&path), 65_536).map(drop).expect_err("something is short").to_string();
        return println!("refused: {error}");
    }
    let dir = Dir::new("short");
    let first = open(&dir.table(), 65_536).unwrap();
    (0..100).for_each(|i| {
        create(&first.conntrack, flow(i)).unwrap();
    });
    drop(first);
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let test = ["--exact", "region::a_shortage_leaves_the_file", "--nocapture"];
    // Address space for the process, but not for the reservation of the table; a descriptor for the file, but none for anything else.
    let descriptors = |n: u32| format!("ulimit -n {n}; exec \"$0\" \"$@\"");
    let mut said = Vec::new();
    for limit in ["ulimit -v 1500000; exec \"$0\" \"$@\"".to_owned()].into_iter().chain((4..12).map(descriptors)) {
        let out = Command::new("sh").args(["-c", &limit, own]).args(test).env(SHORT, dir.table()).output().unwrap();
        said.push(format!("{limit}: {}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)));
        assert_eq!(dir.names(), ["conntrack"], "{said:#?}");
    }
    assert!(said[0].contains("cannot be mapped") && said[0].contains("left as they are"), "{said:#?}");
    assert!(said[1..].iter().any(|s| s.contains("raise the limit of open files")), "{said:#?}");
    let next = open(&dir.table(), 65_536).unwrap();
    assert_eq!(next.taken_over.map(|r| r.connections), Some(100), "{said:#?}");
}

#[test]
fn a_file_on_a_disk_is_reported() {
    let dir = Dir::new("disk");
    let on_tmpfs = open(&dir.table(), 1_024).unwrap();
    assert_eq!(on_tmpfs.file.unwrap().problem(), None);
    // Neither a disk nor memory that stays: any other file system is reported.
    let disk = std::env::current_dir().unwrap().join(format!("nmx-disk-{}", std::process::id()));
    let opened = open(&disk, 1_024);
    let _ = fs::remove_file(&disk);
    let problem = opened.unwrap().file.unwrap().problem();
    if nomagic_sys::mount::is_in_memory(&std::env::current_dir().unwrap()).unwrap() {
        return println!("the sources are in memory here: {problem:?}");
    }
    assert!(problem.as_ref().is_some_and(|p| p.contains("tmpfs") && p.contains("nmx-disk")), "{problem:?}");
}

/// Tests more than the refusal only with `sysctl vm.nr_hugepages=8` or more.
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
