#!/usr/bin/env bash
# What a ViT and a ConvNeXt forget, what LiNeS gives back, and their merges (see vision.py):
#   bash examples/vision.sh
# Everything that it makes or downloads lies in examples/work; delete that folder to undo it.
# The images come inside packages of Debian, npm and PyPI, 45 MB in all; the Hub is not asked.
# QUICKSTART_TORCH: as in quickstart.sh. --tiny: small models, in a minute. --seeds: how many.
set -euo pipefail

. "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
make_venv 5 "$root[plot]" "scikit-learn>=1.4"

exec "$venv/bin/python" "$root/examples/vision.py" "$@"
