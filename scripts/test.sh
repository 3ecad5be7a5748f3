#!/usr/bin/env bash
# Runs the tests in .venv, made and filled if need be; arguments go to pytest:
#   bash scripts/test.sh [-k pooling] [-m slow] …
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh test
exec .venv/bin/python -m pytest "$@"
