#!/usr/bin/env bash
# Sets one interface, the interrupts of its queues and the given CPUs as a measurement wants them, and puts back what was there before.
#
#   tune-gateway.sh apply --interface eth1 --worker-cpus 2,3,4,5 --irq-cpus 6,7,8,9 [--ring 2048] [--dry-run]
#   tune-gateway.sh undo  --interface eth1 [--dry-run]
#
# Queues: as many as worker CPUs; RSS over all of them, UDP by ports; rings; no flow control, no LRO, fixed coalescing; each queue's interrupt on
# one of the irq CPUs in turn; governor `performance` on the worker CPUs and the irq CPUs. It prints every command. What was there before is in
# /run/nomagic-rig/INTERFACE, written by the first `apply` only, so `apply` may be repeated; `undo` reads it and removes it. What a driver
# cannot do is said and left out. Written for ethtool 5.x and 6.x; tested on veth, not run on a NIC yet. While sockets are bound a NIC
# cannot be given fewer queues: run it before nomagic starts.
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
}

die() {
  echo "tune-gateway.sh: $*" >&2
  exit 1
}

[ $# -gt 0 ] || usage
verb=$1
shift
interface="" worker_cpus="" irq_cpus="" ring=2048 dry=""
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry=1 && shift && continue ;;
    --interface | --worker-cpus | --irq-cpus | --ring) [ $# -ge 2 ] || usage ;;
    *) usage ;;
  esac
  case "$1" in
    --interface) interface=$2 ;;
    --worker-cpus) worker_cpus=$2 ;;
    --irq-cpus) irq_cpus=$2 ;;
    --ring) ring=$2 ;;
  esac
  shift 2
done
[[ $interface =~ ^[^/[:space:]]{1,15}$ ]] || die "--interface: name one"
[[ $ring =~ ^[0-9]+$ ]] || die "--ring $ring: give a number of entries"
[ "$(id -u)" = 0 ] || [ -n "$dry" ] || die "needs root"
ip link show dev "$interface" >/dev/null || die "$interface is not there"
state_dir=${NOMAGIC_RIG_STATE:-/run/nomagic-rig}
state=$state_dir/$interface

# Runs a command and says so; failing is said, and no reason to stop. ethtool -N tells of a failure in words only.
try() {
  local said
  echo "+ $*"
  [ -z "$dry" ] || return 0
  if ! said=$("$@" 2>&1 >/dev/null) || [ -n "$said" ]; then
    echo "  not done: $(head -n 1 <<<"${said:-it fails without a word}")"
  fi
}

put() {
  echo "+ echo $1 > $2"
  [ -n "$dry" ] || { echo "$1" >"$2"; } 2>/dev/null || echo "  not done: $2 refuses"
}

# The value named $2 in the output $1; with $3 = now only of the part behind "Current hardware settings".
value() {
  if [ "${3:-}" = now ]; then set -- "$(sed -n '/^Current hardware settings/,$p' <<<"$1")" "$2"; fi
  sed -n "s/^[[:space:]]*$2:[[:space:]]*\([^[:space:]]*\).*/\1/p" <<<"$1" | head -n 1
}

known() { [ -n "$1" ] && [ "$1" != n/a ] && [ "$1" != "?" ]; }

# The first number, or the second if that is one and smaller.
at_most() {
  if [[ $2 =~ ^[0-9]+$ ]] && [ "$2" -lt "$1" ]; then echo "$2"; else echo "$1"; fi
}

governor_file() { echo "/sys/devices/system/cpu/cpu$1/cpufreq/scaling_governor"; }

# Interrupts of the interface's queues, one a line. A few drivers name them otherwise: then all of the device's.
queue_irqs() {
  local bus all
  bus=$(ethtool -i "$interface" 2>/dev/null | sed -n 's/^bus-info: *//p')
  [ -n "$bus" ] && [ -d "/sys/bus/pci/devices/$bus/msi_irqs" ] || return 0
  all=$(cd "/sys/bus/pci/devices/$bus/msi_irqs" && echo ./*)
  for number in ${all//.\//}; do
    grep -E "^ *$number:" /proc/interrupts || true
  done | { grep -Ei 'txrx|tx-rx|rxtx|-rx|rx-|comp|input|ntfy|mana_q' || true; } | sed 's/^ *\([0-9]*\):.*/\1/'
}

# One `KEY VALUE...` a line: what `undo` puts back.
remember() {
  local text irq cpu
  text=$(ethtool -l "$interface" 2>/dev/null || true)
  if known "$(value "$text" Combined now)"; then
    echo "combined $(value "$text" Combined now)"
  elif known "$(value "$text" RX now)" && known "$(value "$text" TX now)"; then
    echo "queues $(value "$text" RX now) $(value "$text" TX now)"
  fi
  text=$(ethtool -g "$interface" 2>/dev/null || true)
  known "$(value "$text" RX now)" && known "$(value "$text" TX now)" && echo "rings $(value "$text" RX now) $(value "$text" TX now)"
  text=$(ethtool -a "$interface" 2>/dev/null || true)
  known "$(value "$text" RX)" && known "$(value "$text" TX)" &&
    echo "pause $(value "$text" Autonegotiate) $(value "$text" RX) $(value "$text" TX)"
  text=$(ethtool -k "$interface" 2>/dev/null || true)
  known "$(value "$text" large-receive-offload)" && echo "lro $(value "$text" large-receive-offload)"
  text=$(ethtool -c "$interface" 2>/dev/null || true)
  known "$(value "$text" "Adaptive RX")" && echo "adaptive $(value "$text" "Adaptive RX")"
  known "$(value "$text" rx-usecs)" && echo "usecs $(value "$text" rx-usecs)"
  for irq in $(queue_irqs); do
    echo "irq $irq $(cat "/proc/irq/$irq/smp_affinity_list")"
  done
  for cpu in ${worker_cpus//,/ } ${irq_cpus//,/ }; do
    [ ! -r "$(governor_file "$cpu")" ] || echo "governor $cpu $(cat "$(governor_file "$cpu")")"
  done
  # For eyes only: tables and hash fields have too many shapes to be put back other than to the driver's default.
  echo "rss default"
}

apply() {
  local list='^[0-9]+(,[0-9]+)*$' queues at cpu irq
  [[ $worker_cpus =~ $list ]] || die "--worker-cpus: give a list such as 2,3,4,5"
  [[ $irq_cpus =~ $list ]] || die "--irq-cpus: give a list such as 6,7,8,9"
  for cpu in ${worker_cpus//,/ } ${irq_cpus//,/ }; do
    [ -d "/sys/devices/system/cpu/cpu$cpu" ] || die "there is no CPU $cpu"
  done
  for cpu in ${worker_cpus//,/ }; do
    [[ ,$irq_cpus, != *,$cpu,* ]] || die "CPU $cpu is a worker's: its interrupts belong elsewhere"
  done
  if [ -e "$state" ]; then
    echo "# what was there before is known already: $state"
  elif [ -z "$dry" ]; then
    mkdir -p "$state_dir"
    # `known` fails on purpose where a driver tells nothing.
    (set +e; remember) >"$state.new"
    mv "$state.new" "$state"
    echo "# what was there before: $state"
  fi
  IFS=, read -r -a at <<<"$worker_cpus"
  queues=${#at[@]}
  if known "$(value "$(ethtool -l "$interface" 2>/dev/null || true)" Combined now)"; then
    try ethtool -L "$interface" combined "$queues"
  else
    try ethtool -L "$interface" rx "$queues" tx "$queues"
  fi
  try ethtool -X "$interface" equal "$queues"
  try ethtool -N "$interface" rx-flow-hash udp4 sdfn
  try ethtool -N "$interface" rx-flow-hash udp6 sdfn
  local text
  text=$(ethtool -g "$interface" 2>/dev/null || true)
  try ethtool -G "$interface" rx "$(at_most "$ring" "$(value "$text" RX)")" tx "$(at_most "$ring" "$(value "$text" TX)")"
  try ethtool -A "$interface" autoneg off rx off tx off
  try ethtool -K "$interface" lro off
  try ethtool -C "$interface" adaptive-rx off adaptive-tx off rx-usecs 8
  IFS=, read -r -a at <<<"$irq_cpus"
  local n=0
  for irq in $(queue_irqs); do
    put "${at[$((n % ${#at[@]}))]}" "/proc/irq/$irq/smp_affinity_list"
    n=$((n + 1))
  done
  [ $n -gt 0 ] || echo "# $interface has no interrupts of its own that are known"
  for cpu in ${worker_cpus//,/ } ${irq_cpus//,/ }; do
    [ ! -e "$(governor_file "$cpu")" ] || put performance "$(governor_file "$cpu")"
  done
  ! pgrep -x irqbalance >/dev/null || echo "# irqbalance runs and will move the interrupts: systemctl stop irqbalance"
}

undo() {
  [ -r "$state" ] || die "nothing to undo: $state is not there"
  local key a b c
  while read -r key a b c; do
    case "$key" in
      combined) try ethtool -L "$interface" combined "$a" ;;
      queues) try ethtool -L "$interface" rx "$a" tx "$b" ;;
      rings) try ethtool -G "$interface" rx "$a" tx "$b" ;;
      pause) try ethtool -A "$interface" autoneg "$a" rx "$b" tx "$c" ;;
      lro) try ethtool -K "$interface" lro "$a" ;;
      adaptive) try ethtool -C "$interface" adaptive-rx "$a" ;;
      usecs) try ethtool -C "$interface" rx-usecs "$a" ;;
      irq) put "$b" "/proc/irq/$a/smp_affinity_list" ;;
      governor) put "$b" "$(governor_file "$a")" ;;
      rss) try ethtool -X "$interface" default ;;
    esac
  done <"$state"
  [ -n "$dry" ] || rm "$state"
  echo "# the hash of UDP stays by ports: how it was before depends on the driver (ethtool -N $interface rx-flow-hash udp4 sd)"
}

case "$verb" in
  apply) apply ;;
  undo) undo ;;
  *) usage ;;
esac
