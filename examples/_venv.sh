# Sourced by the examples' start scripts: the Python environment in examples/work/venv.

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
work="$root/examples/work"
venv="$work/venv"
torch="${QUICKSTART_TORCH:-torch==2.13.0}"

# Nothing of the caller's Python may leak into the venv, and the plugin has to be loaded.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV TORCH_DEVICE_BACKEND_AUTOLOAD MERGEKIT_LINES_AUTOLOAD
export PYTHONNOUSERSITE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$work/pip-cache}"
export HF_HOME="$work/hf"
# torch's threads spin while they wait; beside another busy program that slows both many times.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"

fail() {
  printf '\n%s: %s\n' "$(basename -- "$0" .sh)" "$1" >&2
  exit 1
}

# Run a command with its output in $log; on a terminal, count the seconds meanwhile.
quietly() {
  "$@" >>"$log" 2>&1 &
  local job=$! started=$SECONDS
  trap 'kill "$job" 2>/dev/null || true; fail "interrupted; run it again to go on."' INT TERM
  while kill -0 "$job" 2>/dev/null; do
    if [ -t 1 ]; then printf '\r   %d s ' "$((SECONDS - started))"; fi
    sleep 1
  done
  if [ -t 1 ]; then printf '\r          \r'; fi
  trap - INT TERM
  wait "$job"
}

mkdir -p "$work" || fail "$work cannot be made; put the checkout where you can write."
log="$work/install.log"

python=""
for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    python="$candidate"
    break
  fi
done
[ -n "$python" ] || fail "no Python 3.10 or newer was found on the PATH; install one."


# make_venv STEPS REQUIREMENT…: install torch and the requirements; STEPS is for the headline.
make_venv() {
  local steps="$1" stamp whole
  shift
  whole="$venv/.whole-$(basename -- "$0" .sh)"
  printf '== 0/%s  Python environment in examples/work/venv (minutes on a fresh machine)\n' "$steps"
  # The stamp is what the venv was made from; it is written last, so half a venv has none.
  stamp="$(
    cd "$root"
    printf '%s\n' "$root" "$torch" "$@"
    "$python" --version
    find pyproject.toml README.md mergekit_lines -type f ! -name '*.pyc' | LC_ALL=C sort \
      | while IFS= read -r file; do cksum "$file"; done
  )"
  if [ "$(cat "$whole" 2>/dev/null)" = "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    printf '   already there\n'
  else
    : >"$log"
    rm -f "$venv"/.whole-*
    # A venv of another interpreter or another place cannot be mended; a running one is reused.
    if [ "$(cat "$venv/.place" 2>/dev/null)" != "$root $("$python" --version)" ] \
      || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
      rm -rf "$venv"
      quietly "$python" -m venv "$venv" \
        || fail "the venv could not be made (see $log); on Debian and Ubuntu install python3-venv."
      printf '%s' "$root $("$python" --version)" >"$venv/.place"
    fi
    printf '   pip installs what the example needs; see examples/work/install.log\n'
    if ! quietly "$venv/bin/python" -m pip install "$torch" "$@"; then
      grep -E '^ *(ERROR|error)' "$log" | tail -n 3 >&2 || true
      fail "pip could not install the project (see $log); correct what it names and run this again."
    fi
    printf '%s' "$stamp" >"$whole"
  fi
}
