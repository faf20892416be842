-- UDP to the rig's Service with many flows, for Pktgen-DPDK. Written for Pktgen 22.x to 24.x; not run here.
--
--   pktgen -l 1-6 -n 4 -a 17:00.0 -a 17:00.1 --file-prefix rig -- -P -m "[2-3:4-5].0, 6.1" -f nomagic_udp.lua
--
-- (-l: its cores, the first one for the display; -a: the ports, bound to vfio-pci; -m: cores 2-3 receive and 4-5 send at port 0; port 1, on
-- core 6, is the sink. -P: promiscuous. Read `pktgen -h` for the version at hand: the words of -m have changed before.) Then, at its prompt:
--
--   set 0 rate 10      -- percent of the wire, or: set 0 rate 0.5
--   start 0
--   stop 0
--   clr
--
-- Loss is the difference of port 0's transmitted and port 1's received frames after `stop`.

package.path = package.path .. ";?.lua;test/?.lua;app/?.lua;"
require "Pktgen"

local gateway_mac = "02:00:00:00:01:01" -- the gateway's eth1
local own_mac     = "02:00:00:00:02:01" -- this machine's port 0
local service     = "10.96.0.10"
local size        = 64                  -- with FCS

-- A value that goes from `min` to `max` in steps of `inc`, and then starts again.
local function range(set, min, max, inc)
  set("0", "start", min)
  set("0", "inc", inc)
  set("0", "min", min)
  set("0", "max", max)
end

pktgen.range.dst_mac("0", "start", gateway_mac)
pktgen.range.src_mac("0", "start", own_mac)
range(pktgen.range.dst_ip, service, service, "0.0.0.0")
-- 250 clients with 40 ports each. All of them count up together, so flows repeat after the least common multiple: 1000.
range(pktgen.range.src_ip, "198.18.64.1", "198.18.64.250", "0.0.0.1")
range(pktgen.range.src_port, 1024, 1063, 1)
range(pktgen.range.dst_port, 9, 9, 0)
range(pktgen.range.pkt_size, size, size, 0)
pktgen.range.ip_proto("0", "udp")
pktgen.set("0", "rate", 1)
pktgen.set_range("0", "on")
