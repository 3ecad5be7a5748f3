#!/usr/bin/env bash
# Runs the tests in .venv, made and filled if need be, in a process for each core, four at most (more would build what
# they share more often than they save); arguments go to pytest:
#   bash scripts/test.sh [-k pooling] [-m slow] [-n 0: in one process] …
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh test
exec .venv/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
