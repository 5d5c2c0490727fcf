#!/bin/sh
# Write constraints.txt: the newest versions that fit pyproject.toml, for Python 3.11 to 3.13 in
# one file, with its own line for torch kept. Needs uv on the PATH or in .venv (pip install uv).
# The CUDA libraries stay out: torch's own metadata pins them, and a CPU build wants none.
set -eu
cd "$(dirname "$0")/.."
PATH="${VENV:-.venv}/bin:$PATH"
command -v uv > /dev/null || { echo "constraints: no uv; try: .venv/bin/pip install uv" >&2; exit 1; }
torch=$(grep '^torch==' constraints.txt)
new=$(mktemp)
trap 'rm -f "$new"' EXIT
echo "$torch" | uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
  --all-extras --constraint - --no-emit-index-url --no-annotate --no-header --output-file "$new"
{
  echo "# Versions that are tested together, on Python 3.11 to 3.13: pip install -c constraints.txt."
  echo "# Made by \`make constraints\`; for another torch edit its line, then make the file anew."
  grep -vE '^(cuda|nvidia|triton)' "$new"
} > constraints.txt
