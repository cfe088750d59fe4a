#!/usr/bin/env bash
# Score a run in a SLURM job. Arguments are those of `bmscale evaluate`; options of sbatch go before the script:
#
#   sbatch slurm/evaluate.sh runs/toy
#   sbatch --gpus=1 --cpus-per-task=8 slurm/evaluate.sh runs/my --test corpus/test.tsv.xz
#
# Scores are in RUN/results.json and in the job's output. As with slurm/train.sh, relative paths and .venv are those of
# the folder in which sbatch is called, and there BMSCALE_ENV names another environment: its folder, or `active`.
#
#SBATCH --job-name=bmscale-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
# What only your cluster knows; one # makes a line count, and options on the command line win over it:
##SBATCH --gpus=1
##SBATCH --cpus-per-task=8
##SBATCH --time=01:00:00
##SBATCH --partition=NAME
set -euo pipefail

fail() {
  echo "bmscale: error: $*" >&2
  exit 2
}

[ -n "${SLURM_JOB_ID:-}" ] || fail "must run inside a SLURM job: sbatch slurm/evaluate.sh RUN [options]"
[ $# -gt 0 ] || fail "RUN must be given: sbatch slurm/evaluate.sh RUN [options]"
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
srun --nodes=1 --ntasks=1 --cpu-bind=none --export=ALL python -m bmscale evaluate "$@"
