#!/usr/bin/env bash
# Train on the nodes of a SLURM job. Arguments are those of `bmscale train`; options of sbatch go before the script:
#
#   sbatch slurm/train.sh toy training.max_steps=100
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 --time=24:00:00 slurm/train.sh my.yaml
#
# Prepare the data first (`bmscale prepare CONFIG`). The same line again goes on with the run. How states are sharded:
# training.deepspeed=zero3 among the arguments; without it zero2, as launch/multi_node.yaml says.
#
# sbatch runs a copy of this file in a folder of its own, so that nothing is looked for beside it. Relative paths and
# .venv are those of the folder in which sbatch is called: the clone, or any other folder with BMSCALE_ENV set. It must
# lie on a file system that all nodes share. Variables, set where sbatch is called:
#
#   BMSCALE_ENV=FOLDER         the virtual environment to use (default: .venv)
#   BMSCALE_ENV=active         whatever is active where sbatch is called
#   BMSCALE_RANKS_PER_NODE=N   default: one for each GPU that the job has on a node; without GPUs one, on all CPUs
#   OMP_NUM_THREADS=N          default: the CPUs of a node's task, shared among its ranks
#
#SBATCH --job-name=bmscale-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
# What only your cluster knows; one # makes a line count, and options on the command line win over it:
##SBATCH --gpus-per-node=8
##SBATCH --cpus-per-task=64
##SBATCH --time=24:00:00
##SBATCH --partition=NAME
# shellcheck disable=SC2317,SC2329 # functions that srun gets as text look unreachable
set -euo pipefail

fail() {
  echo "bmscale: error: $*" >&2
  exit 2
}

# What follows up to `train_on_node` runs on every node, where SLURM_NODEID, SLURMD_NODENAME and CPU counts are its own.
enter_environment() {
  cd "$folder" 2>/dev/null || fail "node $SLURMD_NODENAME: must see the folder in which sbatch was called, $folder;" \
    "call sbatch in a folder that all nodes share"
  [ "$environment" = active ] && return
  [ -x "$environment/bin/python" ] || fail "node $SLURMD_NODENAME: there must be a Python environment in" \
    "$environment, and there is none. Call sbatch in the clone after bash launch/quickstart.sh made its .venv, or set" \
    "BMSCALE_ENV to the folder of an environment that all nodes see, or to 'active' for the one active where sbatch" \
    "is called"
  export VIRTUAL_ENV="$environment" PATH="$environment/bin:$PATH"
  unset PYTHONHOME PYTHONPATH
}

check_node() {
  enter_environment
  local missing compiler
  missing=$(python -c 'from importlib.util import find_spec as found
print(*[name for name in ("bmscale", "torch", "accelerate", "deepspeed") if not found(name)])') \
    || fail "node $SLURMD_NODENAME: python must start in the environment '$environment'; the lines above say why not"
  [ -z "$missing" ] || fail "node $SLURMD_NODENAME: the environment '$environment' must have bmscale and what it" \
    "needs; missing: $missing. Set BMSCALE_ENV to the one that has them"
  [ "$gpus" = 0 ] || return 0
  for compiler in ${CXX:-} c++ g++ clang++; do
    ! command -v "$compiler" >/dev/null 2>&1 || return 0
  done
  fail "node $SLURMD_NODENAME: ranks on CPUs need a C++ compiler on every node (DeepSpeed builds a small operator);" \
    "load its module before you call sbatch, or install one (Debian: apt install g++)"
}

train_on_node() {
  enter_environment
  local cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}} file
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > ranks ? cpus / ranks : 1))}
  # In a clone the file is launch/multi_node.yaml; where pip put the package, it is inside it.
  file=$(python -c 'from bmscale.config import shipped_file; print(shipped_file("launch", "multi_node.yaml"))')
  exec accelerate launch --config_file "$file" --num_machines "$nodes" --num_processes "$((nodes * ranks))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$host" --main_process_port "$port" \
    --deepspeed_multinode_launcher standard "${sharding[@]}" -m bmscale train "$@"
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "must run inside a SLURM job: sbatch slurm/train.sh CONFIG [key.sub=value ...]"
[ $# -gt 0 ] || fail "CONFIG must be given: sbatch slurm/train.sh CONFIG [key.sub=value ...]"
folder=${SLURM_SUBMIT_DIR:-$PWD} nodes=$SLURM_JOB_NUM_NODES
environment=${BMSCALE_ENV:-.venv}
case $environment in active | /*) ;; *) environment=$folder/$environment ;; esac

gpus=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-0}}
gpus=${gpus##*:} # --gpus-per-node=a100:4 comes as a100:4
ranks=${BMSCALE_RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
case $ranks in
  '' | *[!0-9]* | 0*) fail "BMSCALE_RANKS_PER_NODE must be a number above 0; got '$ranks'" ;;
esac

# The launcher names the sharding in its file, and so must be told of another one that the arguments ask for.
sharding=()
for argument in "$@"; do
  case $argument in
    training.deepspeed=null) sharding=() ;;
    training.deepspeed=*) sharding=(--deepspeed_config_file "${argument#*=}") ;;
  esac
done

# Node 0 of the job, at the address by which SLURM itself reaches it: where names of nodes are no names of hosts, the
# two differ. Not every user may see it, and then it is the name. The port is the job's own, below those that systems
# hand out, so that two jobs do not meet on a node they share.
mapfile -t names < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ "${#names[@]}" = "$nodes" ] || fail "scontrol show hostnames must name the job's $nodes nodes; got '${names[*]}'"
host=$(scontrol show node "${names[0]}" 2>/dev/null | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') || true
host=${host:-${names[0]}}
port=$((10000 + SLURM_JOB_ID % 20000))

# One task a node. The functions travel as text, so that each node expands its own variables; with --export=ALL also
# where sbatch was given --export=NONE. A task has all CPUs that the job has on its node, and no rank is pinned to one.
definitions=$(declare -p folder environment gpus ranks nodes host port sharding
  declare -f fail enter_environment check_node train_on_node)
on_each_node() {
  srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpu-bind=none --export=ALL "${@:2}" \
    bash -euo pipefail -c "$definitions"$'\n'"$1"' "$@"' bmscale "${arguments[@]}"
}
arguments=("$@")

echo "bmscale: job $SLURM_JOB_ID: nodes ${names[*]}, $ranks rank(s) on each, rendezvous $host:$port" >&2
on_each_node check_node
# The first node that fails ends the others, which would wait for it in vain. One that is done does not (--wait=0):
# node 0 may still be writing the model.
code=0
on_each_node train_on_node --kill-on-bad-exit=1 --wait=0 || code=$?
# srun returns the highest code of a node. Of one that SLURM ended because another had failed that is 143 or 137, and
# not what happened: the launcher returns 1 for every failure, and exit.json of the run folder tells which it was.
case $code in 143 | 137) code=1 ;; esac
exit "$code"
