#!/usr/bin/env bash
# Makes .venv if there is none, and installs this package into it with one extra, at the tested versions:
#   bash scripts/setup.sh [EXTRA]          # baseline, test (the default) or dev
# A second call takes no time: a stamp in .venv tells that nothing has changed since. pip is used as it is configured
# (PIP_INDEX_URL and the like); PYTHON=python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-test}
case $extra in baseline | test | dev) ;; *)
    echo "setup: no extra '$extra': baseline, test or dev" >&2
    exit 2
    ;;
esac

if [[ ! -x .venv/bin/python ]]; then
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "setup: '$python' is not Python 3.11 or newer: install one, or name it, as in PYTHON=python3.12" >&2
        exit 2
    fi
    echo "setup: making .venv with $("$python" --version)"
    rm -f .venv/.installed-* # of an interpreter that is gone
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "setup: '$python' can't make virtual environments: install its venv module (Debian: python3-venv)" >&2
        exit 2
    fi
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # an interrupted start, or uv's .venv
    .venv/bin/python -m ensurepip
fi

# The folder is part of the stamp: an editable install points at it, and a moved clone needs a new one.
stamp=.venv/.installed-$extra
state="$(cat pyproject.toml constraints.txt | cksum) $PWD"
if [[ "$(cat "$stamp" 2>/dev/null)" != "$state" ]]; then
    echo "setup: installing with the extra '$extra'"
    .venv/bin/python -m pip install -c constraints.txt -e ".[$extra]"
    for contained in baseline test dev; do # each contains those before it
        echo "$state" >".venv/.installed-$contained"
        [[ $contained == "$extra" ]] && break
    done
fi
