#!/usr/bin/env bash
#SBATCH --job-name=sentisynth
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=12:00:00
# A Ray cluster for one command, on nodes that share a file system:
#     sbatch cluster/slurm.sh run sst2 --out /shared/runs/sst2
# Whole nodes: Ray refuses one on which another Ray runs, and stops all of a node's at its end.
# The driver runs on the first node. Cut off by the time limit or a lost node, the same line goes on.
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: sbatch cluster/slurm.sh COMMAND RECIPE [key=value ...] --out DIR" >&2
  exit 2
fi
project=${SENTISYNTH_PROJECT:-$SLURM_SUBMIT_DIR}
# shellcheck disable=SC1091
source "$project/.venv/bin/activate"

# a token for this job alone, that no other user can read (mktemp sees to that)
mkdir -p "$HOME/.ray"
RAY_AUTH_TOKEN_PATH=$(mktemp "$HOME/.ray/job-$SLURM_JOB_ID-XXXXXX")
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH RAY_USAGE_STATS_ENABLED=0
# what a job that was cut off leaves in /tmp/ray keeps another user's Ray from starting on that node
export RAY_TMPDIR=${RAY_TMPDIR:-/tmp/ray-$SLURM_JOB_ID}
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600  # a .venv on a shared file system starts slowly
ended=$RAY_AUTH_TOKEN_PATH.status
trap 'rm -f "$RAY_AUTH_TOKEN_PATH" "$ended"' EXIT

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# the first address that other nodes can reach: some systems name a loopback's before it
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" \
  sh -c 'hostname --ip-address; hostname --all-ip-addresses' | tr ' ' '\n' |
  awk '/^[0-9]+\.[0-9.]+$/ && !/^127\./ && !found {print; found = 1}')
port=$((20000 + SLURM_JOB_ID % 20000))

# one Ray process group a node; the command runs on the head once all nodes are there. Its status is
# noted: Ray's own is 0 where the head did not start, srun's is that of any lost node. The options
# are those that `ray start` takes on a head and on a worker; the dashboard is on the head's loopback.
# shellcheck disable=SC2016
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
  --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \
  ray symmetric-run --address "$address:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
  -- env RAY_ADDRESS="$address:$port" \
  bash -c 'status=0; "${@:2}" || status=$?; echo "$status" > "$1"; exit "$status"' \
  bash "$ended" sentisynth "$@" || true
if [[ ! -s $ended ]]; then
  echo "slurm.sh: sentisynth did not run to its end; Ray's words are above" >&2
  exit 1
fi
exit "$(cat "$ended")"
