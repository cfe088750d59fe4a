#!/usr/bin/env bash
# All checks of the project: `bash tests/run.sh [pytest arguments]`. Makes its own environment (see launch/setup.sh).
set -euo pipefail
source "$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/launch/setup.sh"
setup_environment test

# One thread a process: ranks and tests side by side share the cores. Tests of one file stay together, for what they
# prepare in common.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
ruff check .
ruff format --check .
mypy
python -m pytest -n 2 --dist loadfile "$@"
