#!/usr/bin/env bash
# The kernel's pktgen on several CPUs, one transmit queue each: UDP to a Service, many flows. Written for Linux 5.x and 6.x
# (https://docs.kernel.org/networking/pktgen.html); not run here: the machines of the tests have no such module.
#
#   pktgen-kernel.sh --interface eth1 --dst-mac 02:00:00:00:01:01 --to 10.96.0.10 --port 9 --cpus 2,3,4,5 [--netns gen]
#       [--from 198.18.64.1-198.18.127.254] [--size 64] [--count 10000000] [--rate PPS] [--burst 32]
#
# Frames have no sequence numbers: a sink can only count them (`nomagic-bench pktgen --count-only`, or the gateway's and the NIC's counters).
# --size is with FCS; --count and --rate are for each CPU. --burst hands the driver the same frame so many times at once: the highest rates, but
# so many frames of one flow in a row; 1 changes the flow with each frame. It ends when all are sent, or on ^C.
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

die() {
  echo "pktgen-kernel.sh: $*" >&2
  exit 1
}

interface="" dst_mac="" to="" port=9 cpus="" netns="" from=198.18.64.1-198.18.127.254 size=64 count=10000000 rate="" burst=32
[ $# -gt 0 ] || usage
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case "$1" in
    --interface) interface=$2 ;;
    --dst-mac) dst_mac=$2 ;;
    --to) to=$2 ;;
    --port) port=$2 ;;
    --cpus) cpus=$2 ;;
    --netns) netns=$2 ;;
    --from) from=$2 ;;
    --size) size=$2 ;;
    --count) count=$2 ;;
    --rate) rate=$2 ;;
    --burst) burst=$2 ;;
    *) usage ;;
  esac
  shift 2
done
for given in "$interface" "$dst_mac" "$to" "$cpus"; do
  [ -n "$given" ] || usage
done
for number in "$port" "$size" "$count" "$burst" "${rate:-1}"; do
  [[ $number =~ ^[0-9]+$ ]] || die "$number is no number"
done
[[ $from == *-* ]] || die "--from $from: give FIRST-LAST"
[[ $cpus =~ ^[0-9]+(,[0-9]+)*$ ]] || die "--cpus $cpus: give a list such as 2,3,4,5"
[ "$(id -u)" = 0 ] || die "needs root"

# Into the namespace once: pktgen's files and the interface are of the namespace of whoever writes.
if [ -n "$netns" ] && [ -z "${PKTGEN_INSIDE:-}" ]; then
  arguments=(--interface "$interface" --dst-mac "$dst_mac" --to "$to" --port "$port" --cpus "$cpus" --from "$from" --size "$size" --count "$count"
    --burst "$burst")
  [ -z "$rate" ] || arguments+=(--rate "$rate")
  PKTGEN_INSIDE=1 exec ip netns exec "$netns" "$0" "${arguments[@]}"
fi
dir=/proc/net/pktgen
[ -e $dir/pgctrl ] || modprobe pktgen || die "this kernel has no pktgen (CONFIG_NET_PKTGEN)"

# Writes a command into a file of pktgen's; a thread's and a device's file then say how it went.
tell() {
  echo "$2" >"$dir/$1" || die "$1: \`$2\` was refused: $(grep -s Result: "$dir/$1" || true)"
}

tidy() {
  for cpu in ${cpus//,/ }; do
    echo rem_device_all >"$dir/kpktgend_$cpu" || true
  done
}
trap tidy EXIT

queue=0
for cpu in ${cpus//,/ }; do
  [ -e "$dir/kpktgend_$cpu" ] || die "CPU $cpu has no thread of pktgen's"
  device=$interface@$cpu
  tell "kpktgend_$cpu" rem_device_all
  tell "kpktgend_$cpu" "add_device $device"
  tell "$device" "count $count"
  tell "$device" "pkt_size $((size - 4))"
  tell "$device" "delay 0"
  tell "$device" "burst $burst"
  tell "$device" "queue_map_min $queue"
  tell "$device" "queue_map_max $queue"
  tell "$device" "flag NO_TIMESTAMP"
  tell "$device" "dst_mac $dst_mac"
  tell "$device" "dst_min $to"
  tell "$device" "dst_max $to"
  tell "$device" "src_min ${from%-*}"
  tell "$device" "src_max ${from#*-}"
  tell "$device" "flag IPSRC_RND"
  tell "$device" "udp_dst_min $port"
  tell "$device" "udp_dst_max $port"
  tell "$device" "udp_src_min 1024"
  tell "$device" "udp_src_max 65535"
  tell "$device" "flag UDPSRC_RND"
  [ -z "$rate" ] || tell "$device" "ratep $rate"
  queue=$((queue + 1))
done

echo "sending $count frames of $size bytes from each of the CPUs $cpus out of $interface to $to:$port"
echo start >$dir/pgctrl
sent=0
for cpu in ${cpus//,/ }; do
  device=$interface@$cpu
  of_cpu=$(sed -n 's/.*pkts-sofar: *\([0-9]*\).*/\1/p' "$dir/$device")
  sent=$((sent + of_cpu))
  echo "CPU $cpu: $(tr '\n' ' ' <"$dir/$device" | sed 's/.*Result: *//')"
done
echo "sent $sent frames"
