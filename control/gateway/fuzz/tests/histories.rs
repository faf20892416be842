//! Random histories of objects: valid, invalid and hostile ones that come, change and go, with the capacity of a gateway and with hardly any. None
//! panics, exceeds the capacity, or ends in another table than one compiled from nothing.

use nomagic_core::tuple::splitmix64;
use nomagic_fuzz::objects;

const HISTORIES: u64 = 10_000;
/// Bytes of the longest history: some twenty steps.
const LEN_MAX: u64 = 600;

#[test]
fn random_histories_of_objects() {
    // Two lanes, for two CPUs.
    std::thread::scope(|scope| {
        for lane in 0..2 {
            scope.spawn(move || (lane..HISTORIES).step_by(2).for_each(run));
        }
    });
}

fn run(seed: u64) {
    let mut random = seed;
    let len = splitmix64(&mut random) % LEN_MAX;
    let bytes: Vec<u8> = (0..len).map(|_| splitmix64(&mut random) as u8).collect();
    if let Err(panic) = std::panic::catch_unwind(|| objects::run(&bytes)) {
        eprintln!("history {seed} ({len} bytes)");
        std::panic::resume_unwind(panic);
    }
}
