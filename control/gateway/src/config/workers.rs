//! The worker threads: their number, their CPUs, and what they do when idle.

use std::fmt;

use nomagic_xsk::{Limited, WorkerCount};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer};

use super::values::{ListVisitor, TextVisitor, WholeVisitor, keywords, limited};

/// Highest CPU number.
const CPU_MAX: u64 = 1_023;

/// What an idle worker does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WorkerIdle {
    /// Busy-poll: lowest latency, one CPU always busy.
    Spin,
    /// Sleep in the kernel until a frame arrives.
    #[default]
    Sleep,
}

/// The worker threads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkersConfig {
    pub count: WorkerCount,
    /// The CPU of each worker, 0 to 1,023; empty: not pinned.
    pub cpus: Vec<u16>,
    pub idle: WorkerIdle,
}

impl Default for WorkersConfig {
    fn default() -> WorkersConfig {
        WorkersConfig { count: WorkerCount::from_static(1), cpus: Vec::new(), idle: WorkerIdle::default() }
    }
}

keywords!(WorkerIdle, "spin or sleep", "spin" => Spin, "sleep" => Sleep);

struct Cpu(u16);

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Cpu, D::Error> {
        d.deserialize_any(WholeVisitor { min: 0, max: CPU_MAX }).map(|n| Cpu(n as u16))
    }
}

fn cpus<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u16>, D::Error> {
    let accept = |Cpu(cpu): Cpu, before: &[u16]| match before.contains(&cpu) {
        true => Err(format!("CPU {cpu} is listed twice: one worker per CPU is allowed")),
        false => Ok(cpu),
    };
    d.deserialize_any(ListVisitor { expected: "CPU numbers", accept })
}

fn worker_count<'de, D: Deserializer<'de>>(d: D) -> Result<Option<WorkerCount>, D::Error> {
    limited(d).map(Some)
}

impl<'de> Deserialize<'de> for WorkersConfig {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<WorkersConfig, D::Error> {
        #[derive(serde::Deserialize, Default)]
        #[serde(default, deny_unknown_fields)]
        struct Fields {
            #[serde(deserialize_with = "worker_count")]
            count: Option<WorkerCount>,
            #[serde(deserialize_with = "cpus")]
            cpus: Vec<u16>,
            idle: WorkerIdle,
        }

        struct WorkersVisitor;

        impl<'de> Visitor<'de> for WorkersVisitor {
            type Value = WorkersConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}, or a mapping with count, cpus and idle", WorkerCount::RULE)
            }

            fn visit_u64<E: Error>(self, n: u64) -> Result<WorkersConfig, E> {
                Ok(WorkersConfig { count: WorkerCount::try_from(n).map_err(E::custom)?, ..WorkersConfig::default() })
            }

            fn visit_i64<E: Error>(self, n: i64) -> Result<WorkersConfig, E> {
                let count = u64::try_from(n).map_err(|_| E::invalid_value(Unexpected::Signed(n), &self))?;
                self.visit_u64(count)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WorkersConfig, A::Error> {
                let fields = Fields::deserialize(MapAccessDeserializer::new(map))?;
                let listed = fields.cpus.len();
                let count = match fields.count {
                    Some(count) => count,
                    None => WorkerCount::try_from(listed.max(1) as u64).map_err(A::Error::custom)?,
                };
                if listed > 0 && listed != count.get() as usize {
                    return Err(A::Error::custom(format!("count is {count}, but {listed} cpus are listed: list one per worker, or none")));
                }
                Ok(WorkersConfig { count, cpus: fields.cpus, idle: fields.idle })
            }
        }

        d.deserialize_any(WorkersVisitor)
    }
}
