#!/usr/bin/env bash
# A sweep and searches of as many points over the quickstart's merge, on a CPU (see search.py):
#   bash examples/search.sh
# Everything that it makes or downloads lies in examples/work; delete that folder to undo it.
# QUICKSTART_TORCH and HF_HUB_OFFLINE: as in quickstart.sh. --tiny: a random model, in seconds.
set -euo pipefail

. "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
make_venv 4 "$root[plot,search]" "gguf>=0.10"

exec "$venv/bin/python" "$root/examples/search.py" "$@"
