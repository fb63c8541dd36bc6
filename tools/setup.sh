#!/usr/bin/env bash
# Sets up the checkout: a virtual environment, uv from the package index, Kajiya with what it needs.
# usage: tools/setup.sh VENV run|dev
set -euo pipefail

venv=$1 what=$2
python=${PYTHON:-python3}

fail() { printf 'make: %s\n' "$1" >&2; exit 1; }
say() { printf '%s\n' "$1"; }

command -v "$python" >/dev/null || fail "There is no $python. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3 …"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old; Kajiya needs Python 3.11 or newer. Name another: make PYTHON=/path/to/python3.11 …"

log=$(mktemp)
trap 'rm -f "$log"' EXIT

if [ "$what" = run ]; then
  # An environment whose interpreter is gone or was changed is made anew.
  if [ -e "$venv" ] && ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    say "The environment in $venv no longer works and is made again."
    rm -rf "$venv"
  fi
  if [ ! -x "$venv/bin/python" ]; then
    say "Setting up (1/3): a virtual environment in $venv…"
    if ! "$python" -m venv "$venv" >"$log" 2>&1; then
      rm -rf "$venv"
      if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        fail "$python has no ensurepip. On Debian and Ubuntu: apt-get install python3-venv; then run make again."
      fi
      cat "$log" >&2
      fail "The virtual environment could not be made; the lines above say why."
    fi
  fi
  if [ ! -x "$venv/bin/uv" ]; then
    say "Setting up (2/3): the installer uv…"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1' >"$log" 2>&1 || {
      tail -n 3 "$log" >&2
      fail "uv could not be fetched. Check the network, or set PIP_INDEX_URL to your package index; then run make again."
    }
  fi
  say "Setting up (3/3): Kajiya, JupyterHub and MLflow (a minute or two, the first time)…"
else
  say "Setting up: what the tests need…"
fi

# uv reads nothing that is said to pip. Who told pip of an index meant all fetching.
if [ -z "${UV_DEFAULT_INDEX:-}" ]; then
  index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
  [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
fi

# As pip does, trust the authorities that the machine trusts: a site's own is among them, and not among those built
# into uv. The second name is that of older releases.
for authorities in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem \
  /etc/ssl/cert.pem; do
  if [ -e "$authorities" ]; then
    export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" UV_NATIVE_TLS="${UV_NATIVE_TLS:-1}"
  fi
done

# --compile-bytecode: else the first start would compile what it imports, and be slow.
# The group brings what tests need; the override leaves out one slow import.
arguments=(pip install --python "$venv/bin/python" --overrides tools/overrides.txt --compile-bytecode)
arguments+=(--editable '.[embedded]')
[ "$what" = dev ] && arguments+=(--group dev)
# On a terminal uv shows its own progress; elsewhere the list of 190 packages would only hide what matters.
status=0
if [ -t 2 ]; then
  VIRTUAL_ENV="$venv" "$venv/bin/uv" "${arguments[@]}" || status=$?
else
  VIRTUAL_ENV="$venv" "$venv/bin/uv" "${arguments[@]}" >"$log" 2>&1 || status=$?
  quiet='^ [+~-] |^Using '
  [ "$status" != 0 ] || quiet+='|^ *(Downloading|Downloaded|Building|Built) '
  grep -vE "$quiet" "$log" || true
fi
[ "$status" = 0 ] ||
  fail "The packages could not be installed; the lines above say why. Check the network, or set UV_DEFAULT_INDEX to your package index; then run make again."

stamp=$([ "$what" = dev ] && echo .ready-dev || echo .ready)
touch "$venv/$stamp"
