//! Costs in memory by table size, from the output of `cargo bench --bench micro -- --json FILE`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::results::{CostRow, Estimate, Outcome};

#[derive(Deserialize)]
struct Micro {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    unit: String,
    /// Connections in the table, of rows that have one.
    flows: Option<u64>,
    /// Nanoseconds, round by round.
    #[serde(default)]
    values: Vec<f64>,
    #[serde(default)]
    floors: Vec<f64>,
}

/// The rows of the packet path at each size of the table, and their memory floor.
pub fn costs(file: &Path) -> Result<Vec<CostRow>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("--micro {shown}"))?;
    let micro: Micro =
        serde_json::from_str(&text).with_context(|| format!("--micro {shown} is not what `cargo bench --bench micro -- --json` writes"))?;
    let mut rows = Vec::new();
    let outcome = |values: &[f64]| Estimate::of(values).map_or_else(|| Outcome::NotMeasured("no round".into()), Outcome::Measured);
    for row in micro.rows.iter().filter(|r| r.unit == "ns" && r.name.starts_with("pipeline")) {
        let Some(flows) = row.flows else { continue };
        rows.push(CostRow { name: row.name.clone(), flows, ns: outcome(&row.values) });
        if !row.floors.is_empty() && !row.name.contains("Zipf") {
            rows.push(CostRow { name: "memory floor: one random line read and a header written".into(), flows, ns: outcome(&row.floors) });
        }
    }
    ensure!(!rows.is_empty(), "--micro {shown}: it has no row of the packet path by table size");
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_packet_path_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("micro.json");
        let text = r#"{"rows": [
            {"name": "pipeline, DNAT", "unit": "ns", "value": 30, "flows": 1000, "values": [29, 30, 31], "floors": [10, 10, 10]},
            {"name": "pipeline, DNAT, Zipf", "unit": "ns", "value": 28, "flows": 1000, "values": [28], "floors": [9]},
            {"name": "pipeline, reply", "unit": "ns", "value": 5}, {"name": "look-up, hit", "unit": "ns", "value": 5, "flows": 1000}]}"#;
        std::fs::write(&file, text).unwrap();
        let rows = costs(&file).unwrap();
        let names: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["pipeline, DNAT", "memory floor: one random line read and a header written", "pipeline, DNAT, Zipf"]);
        assert_eq!(rows[0].ns.value().unwrap().median, 30.0);
        std::fs::write(&file, r#"{"rows": []}"#).unwrap();
        assert!(costs(&file).unwrap_err().to_string().contains("no row"));
    }
}
