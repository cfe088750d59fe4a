# shellcheck shell=bash
# Sourced by launch/quickstart.sh and tests/run.sh: find or make a Python environment that has everything.
#
#   BMSCALE_ENV=active   use the active environment (or whatever `python` is) as it is, install nothing
#   BMSCALE_ENV=FOLDER   the virtual environment to make or use (default: .venv in the clone)
#
# Afterwards `python`, `accelerate` and `bmscale` are those of that environment.

fail() {
  echo "bmscale: error: $*" >&2
  exit 2
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.12 python3.11 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 \
      && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer is needed and none was found on PATH; install it (Debian: apt install python3 python3-venv)," \
    "or name one: PYTHON=/path/to/python3.12 bash $0"
}

need_compiler() {
  local compiler=${CXX:-}
  for compiler in ${CXX:-} c++ g++ clang++; do
    if command -v "$compiler" >/dev/null 2>&1; then
      return
    fi
  done
  fail "a C++ compiler is needed (DeepSpeed builds a small operator at its first use) and none was found on PATH;" \
    "install one (Debian: apt install g++; macOS: xcode-select --install)"
}

# setup_environment EXTRA: install the package with that extra ("" or "test") unless it is there already.
setup_environment() {
  local extra=$1 root python wanted
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  cd "$root" || fail "cannot enter $root"
  need_compiler
  if [ "${BMSCALE_ENV:-}" = active ]; then
    python -c 'import bmscale, torch, deepspeed, accelerate, datasets, sacrebleu' \
      || fail "BMSCALE_ENV=active: the active environment must have bmscale and what it needs;" \
        "unset BMSCALE_ENV to make one in .venv"
    return
  fi
  local folder=${BMSCALE_ENV:-$root/.venv}
  if [ ! -x "$folder/bin/python" ]; then
    python=$(find_python) || exit 2
    echo "making $folder with $python" >&2
    "$python" -m venv "$folder" || fail "$python cannot make a virtual environment (Debian: apt install python3-venv)"
  fi
  export VIRTUAL_ENV="$folder" PATH="$folder/bin:$PATH"
  unset PYTHONHOME PYTHONPATH
  # What is installed is noted, so that the second run starts at once and a changed requirement is still seen.
  wanted=$(cat pyproject.toml launch/constraints.txt; echo "$root $extra")
  if [ "$(cat "$folder/.bmscale-$extra" 2>/dev/null)" != "$wanted" ]; then
    echo "installing bmscale and its pinned dependencies into $folder (minutes, once)" >&2
    python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt -e ".${extra:+[$extra]}" \
      || fail "installation failed; the lines above say why"
    printf '%s' "$wanted" >"$folder/.bmscale-$extra"
  fi
}
