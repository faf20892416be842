//! CPU affinity of threads.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Pins the calling thread to one CPU.
///
/// # Errors
/// System errors: EINVAL if the CPU does not exist, or this process may not use it.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Keeps the calling thread, and threads it starts later, off these CPUs, unless no others remain.
///
/// # Errors
/// System errors.
pub fn leave_cpus(cpus: &[usize]) -> io::Result<()> {
    let mut set = sched_getaffinity(None)?;
    cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.unset(*cpu));
    if set.count() > 0 {
        sched_setaffinity(None, &set)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPUs the calling thread may run on.
    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
    }

    #[test]
    fn a_thread_stays_on_its_cpu_and_leaves_others() {
        let all = allowed();
        let (first, others) = all.split_first().unwrap();
        let (first, others) = (*first, others.to_vec());
        let pinned = std::thread::spawn(move || pin_to_cpu(first).map(|()| allowed()));
        assert_eq!(pinned.join().unwrap().unwrap(), [first]);
        let alone = std::thread::spawn(move || leave_cpus(&others).map(|()| allowed()));
        assert_eq!(alone.join().unwrap().unwrap(), [first]);
        let left = all.clone();
        let nowhere = std::thread::spawn(move || leave_cpus(&left).map(|()| allowed()));
        assert_eq!(nowhere.join().unwrap().unwrap(), all, "a thread has to run somewhere");
        assert_eq!(allowed(), all, "other threads are not affected");
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_an_error() {
        for cpu in [1023, CpuSet::MAX_CPU, usize::MAX] {
            assert!(pin_to_cpu(cpu).is_err(), "CPU {cpu}");
        }
        leave_cpus(&[usize::MAX]).unwrap();
    }
}
