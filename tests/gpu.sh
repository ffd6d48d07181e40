#!/usr/bin/env bash
# What only a GPU can show: its merges and live models against the CPU's, and times. Under 6 minutes.
#
#     bash tests/gpu.sh                         # with a CUDA GPU
#     bash tests/gpu.sh --device cpu --small    # the same steps without one
#
# Needs the package and pytest in the environment of PYTHON (python3), and no network: models are
# made of random weights, in --folder, which takes 45 GB for the soup of 7 B.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m tests.gpu "$@"
