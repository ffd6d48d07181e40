#!/usr/bin/env bash
# From nothing to the measured front of a rewarded soup, on a CPU (see rewarded_soup.py):
#   bash examples/rewarded_soup.sh
# Everything that it makes or downloads lies in examples/work; delete that folder to undo it.
# QUICKSTART_TORCH and HF_HUB_OFFLINE: as in quickstart.sh. --tiny: a random model, in seconds.
set -euo pipefail

. "$(dirname -- "${BASH_SOURCE[0]}")/_venv.sh"
make_venv 5 "$root[plot]" "gguf>=0.10" "vaderSentiment==3.3.2" "textstat==0.7.13"

exec "$venv/bin/python" "$root/examples/rewarded_soup.py" "$@"
