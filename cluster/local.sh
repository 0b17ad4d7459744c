#!/usr/bin/env bash
# Several hosts on one Linux machine: a Ray head and workers, each in a network and process
# namespace with an address and a host name of its own. Needs root, iproute2 and util-linux.
#
#   sudo env "PATH=$PATH" cluster/local.sh up 2      the head and two workers; again: what is missing
#   sudo cluster/local.sh run head scvi-dist run run.yaml       a command on one of the hosts
#   sudo cluster/local.sh kill worker2               its processes die at once; 'up' starts it again
#   sudo cluster/local.sh cut worker2                as if its cable was pulled; 'up' mends it
#   sudo cluster/local.sh status                     0 if all hosts are up, 1 if not
#   sudo cluster/local.sh demo                       the demo on the cluster
#   sudo cluster/local.sh down                       all that 'up' made is gone
#   eval "$(sudo cluster/local.sh env)"              what 'scvi-dist submit' needs in this shell
#
# Other settings, as variables of the environment:
#   SCVI_DIST_LOCAL_NAME        names namespaces and interfaces, 8 letters or digits at most (scvi)
#   SCVI_DIST_LOCAL_NET         first three numbers of the addresses (10.77.0)
#   SCVI_DIST_LOCAL_CPUS        logical CPUs of a worker (2)
#   SCVI_DIST_LOCAL_HEAD_CPUS   of the head (0: it runs drivers only)
#   SCVI_DIST_LOCAL_STORE       bytes of each host's object store (200000000)
#   SCVI_DIST_LOCAL_WORKER1     more arguments of 'ray start' on worker1, such as
#                               --labels=role=reader; likewise ..._HEAD, ..._WORKER2
#   SCVI_DIST_LOCAL_START_S     longest wait for a host to start (180)
#   PYTHON                      an interpreter that has Ray (the first python on PATH)
#
# The hosts share this machine's disk: shared storage, which a real cluster needs, is there by itself.
set -euo pipefail

name=${SCVI_DIST_LOCAL_NAME:-scvi}
net=${SCVI_DIST_LOCAL_NET:-10.77.0}
wait_s=${SCVI_DIST_LOCAL_START_S:-180}
stop_s=20
home=/var/lib/scvi_dist/$name
bridge=$name-br
head_ip=$net.1
gcs=$head_ip:6379
dashboard=http://$head_ip:8265

fail() {
  echo "local.sh: $*" >&2
  exit 1
}

usage() {
  sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "$0"
}

# --- what a host is called ------------------------------------------------------------------------

# Each host is one line of $home/hosts: its name and its number, which is the end of its address.
hosts() { if [ -f "$home/hosts" ]; then cut -d' ' -f1 "$home/hosts"; fi; }

number_of() { awk -v host="$1" '$1 == host { print $2 }' "$home/hosts"; }

known() {
  grep -q "^$1 " "$home/hosts" 2>/dev/null ||
    fail "no host is called $1; there are: $(hosts | tr '\n' ' '). 'up' makes them."
}

# The process that holds a host, if it is alive and really that one.
holder_of() {
  local pid
  pid=$(cat "$home/$1.pid" 2>/dev/null) || return 0
  if [ "$(ip netns identify "$pid" 2>/dev/null)" = "$name-$1" ]; then echo "$pid"; fi
}

# Process 1 of a host's own processes.
first_of() {
  local holder
  holder=$(holder_of "$1")
  if [ -n "$holder" ]; then cat "/proc/$holder/task/$holder/children" 2>/dev/null | tr -d ' '; fi
}

# --- network --------------------------------------------------------------------------------------

make_network() {
  if ip link show "$bridge" >/dev/null 2>&1; then return; fi
  if ip -4 -o addr | grep -q " inet $net\\."; then
    fail "addresses $net.x are in use on this machine; set SCVI_DIST_LOCAL_NET to others."
  fi
  ip link add "$bridge" type bridge
  ip addr add "$net.254/24" dev "$bridge"
  ip link set "$bridge" up
}

make_host() {
  local host=$1 number=$2 space=$name-$1
  if [ -e "/run/netns/$space" ]; then return; fi
  ip netns add "$space"
  ip link add "$name-v$number" type veth peer name eth0 netns "$space"
  ip link set "$name-v$number" master "$bridge" up
  ip -n "$space" addr add "$net.$number/24" dev eth0
  ip -n "$space" link set eth0 up
  ip -n "$space" link set lo up
  ip -n "$space" route add default via "$net.254"
}

# 'ip netns exec' shows a host the files of /etc/netns/<its namespace> in the place of those in /etc.
name_hosts() {
  local host number folder
  for host in $(hosts); do
    folder=/etc/netns/$name-$host
    mkdir -p "$folder"
    {
      echo "127.0.0.1 localhost"
      while read -r other number; do echo "$net.$number $other"; done <"$home/hosts"
    } >"$folder/hosts"
  done
}

# --- Ray ------------------------------------------------------------------------------------------

find_python() {
  python=${PYTHON:-$(command -v python || command -v python3 || true)}
  [ -n "$python" ] || fail "there is no python on PATH; set PYTHON."
  python=$(command -v "$python") || fail "PYTHON=$PYTHON is no program."
  "$python" -c "import importlib.util as u; raise SystemExit(u.find_spec('ray') is None)" ||
    fail "$python has no Ray. Set PYTHON to one that has, or put it first on PATH (sudo resets PATH:
  sudo env \"PATH=\$PATH\" $0 up)."
  # Ray starts workers, and the entry points of jobs, by the PATH of its own processes.
  PATH=$(dirname "$python"):$PATH
  export PATH
}

environment() {
  unset RAY_ADDRESS RAY_AUTH_TOKEN
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$home/token
  export RAY_USAGE_STATS_ENABLED=0
  # Without it gloo may listen where a host's name leads to, the loopback.
  export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0
}

# In the place of this shell: a command as the host's process 1, with which all of the host ends.
start_apart() {
  local host=$1 file
  shift
  # Files open here, such as locks of who called, are not to stay open as long as the host lives.
  for file in "/proc/$BASHPID/fd/"*; do
    file=${file##*/}
    if [ "$file" -gt 2 ]; then eval "exec $file>&-"; fi
  done
  # shellcheck disable=SC2016  # the inner shell is to expand them
  exec setsid ip netns exec "$name-$host" unshare --pid --fork --kill-child --mount-proc --uts \
    sh -c 'hostname "$0" && exec "$@"' "$host" "$@" </dev/null >"$home/$host.log" 2>&1
}

start_ray() {
  local host=$1 number=$2 cpus extra
  extra=SCVI_DIST_LOCAL_$(echo "$host" | tr '[:lower:]' '[:upper:]')
  local options=("--node-ip-address=$net.$number" "--temp-dir=$home/$host"
    "--object-store-memory=${SCVI_DIST_LOCAL_STORE:-200000000}" --disable-usage-stats --block)
  if [ "$host" = head ]; then
    cpus=${SCVI_DIST_LOCAL_HEAD_CPUS:-0}
    options+=(--head --port=6379 --dashboard-host="$head_ip" --dashboard-port=8265)
  else
    cpus=${SCVI_DIST_LOCAL_CPUS:-2}
    options+=("--address=$gcs")
  fi
  options+=("--num-cpus=$cpus")
  # shellcheck disable=SC2206  # several arguments in one variable are meant to be several
  options+=(${!extra:-})
  start_apart "$host" "$python" -m ray.scripts.scripts start "${options[@]}" &
  echo $! >"$home/$host.pid"
  # Between its start and its entry into the namespace a process is not known as the host's.
  local deadline=$((SECONDS + stop_s))
  until [ -n "$(holder_of "$host")" ]; do
    [ "$SECONDS" -lt "$deadline" ] || fail "$host did not start: $(tail -n 20 "$home/$host.log")"
    sleep 0.05
  done
}

await_ray() {
  local host=$1 deadline=$((SECONDS + wait_s))
  until grep -q "Ray runtime started" "$home/$host.log"; do
    [ -n "$(holder_of "$host")" ] || fail "$host did not start: $(tail -n 20 "$home/$host.log")"
    if [ "$SECONDS" -ge "$deadline" ]; then
      end_host "$host"
      fail "$host did not start within $wait_s s (SCVI_DIST_LOCAL_START_S); its log is \
$home/$host.log. If $head_ip cannot be reached from there, a firewall on this machine may filter \
bridges (sysctl net.bridge.bridge-nf-call-iptables)."
    fi
    sleep 0.2
  done
}

await_dashboard() {
  local deadline=$((SECONDS + wait_s))
  until (: <"/dev/tcp/$head_ip/8265") 2>/dev/null; do
    [ "$SECONDS" -lt "$deadline" ] || fail "the dashboard does not answer at $dashboard."
    sleep 0.2
  done
}

end_host() {
  local host=$1 holder pid deadline=$((SECONDS + stop_s))
  holder=$(holder_of "$host")
  if [ -n "$holder" ]; then kill -KILL "$holder" 2>/dev/null || true; fi
  # What 'run' has started there is of the host, too.
  for pid in $(ip netns pids "$name-$host" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null || true; done
  while [ -n "$(ip netns pids "$name-$host" 2>/dev/null)" ]; do
    [ "$SECONDS" -lt "$deadline" ] ||
      fail "$host still has processes: $(ip netns pids "$name-$host" | tr '\n' ' ')"
    sleep 0.1
  done
  rm -f "$home/$host.pid"
}

# --- commands -------------------------------------------------------------------------------------

up() {
  local workers=${1:-} host number missing=()
  find_python
  mkdir -p "$home"
  chmod 700 "$home"
  if [ ! -f "$home/hosts" ]; then
    if [ -e "/run/netns/$name-head" ] || ip link show "$bridge" >/dev/null 2>&1; then
      fail "there are network namespaces or a bridge of the name $name that this script has no \
record of; set SCVI_DIST_LOCAL_NAME to another name."
    fi
    echo "head 1" >"$home/hosts"
    workers=${workers:-2}
  fi
  [[ ${workers:-0} =~ ^[0-9]+$ ]] && [ "${workers:-0}" -le 200 ] ||
    fail "expected a number of workers up to 200, seen $workers."
  for ((number = 2; number <= ${workers:-0} + 1; number++)); do
    host=worker$((number - 1))
    grep -q "^$host " "$home/hosts" || echo "$host $number" >>"$home/hosts"
  done
  [ -f "$home/token" ] ||
    (umask 077 && "$python" -c "import secrets; print(secrets.token_hex(32))" >"$home/token")
  environment
  make_network
  name_hosts
  # Workers of a head that is gone know nothing of the next one.
  if [ -z "$(holder_of head)" ]; then for host in $(hosts); do clear_host "$host"; done; fi
  for host in $(hosts); do
    if [ -n "$(holder_of "$host")" ]; then
      ip link set "$name-v$(number_of "$host")" up
    else
      missing+=("$host")
    fi
  done
  for host in "${missing[@]+"${missing[@]}"}"; do
    clear_host "$host"
    make_host "$host" "$(number_of "$host")"
    start_ray "$host" "$(number_of "$host")"
    if [ "$host" = head ]; then await_ray head; fi
  done
  for host in "${missing[@]+"${missing[@]}"}"; do await_ray "$host"; done
  await_dashboard
  status
  echo "The dashboard is $dashboard; it asks for the token in $home/token."
}

# Nothing of an earlier life of a host is left.
clear_host() {
  if [ -e "/run/netns/$name-$1" ]; then end_host "$1"; fi
  rm -rf "${home:?}/$1" "$home/$1.log"
}

down() {
  local host number
  for host in $(hosts); do
    number=$(number_of "$host")
    if [ -e "/run/netns/$name-$host" ]; then
      end_host "$host"
      ip netns del "$name-$host"
    fi
    # It goes with the namespace that has its other end, but not always at once.
    ip link del "$name-v$number" 2>/dev/null || true
    rm -rf "/etc/netns/$name-$host"
  done
  if [ -f "$home/hosts" ]; then ip link del "$bridge" 2>/dev/null || true; fi
  rmdir /etc/netns 2>/dev/null || true
  # The lock's file is open here; that does not keep it.
  rm -rf "${home:?}"
  rmdir "$(dirname "$home")" 2>/dev/null || true
}

status() {
  local host number holder all=0
  if [ ! -f "$home/hosts" ]; then
    echo "no hosts of the name $name"
    return 1
  fi
  while read -r host number; do
    holder=$(holder_of "$host")
    if [ -n "$holder" ]; then
      printf '%-9s %-13s up, process %s\n' "$host" "$net.$number" "$holder"
    else
      printf '%-9s %-13s down\n' "$host" "$net.$number"
      all=1
    fi
  done <"$home/hosts"
  return "$all"
}

run_on() {
  local host=${1:-} first
  [ $# -ge 2 ] || fail "expected: run HOST COMMAND…"
  shift
  known "$host"
  find_python
  environment
  export RAY_ADDRESS=$gcs
  first=$(first_of "$host")
  [ -n "$first" ] || fail "$host is down; 'up' starts it."
  exec nsenter --target "$first" --net --pid --mount --uts --wdns="$PWD" -- "$@"
}

print_env() {
  [ -f "$home/token" ] || fail "nothing is up: no token is there yet."
  echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(cat "$home/token") RAY_API_SERVER_ADDRESS=$dashboard"
}

# One change at a time.
locked() {
  mkdir -p "$home"
  exec 9>"$home/lock"
  flock --timeout "$((wait_s * 2))" 9 || fail "another local.sh has been at work for $((wait_s * 2)) s."
  "$@"
}

[[ $name =~ ^[a-z][a-z0-9]{0,7}$ ]] || fail "SCVI_DIST_LOCAL_NAME: expected a lower-case letter and \
up to 7 more or digits, seen '$name'."
[[ $net =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || fail "SCVI_DIST_LOCAL_NET: expected three numbers such as \
10.77.0, seen '$net'."
command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
help | -h | --help)
  usage
  exit 0
  ;;
up | down | kill | cut | run | status | demo | env) ;;
*) fail "no command is called $command; see $0 help" ;;
esac
[ "$(id -u)" = 0 ] || fail "network namespaces need root: sudo env \"PATH=\$PATH\" $0 $command $*"
for tool in ip unshare nsenter setsid flock; do
  command -v "$tool" >/dev/null || fail "there is no '$tool' here; it is in iproute2 or util-linux."
done
ip netns list >/dev/null 2>&1 || fail "this kernel or container has no network namespaces (ip netns)."

case $command in
up) locked up "$@" ;;
down) if [ -d "$home" ]; then locked down; fi ;;
kill)
  known "${1:-}"
  locked end_host "$1"
  ;;
cut)
  known "${1:-}"
  locked ip link set "$name-v$(number_of "$1")" down
  ;;
run) run_on "$@" ;;
status) status ;;
demo) run_on head scvi-dist demo "$@" ;;
env) print_env ;;
esac
