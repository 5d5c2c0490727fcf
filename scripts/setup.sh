#!/bin/sh
# Make the virtual environment for the Makefile: find a Python, check it, install.
# Whatever goes wrong is told in one line that says what to do.
#   VENV      where (.venv)
#   PYTHON    the interpreter; without it the first of python3, python3.13, ... that suits
#   TORCH     what to install as torch; without it the version in constraints.txt
#   PIP_ARGS  more options for every pip call, such as another index
set -eu
cd "$(dirname "$0")/.."
: "${VENV:=.venv}" "${PYTHON:=}" "${TORCH:=}" "${PIP_ARGS:=}"
wanted="3.11, 3.12 or 3.13"
need_mb=3000 # the environment with a CPU build of torch is 1.6 GB; a CUDA build takes 6 GB

fail() {
  echo "setup: $1" >&2
  exit 1
}

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true; }

suits() { case "$(version "$1")" in 3.11 | 3.12 | 3.13) ;; *) return 1 ;; esac }

find_python() {
  if [ -n "$PYTHON" ]; then
    found=$(version "$PYTHON")
    [ -n "$found" ] || fail "PYTHON=$PYTHON does not run; give the path of Python $wanted."
    suits "$PYTHON" || fail "PYTHON=$PYTHON is Python $found; ppgen needs $wanted."
    return
  fi
  for PYTHON in python3 python3.13 python3.12 python3.11 python; do
    if suits "$PYTHON"; then return; fi
  done
  found=$(version python3)
  [ -n "$found" ] || fail "no python3 on the PATH; install Python $wanted (Debian, Ubuntu: apt install python3 python3-venv)."
  fail "python3 is Python $found and ppgen needs $wanted; install one of them, or name it: make PYTHON=/path/to/python3.12"
}

make_environment() {
  name=python$(version "$PYTHON")
  "$PYTHON" -c 'import venv, ensurepip' 2> /dev/null \
    || fail "$PYTHON lacks the modules venv and ensurepip (Debian, Ubuntu: apt install $name-venv)."
  if [ -d "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
    fail "$VENV exists and is no virtual environment; move it, or choose another: make VENV=..."
  fi
  mkdir -p "$(dirname "$VENV")"
  free_mb=$(df -Pk "$(dirname "$VENV")" | awk 'NR == 2 { print int($4 / 1024) }')
  [ "$free_mb" -ge $need_mb ] || fail "$free_mb MB free, and the environment needs $need_mb; free some, or put it elsewhere: make VENV=/other/disk/ppgen"
  echo "setup: $VENV with Python $(version "$PYTHON")"
  "$PYTHON" -m venv --clear "$VENV" || fail "could not create $VENV; see the lines above."
}

# A pip that fails is explained from its log, which has the details even under --quiet.
install() {
  : > "$VENV/setup.log"
  # shellcheck disable=SC2086 # PIP_ARGS is a list of options
  "$VENV/bin/python" -m pip install --disable-pip-version-check --log "$VENV/setup.log" $PIP_ARGS "$@" && return
  if grep -qiE 'no space left|errno 28|disk quota' "$VENV/setup.log"; then
    fail "the disk is full (or TMPDIR is); free some GB, or take a CPU build of torch (README, Set-up)."
  elif grep -qiE 'NewConnectionError|NameResolutionError|name resolution|ConnectTimeout|Network is unreachable|ProxyError|SSLError' "$VENV/setup.log"; then
    fail "pip could not reach a package index; check the network or the proxy, or name an index: make PIP_ARGS='--index-url ...'"
  fi
  fail "pip failed (its log: $VENV/setup.log); the lines above name the package. Choose torch with TORCH=, pip's options with PIP_ARGS=."
}

# An environment that stands is kept, unless another Python is asked for by name.
if ! suits "$VENV/bin/python" || { [ -n "$PYTHON" ] && [ "$(version "$VENV/bin/python")" != "$(version "$PYTHON")" ]; }; then
  find_python
  make_environment
fi
rm -f "$VENV/.ppgen-ready"

# The pins hold for one version of torch; with another, only that torch is held fast.
pinned=$(grep '^torch==' constraints.txt)
pins=constraints.txt
case "${TORCH:=$pinned}" in
  "$pinned" | "$pinned"+*) install "$TORCH" --constraint "$pins" ;;
  *)
    install "$TORCH"
    pins=$VENV/torch.txt
    "$VENV/bin/python" -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > "$pins"
    echo "setup: $TORCH is not the $pinned of constraints.txt: the other packages are not pinned."
    ;;
esac
echo "setup: ppgen and the packages that it needs"
install --quiet --progress-bar off --editable '.[dev]' --constraint "$pins"
touch "$VENV/.ppgen-ready"
echo "setup: done"
