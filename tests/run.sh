#!/usr/bin/env bash
# Everything that must hold: lint, types, and all tests against the built wheel.
#
#     bash tests/run.sh [pytest arguments]
#
# Makes its own environment in .venv-tests and needs python3 (3.10 or newer) with venv, pip and
# a package index; nothing else has to be installed before. CONSTRAINTS names another file of
# versions, VENV another folder for the environment, PYTHON another interpreter.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv-tests}
constraints=$(cd "$root" && realpath "${CONSTRAINTS:-tests/constraints.txt}")
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PIP_DISABLE_PIP_VERSION_CHECK=1

if [ ! -x "$venv/bin/python" ]; then
  echo "== making $venv"
  "${PYTHON:-python3}" -m venv "$venv"
fi
echo "== installing (the first time takes some minutes)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# torch first: with it in place nothing pulls another build of it.
"$venv/bin/pip" install -q -c "$constraints" torch
"$venv/bin/pip" wheel -q --no-deps -w "$work/dist" "$root"
"$venv/bin/pip" uninstall -q -y mergekit-lines 2>/dev/null || true
"$venv/bin/pip" install -q -c "$constraints" "$(ls "$work"/dist/*.whl)[dev]"

cd "$root"
echo "== ruff and mypy"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy" --python-executable "$venv/bin/python"

# The tests run where the source is not, so that only the wheel can be imported.
echo "== tests against $(basename "$work"/dist/*.whl)"
cp -r tests recipes examples README.md CONTRIBUTING.md CHANGELOG.md pyproject.toml "$work"
cd "$work"
# One worker more than there are cores: tests of a Hub that is slow, or of a disk, wait.
workers=$("$venv/bin/python" -c "import os; print((os.cpu_count() or 1) + 1)")
"$venv/bin/python" -m pytest -n "$workers" --dist loadfile "$@"
