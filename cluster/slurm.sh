#!/usr/bin/env bash
# A run on Slurm: a Ray cluster on the job's hosts for as long as the run takes. What stands behind
# the run file overrides its values, as with 'scvi-dist run'.
#
#   sbatch cluster/slurm.sh run.yaml train.workers=8
#   sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh run.yaml train.workers=32
#
# Submit it in an environment that has scvi-dist, from a folder that all hosts see. Five minutes
# before the job's time is over the run writes a checkpoint and stops, and the job is queued again;
# so it is after the loss of a host.
#SBATCH --job-name=scvi-dist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=scvi-dist-%j.log
set -euo pipefail

start_s=${SCVI_DIST_START_S:-300}
INTERRUPTED=130

[ $# -ge 1 ] || {
  echo "usage: sbatch $0 RUN.yaml [key=value …]" >&2
  exit 2
}

# Jobs of others may share the hosts: the ports are this job's own.
port=$((20000 + SLURM_JOB_ID % 20000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | tr ' ' '\n' |
  grep -E '^[0-9]+(\.[0-9]+){3}$' | grep -v '^127\.' | head -n 1)

# Nobody else may start work on this cluster. Slurm hands the environment to srun's processes
# without showing it to other users.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
RAY_USAGE_STATS_ENABLED=0
# A host that is gone is noticed in seconds.
RAY_health_check_period_ms=1000
RAY_health_check_failure_threshold=5
export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED
export RAY_health_check_period_ms RAY_health_check_failure_threshold
unset RAY_ADDRESS
temp=/tmp/ray-$SLURM_JOB_ID

await() {
  local what=$1 deadline=$((SECONDS + start_s))
  shift
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      echo "error: $what did not start within $start_s s (SCVI_DIST_START_S); see $temp on it." >&2
      exit 1
    fi
    sleep 2
  done
}

# shellcheck disable=SC2329  # 'await' calls it
all_hosts() {
  python - "$SLURM_JOB_NUM_NODES" <<'PYTHON'
import sys
from ray.util.state import list_nodes
sys.exit(len(list_nodes(filters=[("state", "=", "ALIVE")])) < int(sys.argv[1]))
PYTHON
}

srun --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --node-ip-address="$head_ip" --port="$port" --temp-dir="$temp" \
  --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) \
  --disable-usage-stats &
await "the head, $head," ray health-check --address "$head_ip:$port"
export RAY_ADDRESS=$head_ip:$port
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
    ray start --block --address="$RAY_ADDRESS" &
  await "the cluster of $SLURM_JOB_NUM_NODES hosts" all_hosts
fi

# In the background, so that a signal reaches this script at once; it passes it on.
scvi-dist run "$@" &
run=$!
trap 'kill -TERM "$run" 2>/dev/null || true' TERM
code=0
wait "$run" || code=$?
# A signal ends 'wait' before it ends the run.
while kill -0 "$run" 2>/dev/null; do
  code=0
  wait "$run" || code=$?
done
if [ "$code" -eq "$INTERRUPTED" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
