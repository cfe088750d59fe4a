#!/usr/bin/env bash
# Run a scaling study as an array of SLURM jobs, one element for each trunk (a size and seed with all its budgets).
# Arguments are those of `bmscale scaling run`; options of sbatch go before the script:
#
#   bmscale scaling run my-study.yaml --dry-run                                    # numbers the trunks
#   sbatch --array=0-5 slurm/scaling_study.sh my-study.yaml
#   sbatch --array=5 --gpus=1 slurm/scaling_study.sh my-study.yaml --holdouts
#
# The same line again goes on: cells that are done are skipped. Before its time limit (--signal) an element saves the
# training that it is at and goes back into the queue, BMSCALE_MAX_REQUEUES times at most (20). As with slurm/train.sh,
# relative paths and .venv are those of the folder in which sbatch is called, which all nodes must share, and there
# BMSCALE_ENV names another environment: its folder, or `active`. Prepare the data before: elements that start at the
# same time would each prepare it.
#
#SBATCH --job-name=bmscale-study
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
# What only your cluster knows; one # makes a line count, and options on the command line win over it:
##SBATCH --gpus=1
##SBATCH --cpus-per-task=8
##SBATCH --time=04:00:00
##SBATCH --partition=NAME
set -euo pipefail

fail() {
  echo "bmscale: error: $*" >&2
  exit 2
}

[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || fail "must run as an array of SLURM jobs:" \
  "sbatch --array=0-5 slurm/scaling_study.sh STUDY [options]"
[ $# -gt 0 ] || fail "STUDY must be given: sbatch --array=0-5 slurm/scaling_study.sh STUDY [options]"
folder=${SLURM_SUBMIT_DIR:-$PWD}
node=${SLURMD_NODENAME:-$(uname -n)}
cd "$folder" 2>/dev/null || fail "node $node: must see the folder in which sbatch was called, $folder;" \
  "call sbatch in a folder that all nodes share"

environment=${BMSCALE_ENV:-.venv}
if [ "$environment" != active ]; then
  case $environment in /*) ;; *) environment=$folder/$environment ;; esac
  [ -x "$environment/bin/python" ] || fail "node $node: there must be a Python environment in $environment, and there" \
    "is none. Call sbatch in the clone after bash launch/quickstart.sh made its .venv, or set BMSCALE_ENV to the" \
    "folder of an environment that all nodes see, or to 'active' for the one active where sbatch is called"
  export VIRTUAL_ENV="$environment" PATH="$environment/bin:$PATH"
  unset PYTHONHOME PYTHONPATH
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}}

python -m bmscale scaling run "$@" --trunk "$SLURM_ARRAY_TASK_ID" &
study=$!
# bash answers a signal only between commands, and `wait` is the one that a signal ends.
trap 'kill -USR1 "$study" 2>/dev/null || true' USR1 TERM
code=0
wait "$study" || code=$?
while [ "$code" -gt 128 ] && kill -0 "$study" 2>/dev/null; do
  code=0
  wait "$study" || code=$?
done
if [ "$code" -gt 128 ]; then # of a wait that a signal ended at the study's very end; 127 where there is no more to wait
  last=0
  wait "$study" 2>/dev/null || last=$?
  [ "$last" = 127 ] || code=$last
fi
if [ "$code" = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${BMSCALE_MAX_REQUEUES:-20}" ]; then
  trap '' TERM
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" ||
    echo "bmscale: SLURM did not requeue it; the same sbatch line goes on with the study" >&2
fi
exit "$code"
