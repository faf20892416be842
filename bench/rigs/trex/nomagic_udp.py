"""UDP to the rig's Services, many flows, and a thin stream that measures latency. A profile for TRex's stateless mode.

Written for TRex v3.0x, whose tunables are an argparse command line; not run here. In TRex's console, at 1 million frames a second from port 0:

    start -f nomagic_udp.py -p 0 -m 1mpps -d 60 -t --size 64 --flows 1000000
    start -f nomagic_udp.py -p 0 -m 1mpps -d 60 -t --size imix --services 4

Loss is port 0's opackets less port 1's ipackets: `stats -p`, over the whole run and after it has drained. Latency and the latency stream's own loss:
`stats -l`; TRex knows its frames again by their payload and IP header, of which the gateway changes addresses, TTL and checksum. UDP checksums are 0
(none): TRex writes ports and times into a frame after it is made, and the gateway keeps a 0.
"""

import argparse

from trex_stl_lib.api import Ether, IP, STLFlowLatencyStats, STLPktBuilder, STLStream, STLTXCont, STLVM, UDP

# Of bench/rigs/nomagic/manifests/rig.yaml.
SERVICES = ["10.96.0.10", "10.96.0.11", "10.96.0.12", "10.96.0.13"]
PORT = 9
# Clients: routed back to port 0 by the gateway.
CLIENT_MIN, CLIENT_MAX = "198.18.64.2", "198.18.127.254"
LATENCY_CLIENT = "198.18.64.1"
# Sizes with FCS, and how many of each: as `nomagic-bench pktgen --size imix`.
IMIX = [(64, 7), (594, 4), (1518, 1)]
FCS = 4
LATENCY_PPS = 1000


class NomagicUdp:
    """The streams of one port."""

    @staticmethod
    def _padded(headers, size):
        return headers / ("x" * max(0, size - FCS - len(headers)))

    def _load(self, service, size, flows, share):
        headers = Ether() / IP(src=CLIENT_MIN, dst=service) / UDP(sport=1024, dport=PORT, chksum=0)
        vm = STLVM()
        vm.tuple_var(name="from", ip_min=CLIENT_MIN, ip_max=CLIENT_MAX, port_min=1024, port_max=65535, limit_flows=flows)
        vm.write(fv_name="from.ip", pkt_offset="IP.src")
        vm.write(fv_name="from.port", pkt_offset="UDP.sport")
        # IPv4's header only.
        vm.fix_chksum()
        return STLStream(packet=STLPktBuilder(pkt=self._padded(headers, size), vm=vm), mode=STLTXCont(pps=share))

    def _latency(self, pg_id):
        # Its own rate, which -m does not change. At least 16 bytes of payload are TRex's.
        headers = Ether() / IP(src=LATENCY_CLIENT, dst=SERVICES[0]) / UDP(sport=1024, dport=PORT, chksum=0)
        packet = STLPktBuilder(pkt=self._padded(headers, 128))
        return STLStream(packet=packet, mode=STLTXCont(pps=LATENCY_PPS), flow_stats=STLFlowLatencyStats(pg_id=pg_id))

    def get_streams(self, direction=0, port_id=0, tunables=(), **_):
        parser = argparse.ArgumentParser(prog="nomagic_udp.py", description="UDP to nomagic's Services")
        parser.add_argument("--size", default="64", help="bytes of a frame with FCS, or imix")
        parser.add_argument("--flows", type=int, default=10_000, help="flows of each Service and size")
        parser.add_argument("--services", type=int, default=1, choices=range(1, len(SERVICES) + 1), help="Services to send to")
        parser.add_argument("--no-latency", action="store_true", help="without the latency stream")
        args = parser.parse_args(list(tunables))
        sizes = IMIX if args.size == "imix" else [(int(args.size), 1)]
        streams = [
            self._load(service, size, args.flows, share) for service in SERVICES[: args.services] for size, share in sizes
        ]
        if not args.no_latency:
            streams.append(self._latency(pg_id=10 + port_id))
        return streams


def register():
    return NomagicUdp()
