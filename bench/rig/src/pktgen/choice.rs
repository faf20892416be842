//! Choosing a flow for each frame.

use fastrand::Rng;

use super::profile::Choice;

#[derive(Clone, Debug)]
pub struct Chooser {
    flows: u32,
    next: u32,
    rng: Rng,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    RoundRobin,
    Uniform,
    Table(Vec<Column>),
}

/// One column of the alias table: below `threshold` it is the column's own number, else `other`.
#[derive(Clone, Copy, Debug)]
struct Column {
    threshold: u32,
    other: u32,
}

impl Chooser {
    /// Chooses among `flows` flows, at least 1.
    pub fn new(choice: Choice, flows: u32, seed: u64) -> Chooser {
        let how = match choice {
            Choice::RoundRobin => How::RoundRobin,
            Choice::Uniform => How::Uniform,
            Choice::Zipf(s) => How::Table(alias_table((1..=flows).map(|n| f64::from(n).powf(-s)).collect())),
        };
        Chooser { flows, next: 0, rng: Rng::with_seed(seed), how }
    }

    #[inline]
    pub fn flow(&mut self) -> u32 {
        match &self.how {
            How::RoundRobin => {
                let flow = self.next;
                self.next = if flow + 1 == self.flows { 0 } else { flow + 1 };
                flow
            }
            How::Uniform => self.rng.u32(..self.flows),
            How::Table(columns) => {
                let n = self.rng.u32(..self.flows);
                let column = columns[n as usize];
                if self.rng.u32(..) < column.threshold { n } else { column.other }
            }
        }
    }
}

/// Vose's alias method: any distribution with two random numbers a choice. M. D. Vose, "A linear algorithm for generating random numbers
/// with a given distribution", IEEE Transactions on Software Engineering 17(9), 1991.
fn alias_table(mut weights: Vec<f64>) -> Vec<Column> {
    let mean = weights.iter().sum::<f64>() / weights.len() as f64;
    weights.iter_mut().for_each(|w| *w /= mean);
    let mut columns: Vec<Column> = (0..weights.len() as u32).map(|n| Column { threshold: u32::MAX, other: n }).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..weights.len()).partition(|n| weights[*n] < 1.0);
    while let (Some(less), Some(more)) = (small.pop(), large.last().copied()) {
        columns[less] = Column { threshold: (weights[less] * 4_294_967_296.0) as u32, other: more as u32 };
        weights[more] -= 1.0 - weights[less];
        if weights[more] < 1.0 {
            large.pop();
            small.push(more);
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(choice: Choice, flows: u32, frames: u32) -> Vec<u32> {
        let mut chooser = Chooser::new(choice, flows, 7);
        let mut counts = vec![0; flows as usize];
        (0..frames).for_each(|_| counts[chooser.flow() as usize] += 1);
        counts
    }

    #[test]
    fn round_robin_is_even_and_in_order() {
        assert_eq!(counts(Choice::RoundRobin, 7, 70), [10; 7]);
        let mut chooser = Chooser::new(Choice::RoundRobin, 3, 0);
        assert_eq!([0; 5].map(|_| chooser.flow()), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn uniform_is_even_at_random() {
        for count in counts(Choice::Uniform, 100, 1_000_000) {
            // The mean is 10,000, its standard deviation 99.
            assert!((9_500..10_500).contains(&count), "{count}");
        }
    }

    #[test]
    fn zipf_follows_its_law() {
        for s in [0.0, 0.8, 1.0, 1.5] {
            let counts = counts(Choice::Zipf(s), 50, 1_000_000);
            let total: f64 = (1..=50).map(|n| f64::from(n).powf(-s)).sum();
            for (n, count) in counts.iter().enumerate() {
                let wanted = 1_000_000.0 * ((n + 1) as f64).powf(-s) / total;
                // Five standard deviations of a binomial.
                assert!((f64::from(*count) - wanted).abs() < 5.0 * wanted.sqrt() + 1.0, "s {s}, flow {n}: {count}, wanted {wanted}");
            }
        }
    }

    #[test]
    fn one_flow_is_always_chosen_and_seeds_repeat() {
        for choice in [Choice::RoundRobin, Choice::Uniform, Choice::Zipf(1.0)] {
            assert_eq!(counts(choice, 1, 10), [10]);
            assert_eq!(counts(choice, 40, 999), counts(choice, 40, 999));
        }
    }
}
