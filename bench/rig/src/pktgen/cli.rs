//! The command line of `nomagic-bench pktgen`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::interface::Place;
use super::options::{BackendKind, Options};
use super::profile::{Choice, NewFlows, Prefix, Profile, Protocol, Size};
use super::run::run;
use crate::format::Format;

const EXAMPLES: &str = "\
Examples, between two ends of a veth pair in the namespaces a and b:
  Flat out, the smallest frames:
    nomagic-bench pktgen --tx eth0@a --rx eth0@b --backend live
  50,000 frames a second of 512 bytes over IPv6, for a minute, as JSON:
    nomagic-bench pktgen --tx eth0@a --rx eth0@b --from fd00::/64 --to '[fd00:1::1]:53' --size 512 --rate 50000 --duration 60 --format json
  To a Service through a gateway (--dst-mac is that of its interface), 10,000 flows of very different rates:
    nomagic-bench pktgen --tx eth0@client --rx gw0@fabric --dst-mac 02:00:00:00:00:01 --to 10.109.35.53:53 --flows 10000 --choice zipf:1.1 --rate 100000
  2,000 new TCP connections a second; a SYN flood; a capture, repeated:
    nomagic-bench pktgen --tx eth0@a --rx eth0@b --protocol tcp --rate 100000 --new-flows-per-second 2000
    nomagic-bench pktgen --tx eth0@a --rx eth0@b --protocol syn-flood --from 10.0.0.0/16
    nomagic-bench pktgen --tx eth0@a --rx eth0@b --pcap traffic.pcap --rate 10000

Frames carry flow, sequence number and time in their payload, and the sink checks them. Sizes include the FCS, as in RFC 2544. A run ends after --duration
at the latest. Interfaces outside of the namespaces of `ip netns` need --allow-host-interface.";

/// `nomagic-bench pktgen`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PktgenArgs {
    /// Interface to send from, INTERFACE or INTERFACE@NETNS
    #[arg(long)]
    tx: Place,
    /// Interface that receives the frames; without it they are not counted
    #[arg(long)]
    rx: Option<Place>,
    /// Destination, ADDRESS:PORT or [ADDRESS]:PORT (repeatable: flows take them in turn)
    #[arg(long, default_value = "198.18.1.1:9")]
    to: Vec<SocketAddr>,
    /// Source addresses; the default is reserved for benchmarks (RFC 2544)
    #[arg(long, default_value = "198.18.0.0/24")]
    from: Prefix,
    /// Number of concurrent flows
    #[arg(long, default_value_t = 1000)]
    flows: u32,
    /// How the flow of each frame is chosen: round-robin, uniform, zipf or zipf:EXPONENT
    #[arg(long, default_value = "round-robin")]
    choice: Choice,
    /// Bytes of a frame with FCS (64, 128, 512, 1518, ...), min or imix (7 of 64, 4 of 594, 1 of 1518)
    #[arg(long, default_value = "min")]
    size: Size,
    /// Transport protocol
    #[arg(long, value_enum, default_value_t = Protocol::Udp)]
    protocol: Protocol,
    /// Flows that are replaced by new ones each second; needs --rate
    #[arg(long)]
    new_flows_per_second: Option<u64>,
    /// Replay the frames of a pcap or pcapng file, with this link's MAC addresses
    #[arg(long, conflicts_with_all = ["to", "from", "flows", "choice", "size", "protocol", "new_flows_per_second"])]
    pcap: Option<PathBuf>,
    /// Frames a second [default: as many as possible]
    #[arg(long)]
    rate: Option<u64>,
    /// Seconds, at most 3600
    #[arg(long, default_value_t = 10.0)]
    duration: f64,
    /// End after so many frames
    #[arg(long)]
    count: Option<u64>,
    /// Method of sending
    #[arg(long, value_enum, default_value_t = BackendKind::AfXdp)]
    backend: BackendKind,
    /// Only count at the sink, in its XDP program: for rates above those of its sockets
    #[arg(long)]
    count_only: bool,
    /// MAC address of the first hop [default: that of --rx]
    #[arg(long)]
    dst_mac: Option<String>,
    /// Seed of the random numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Allow the host's own interfaces, outside of the namespaces of `ip netns`
    #[arg(long)]
    allow_host_interface: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl PktgenArgs {
    pub fn options(&self) -> Result<Options> {
        ensure!(
            self.duration.is_finite() && self.duration > 0.0 && self.duration < 1e6,
            "--duration {}: give 0.001 to 3600",
            self.duration
        );
        let new_flows = match (self.new_flows_per_second, self.rate) {
            (Some(_), None) => anyhow::bail!("--new-flows-per-second needs --rate: a new flow begins every so many frames"),
            (Some(new), Some(frames)) => Some(NewFlows { new, frames }),
            (None, _) => None,
        };
        Ok(Options {
            tx: self.tx.clone(),
            rx: self.rx.clone(),
            profile: Profile {
                targets: self.to.clone(),
                sources: self.from,
                flows: self.flows,
                choice: self.choice,
                size: self.size,
                protocol: self.protocol,
                new_flows,
                seed: self.seed,
            },
            pcap: self.pcap.clone(),
            backend: self.backend,
            rate: self.rate,
            duration: Duration::from_secs_f64(self.duration),
            count: self.count,
            count_only: self.count_only,
            dst_mac: self.dst_mac.as_deref().map(mac).transpose()?,
            allow_host: self.allow_host_interface,
        })
    }

    pub fn format(&self) -> Format {
        self.format
    }

    pub fn run(&self) -> Result<()> {
        let options = self.options()?;
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, stop.clone()).context("cannot watch signals")?;
        }
        let report = run(&options, &stop, true)?;
        self.format.print(&report)
    }
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|b| u8::from_str_radix(b, 16).ok().filter(|_| b.len() == 2)).collect();
    bytes.and_then(|b| b.try_into().ok()).with_context(|| format!("--dst-mac `{text}`: give six bytes such as 02:00:00:00:00:01"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: PktgenArgs,
    }

    fn options(words: &str) -> Result<Options> {
        Cli::try_parse_from(format!("pktgen {words}").split_whitespace())?.args.options()
    }

    #[test]
    fn defaults_are_sound_and_bounded() {
        let options = options("--tx eth0@a --rx eth0@b").unwrap();
        options.check().unwrap();
        assert_eq!((options.duration, options.allow_host, options.rate), (Duration::from_secs(10), false, None));
    }

    #[test]
    fn the_help_s_examples_are_accepted() {
        let mut found = 0;
        for line in EXAMPLES.lines().filter_map(|l| l.trim().strip_prefix("nomagic-bench pktgen ")) {
            options(&line.replace('\'', "")).unwrap_or_else(|e| panic!("{line}: {e:#}")).check().unwrap();
            found += 1;
        }
        assert_eq!(found, 6);
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        for (words, said) in [
            ("--rx eth0@b", "--tx"),
            ("--tx a", "--dst-mac must name"),
            ("--tx a --rx b --duration 0", "--duration"),
            ("--tx a --rx b --duration 3601", "--duration"),
            ("--tx a --rx b --duration NaN", "--duration"),
            ("--tx a --rx b --count 0", "--count"),
            ("--tx a --rx b --rate 0", "--rate"),
            ("--tx a --rx b --new-flows-per-second 5", "needs --rate"),
            ("--tx a --rx b --new-flows-per-second 5 --rate 4", "at most as many"),
            ("--tx a --rx b --pcap x --size 64", "cannot be used with"),
            ("--tx a --rx b --pcap x --backend live", "--pcap"),
            ("--tx a --dst-mac 02:00:00:00:00", "--dst-mac"),
            ("--tx a --dst-mac 2:0:0:0:0:1", "--dst-mac"),
        ] {
            let error = options(words).and_then(|o| o.check()).unwrap_err().to_string();
            assert!(error.contains(said), "{words}: {error}");
        }
    }
}
