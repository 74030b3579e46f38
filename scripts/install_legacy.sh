#!/bin/sh
# Makes a virtual environment in which the writers of 2024, AutoAWQ 0.2.9 and AutoGPTQ 0.7.1, run on a CPU.
# usage: install_legacy.sh PYTHON VENV
# What they ask for in their own metadata cannot be had together any more, so they come without it, and what they import
# is named here; constraints-legacy.txt pins all of it.
set -eu
python=$1 venv=$2

if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "error: $python is not Python 3.11, the last that AutoGPTQ 0.7.1 was built for: PYTHON=python3.11 make legacy" >&2
    exit 2
fi
test -x "$venv/bin/python" || "$python" -m venv "$venv"
# pip, and not uv: it takes a smaller build of PyTorch where the machine's configuration offers one.
install() { "$venv/bin/python" -m pip install --quiet --constraint constraints-legacy.txt "$@"; }
install torch transformers peft accelerate datasets zstandard gekko setuptools
install --no-deps --no-build-isolation autoawq auto-gptq
"$venv/bin/python" -c 'import awq, auto_gptq' 2>/dev/null || {
    echo "error: AutoAWQ or AutoGPTQ cannot be imported in $venv" >&2
    exit 2
}
