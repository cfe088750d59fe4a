#!/usr/bin/env bash
# Train on the nodes of a SLURM job. Arguments are those of `bmscale train`; options of sbatch go before the script:
#
#   sbatch slurm/train.sh toy training.max_steps=100
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 --time=24:00:00 slurm/train.sh my.yaml
#   sbatch --array=1-10%1 --time=24:00:00 slurm/train.sh my.yaml
#
# Prepare the data first (`bmscale prepare CONFIG`). The same line again goes on with the run. How states are sharded:
# training.deepspeed=zero3 among the arguments; without it zero2, as launch/multi_node.yaml says. `bmscale submit` fills
# arguments and options into this script and submits it.
#
# Preemption. SLURM sends USR1 to this script --signal seconds before the time limit, by hand it is
# `scancel --signal=USR1 --batch JOB`. The ranks then save a training state between two steps and end, and the job goes
# back into the queue, where SLURM keeps it for two minutes. The seconds must hold one step, one save and a margin, and
# be fewer than the time limit.
#
# What becomes of the job follows from class and code in RUN/exit.json, not from what launchers return:
#   done, stopped          0            it ends
#   preempted, lost_rank   75, 5        it is requeued, BMSCALE_MAX_REQUEUES times at most
#   failed, bad_input, …   1, 2, 3, 4   it ends, and with it the waiting elements of its array: they would fail again
# A node that fails is SLURM's to see: it requeues the job (--requeue). A node that is found ill before training ends it
# with 5. Elements of an array are not requeued: the next one goes on with the run, and ends at once where it is done.
# %1 is needed: a job refuses a run that another running job trains.
#
# Switches, files that anyone may make:   touch RUN/STOP   save, end with 0, start no more until it is removed
#                                         touch RUN/SAVE   save now and go on
# Output: this job's own holds all nodes; RUN/logs/JOB-NODE.txt holds one node's, all starts.
#
# sbatch runs a copy of this file in a folder of its own, so that nothing is looked for beside it. Relative paths and
# .venv are those of the folder in which sbatch is called: the clone, or any other folder with BMSCALE_ENV set. It must
# lie on a file system that all nodes share. Variables, set where sbatch is called:
#
#   BMSCALE_ENV=FOLDER           the virtual environment to use (default: .venv)
#   BMSCALE_ENV=active           whatever is active where sbatch is called
#   BMSCALE_RANKS_PER_NODE=N     default: one for each GPU that the job has on a node; without GPUs one, on all CPUs
#   BMSCALE_MAX_REQUEUES=N       how often the job may start again (default: 20)
#   BMSCALE_PREFLIGHT_SECONDS=N  how long nodes may take to meet before training (default: 120); 0 leaves that out, and
#                                `bmscale doctor` on each node
#   OMP_NUM_THREADS=N            default: the CPUs of a node's task, shared among its ranks
#
#SBATCH --job-name=bmscale-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
# What only your cluster knows; one # makes a line count, and options on the command line win over it:
##SBATCH --gpus-per-node=8
##SBATCH --cpus-per-task=64
##SBATCH --time=24:00:00
##SBATCH --partition=NAME
# shellcheck disable=SC2317,SC2329 # functions that srun gets as text look unreachable
set -euo pipefail

say() { echo "bmscale: $*" >&2; }

fail() {
  say "error: $*"
  exit 2
}

# What another node may not have: not the mistake of who called sbatch, so that an array goes on.
sick() {
  say "error: node $SLURMD_NODENAME: $*"
  exit 5
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
  local missing found
  missing=$(python -c 'from importlib.util import find_spec as found
print(*[name for name in ("bmscale", "torch", "accelerate", "deepspeed") if not found(name)])') \
    || fail "node $SLURMD_NODENAME: python must start in the environment '$environment'; the lines above say why not"
  [ -z "$missing" ] || fail "node $SLURMD_NODENAME: the environment '$environment' must have bmscale and what it" \
    "needs; missing: $missing. Set BMSCALE_ENV to the one that has them"
  if [ "$gpus" = 0 ]; then check_compiler; else check_gpus; fi
  [ "$patience" = 0 ] || found=$(python -m bmscale doctor 2>&1) || {
    printf '%s\n' "$found" >&2
    fail "node $SLURMD_NODENAME: bmscale doctor must find nothing wrong; see above"
  }
}

check_compiler() {
  local compiler
  for compiler in ${CXX:-} c++ g++ clang++; do
    ! command -v "$compiler" >/dev/null 2>&1 || return 0
  done
  fail "node $SLURMD_NODENAME: ranks on CPUs need a C++ compiler on every node (DeepSpeed builds a small operator);" \
    "load its module before you call sbatch, or install one (Debian: apt install g++)"
}

# A process that outlived an earlier job keeps its memory, and the training would run out of it much later.
check_gpus() {
  local visible=${CUDA_VISIBLE_DEVICES:-} used index mib
  command -v nvidia-smi >/dev/null 2>&1 || return 0
  case $visible in *MIG*) return 0 ;; esac # memory is told of the whole GPU, of which others may have a part
  used=$(nvidia-smi ${visible:+--id="$visible"} --query-gpu=index,memory.used --format=csv,noheader,nounits) \
    || sick "nvidia-smi must work; it says: $used"
  while IFS=', ' read -r index mib; do
    case $mib in '' | *[!0-9]*) continue ;; esac
    [ "$mib" -le 2048 ] || sick "GPU $index must be free before training, and $mib MiB of its memory are in use" \
      "(nvidia-smi on the node names the process); leave the node out: sbatch --exclude=$SLURMD_NODENAME"
  done <<<"$used"
}

# The same place and port where the ranks will meet. A node that cannot be reached shows here, and not after an hour.
meet() {
  enter_environment
  timeout "$((patience + 20))" python -c 'import sys
from bmscale.cluster.preflight import meet
meet(*sys.argv[1:])' "$host" "$port" "$nodes" "$SLURM_NODEID" "$patience" \
    || sick "must meet the others at $host:$port within $patience s (BMSCALE_PREFLIGHT_SECONDS) and add numbers up" \
      "with them, and did not; of the job's $nodes nodes, one that no such line names never came"
}

# Whether a file is of this start: those that an earlier one left say nothing of it. It is opened first, so that a
# shared file system looks anew.
is_new() { cat "$1" >/dev/null 2>&1 && [ "$1" -nt "$run/logs/job" ]; }

# Whether ranks of this start have begun and not ended, neither well nor with an error of their own.
has_open_ranks() {
  local file
  for file in "$run"/ranks/rank-*.json; do
    is_new "$file" && grep -q '"error": null' "$file" && return 0
  done
  return 1
}

# srun kills the other nodes as soon as this one has failed, and a minute after it is done. Their ranks may still be
# finding out what happened, or be writing: until exit.json tells, this node stays, and lets the first one go first.
stay() {
  local code=$1 left
  left=$((code == 0 ? 1800 : 30))
  while has_open_ranks && ! is_new "$run/exit.json" && ((left-- > 0)); do sleep 1; done
  [ "$code" = 0 ] || [ "$SLURM_NODEID" = 0 ] || [ -n "$ended" ] || sleep 20
}

# SLURM sends its signals to all processes of a step. This shell and tee wait until the ranks have saved.
train_on_node() {
  enter_environment
  local cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}} code=0 ended="" file
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > ranks ? cpus / ranks : 1))}
  export PET_RDZV_ID=$rendezvous # what torchrun takes for --rdzv-id, for which accelerate has no option
  # In a clone the file is launch/multi_node.yaml; where pip put the package, it is inside it.
  file=$(python -c 'from bmscale.config import shipped_file; print(shipped_file("launch", "multi_node.yaml"))')
  trap 'ended=1' TERM USR1
  accelerate launch --config_file "$file" --num_machines "$nodes" --num_processes "$((nodes * ranks))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$host" --main_process_port "$port" \
    --deepspeed_multinode_launcher standard "${sharding[@]}" -m bmscale train "$@" 2>&1 \
    | { trap '' TERM USR1; tee -a "$run/logs/$SLURM_JOB_ID-$SLURMD_NODENAME.txt" || true; } || code=$?
  stay "$code"
  return "$code"
}

# From here on: the batch script, on the first node.
[ -n "${SLURM_JOB_ID:-}" ] || fail "must run inside a SLURM job: sbatch slurm/train.sh CONFIG [key.sub=value ...]"
[ $# -gt 0 ] || fail "CONFIG must be given: sbatch slurm/train.sh CONFIG [key.sub=value ...]"
arguments=("$@")
folder=${SLURM_SUBMIT_DIR:-$PWD} nodes=$SLURM_JOB_NUM_NODES
environment=${BMSCALE_ENV:-.venv}
case $environment in active | /*) ;; *) environment=$folder/$environment ;; esac

must_be_a_number() {
  [[ $2 =~ ^(0|[1-9][0-9]*)$ && $2 -ge $3 ]] || fail "$1 must be a whole number of at least $3; got '$2'"
}
gpus=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-0}}
gpus=${gpus##*:} # --gpus-per-node=a100:4 comes as a100:4
ranks=${BMSCALE_RANKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
must_be_a_number BMSCALE_RANKS_PER_NODE "$ranks" 1
most_requeues=${BMSCALE_MAX_REQUEUES:-20}
must_be_a_number BMSCALE_MAX_REQUEUES "$most_requeues" 0
patience=${BMSCALE_PREFLIGHT_SECONDS:-120}
must_be_a_number BMSCALE_PREFLIGHT_SECONDS "$patience" 0

# The launcher names the sharding in its file, and so must be told of another one that the arguments ask for.
sharding=()
for argument in "$@"; do
  case $argument in
    training.deepspeed=null) sharding=() ;;
    training.deepspeed=*) sharding=(--deepspeed_config_file "${argument#*=}") ;;
  esac
done

# Node 0 of the job, at the address by which SLURM itself reaches it: where names of nodes are no names of hosts, the
# two differ. Not every user may see it, and then it is the name. Port and name of the meeting are those of this job
# and this start, so that no process of another one joins; the port lies below those that systems hand out.
mapfile -t names < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ "${#names[@]}" = "$nodes" ] || fail "scontrol show hostnames must name the job's $nodes nodes; got '${names[*]}'"
host=$(scontrol show node "${names[0]}" 2>/dev/null | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') || true
host=${host:-${names[0]}}
restarts=${SLURM_RESTART_COUNT:-0}
port=$((10000 + (SLURM_JOB_ID + restarts * 7919) % 20000))
rendezvous=bmscale-$SLURM_JOB_ID-$restarts

# bmscale's ranks save and end when one of them gets USR1; the others learn it from that one. Launchers would die of it:
# so it goes to ranks alone, by the numbers that they leave in RUN/ranks. Files of earlier starts may lie there, and a
# rank that is still importing would die as well: only a rank of this start that catches the signal (10) gets it.
signal_ranks() {
  local file pid caught reached=1
  for file in "$run"/ranks/rank-*.json; do
    pid=$(sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p' "$file" 2>/dev/null)
    grep -qzx "TORCHELASTIC_RUN_ID=$rendezvous" "/proc/${pid:-none}/environ" 2>/dev/null || continue
    caught=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$pid/status" 2>/dev/null)
    ((16#${caught:-0} & 1 << 9)) && kill -USR1 "$pid" 2>/dev/null && reached=0
  done
  return "$reached"
}

# Until a rank on this node got it: they may all be starting still.
tell_ranks() {
  [ -z "$step" ] || (until signal_ranks || ! kill -0 "$step" 2>/dev/null; do sleep 1; done) &
}

asked="" again="" step="" run=""
trap 'asked=1 again=1; say "a signal came: the ranks are asked to save and end"; tell_ranks' USR1 TERM

# One task a node. The functions travel as text, so that each node expands its own variables; with --export=ALL also
# where sbatch was given --export=NONE. A task has all CPUs that the job has on its node, and no rank is pinned to one.
# srun runs in the background, since bash heeds a trap only between commands and in `wait`; which it ends early, so that
# one must wait again. Returns the highest code of a node.
on_each_node() {
  local code definitions
  definitions=$(declare -p folder environment gpus ranks nodes host port sharding patience rendezvous run
    declare -f)
  srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpu-bind=none --export=ALL "${@:2}" \
    bash -euo pipefail -c "$definitions"$'\n'"$1"' "$@"' bmscale "${arguments[@]}" &
  step=$!
  [ -z "$asked" ] || tell_ranks
  while again=""; wait "$step" && code=0 || code=$?; [ -n "$again" ]; do :; done
  step=""
  return "$code"
}

# The run folder as bmscale itself finds it. A mistake in the experiment or a full disk ends the job here, on one node.
find_run() {
  enter_environment
  python -m bmscale train --dry-run "${arguments[@]}"
}

# Two jobs on one run would write over each other's states. Of two that start at once, the later to claim it goes on.
claim_run() {
  local other
  mkdir -p "$run/logs"
  other=$(cat "$run/logs/job" 2>/dev/null) || true
  case ${other:-$SLURM_JOB_ID} in "$SLURM_JOB_ID" | *[!0-9]*) other="" ;; esac
  case ${other:+$(squeue --noheader --jobs="$other" --format=%T 2>/dev/null)} in
    RUNNING | SUSPENDED) fail "$run: must be trained by one job at a time; job $other is at it" ;;
  esac
  echo "$SLURM_JOB_ID" >"$run/logs/job"
}
keep_run() {
  [ "$(cat "$run/logs/job")" = "$SLURM_JOB_ID" ] \
    || fail "$run: must be trained by one job at a time; job $(cat "$run/logs/job") began with it too"
}

exit_value() { sed -n "s/.*\"$1\": *\"\{0,1\}\([a-z_0-9]*\).*/\1/p" "$run/exit.json"; }

# Whoever cancels a job does not want it back. SLURM calls it COMPLETING as soon as it ends it, for its time limit too.
is_cancelled() {
  local shown
  shown=$(scontrol show job "$SLURM_JOB_ID") || return 1
  case $shown in *JobState=RUNNING* | *Reason=TimeLimit*) return 1 ;; esac
}

# End the job as a class of exit.json wants it. `scontrol requeue` kills this script, mostly before it can exit itself.
finish() {
  local class=$1 code=$2
  case $class in
    preempted | lost_rank)
      if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
        say "$class: the next element of the array goes on with the run"
      elif [ "$restarts" -ge "$most_requeues" ]; then
        say "$class, after $restarts restarts (BMSCALE_MAX_REQUEUES): the same sbatch line goes on with the run"
      elif is_cancelled; then
        say "$class: the job was cancelled; the same sbatch line goes on with the run"
      else
        say "$class: back into the queue, restart $((restarts + 1)) of at most $most_requeues"
        trap '' TERM
        scontrol requeue "$SLURM_JOB_ID" || say "SLURM did not requeue it; the same sbatch line goes on with the run"
      fi
      ;;
    *) say "job $SLURM_JOB_ID ends with ${class:-no word of its ranks} (code $code)" ;;
  esac
  exit "$code"
}

end_array() {
  case $? in 0 | 5 | 75) return ;; esac
  [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || scancel --state=PENDING "$SLURM_ARRAY_JOB_ID" || true
}
trap end_array EXIT

SLURMD_NODENAME=${SLURMD_NODENAME:-${names[0]}}
say "job $SLURM_JOB_ID, restart $restarts: nodes ${names[*]}, $ranks rank(s) on each, rendezvous $host:$port"
on_each_node check_node
run=$(find_run)
run=$(cd "$folder" && realpath -m "$run")
if [ -e "$run/STOP" ]; then
  say "$run/STOP is there: nothing is trained until it is removed"
  exit 0
fi
claim_run
[ "$nodes" = 1 ] || [ "$patience" = 0 ] || on_each_node meet
[ -z "$asked" ] || finish preempted 75
keep_run

# The first node that fails ends the others, which would wait for it in vain; so does the first that is done, a minute
# later (see `stay`).
code=0
on_each_node train_on_node --kill-on-bad-exit=1 --wait=60 || code=$?
if is_new "$run/exit.json"; then finish "$(exit_value class)" "$(exit_value code)"; fi
if has_open_ranks; then finish lost_rank 5; fi
# No rank began.
[ -z "$asked" ] || finish preempted 75
# srun returns the highest code of a node; of one that SLURM ended because another had failed that is 143 or 137, and
# not what happened: the launcher returns 1 for every failure.
case $code in 143 | 137) code=1 ;; esac
finish "" "$code"
