use super::*;
use crate::report::fixture::results;

fn of(low: f64, median: f64, high: f64) -> Outcome<Estimate> {
    Outcome::Measured(Estimate { median, low, high, n: 10 })
}

#[test]
fn a_change_counts_only_when_the_intervals_do_not_overlap() {
    let single = |v| Outcome::Measured(Estimate::single(v));
    let none = || Outcome::NotMeasured("no".into());
    for (new, old, higher, lower) in [
        (of(9.0, 10.0, 11.0), of(10.5, 12.0, 13.0), Change::NoDifference, Change::NoDifference),
        (of(9.0, 10.0, 11.0), of(11.0, 12.0, 13.0), Change::NoDifference, Change::NoDifference),
        (of(9.0, 10.0, 11.0), of(11.1, 12.0, 13.0), Change::Worse, Change::Better),
        (of(14.0, 15.0, 16.0), of(11.0, 12.0, 13.0), Change::Better, Change::Worse),
        (of(5.0, 5.0, 5.0), of(5.0, 5.0, 5.0), Change::NoDifference, Change::NoDifference),
        (of(0.0, 0.0, 0.0), of(1.0, 1.0, 1.0), Change::Worse, Change::Better),
        (single(1.0), of(11.0, 12.0, 13.0), Change::NoInterval, Change::NoInterval),
        (single(1.0), single(9.0), Change::NoInterval, Change::NoInterval),
        (none(), of(11.0, 12.0, 13.0), Change::NotMeasured, Change::NotMeasured),
        (none(), none(), Change::NotMeasured, Change::NotMeasured),
    ] {
        assert_eq!((change(&new, &old, Better::Higher), change(&new, &old, Better::Lower)), (higher, lower), "{new:?} {old:?}");
    }
}

#[test]
fn changes_in_percent_have_a_sign_and_no_division_by_zero() {
    for (new, old, words) in [
        (of(0.0, 110.0, 0.0), of(0.0, 100.0, 0.0), "+10.0 %"),
        (of(0.0, 97.5, 0.0), of(0.0, 100.0, 0.0), "-2.50 %"),
        (of(0.0, 5.0, 0.0), of(0.0, 0.0, 0.0), "from zero"),
        (of(0.0, 0.0, 0.0), of(0.0, 0.0, 0.0), "0 %"),
        (Outcome::NotMeasured("no".into()), of(0.0, 1.0, 0.0), "unknown"),
    ] {
        assert_eq!(percent(&new, &old).words(), words);
    }
}

#[test]
fn the_same_run_twice_has_no_difference() {
    let c = Comparison::new(&results(), &results());
    assert!(c.differences.is_empty() && c.only_new.is_empty() && c.only_old.is_empty(), "{c:?}");
    assert_eq!((c.count(Change::Worse), c.count(Change::Better)), (0, 0));
    assert!(c.count(Change::NoDifference) > 10 && c.count(Change::NoInterval) > 10, "{}", c.verdict());
    assert_eq!(c.tables().len(), IDS.len());
}

#[test]
fn another_machine_and_rows_of_one_run_are_named() {
    let (old, mut new) = (results(), results());
    new.manifest.kernel = "6.99".into();
    new.manifest.commit = Some("fedcba9".into());
    new.rig.lb_cpu = 7;
    for row in &mut new.rates {
        row.zero_loss = row.zero_loss.map(|e| Estimate { median: e.median / 2.0, low: e.low / 2.0, high: e.high / 2.0, n: e.n });
    }
    let gone = new.flood.pop().unwrap();
    new.programming[0].how = "by post".into();
    let c = Comparison::new(&new, &old);
    for part in ["kernel: 6.1.0-31-amd64 then, 6.99 now", "commit: ", "CPUs of subject and generator: 0 and 1 then, 7 and 1 now"] {
        assert!(c.differences.iter().any(|d| d.starts_with(part)), "{part}: {:?}", c.differences);
    }
    assert_eq!(c.differences.len(), 3);
    let measured = old.rates.iter().filter(|r| r.zero_loss.value().is_some()).count();
    assert_eq!((c.count(Change::Worse), c.count(Change::Better)), (measured, 0));
    assert!(c.only_new.iter().any(|n| n.contains("by post")), "{:?}", c.only_new);
    assert!(c.only_old.iter().any(|n| n.contains(old.label(&gone.subject))), "{:?}", c.only_old);
    let text: String = c.tables().iter().map(|t| t.1.text()).collect();
    assert!(text.contains("✗ worse") && text.contains("-50.0 %"), "{text}");
}
