#!/bin/sh
# Makes a virtual environment and installs the project with some of its extras into it.
# usage: install.sh PYTHON VENV EXTRAS TORCH
#   TORCH: auto (CUDA builds of PyTorch only where there is an NVIDIA card, if another is to be had), cpu, cuda, or any
#   of uv's --torch-backend.
set -eu
python=$1 venv=$2 extras=$3 torch=$4
bin=$venv/bin

install() { "$bin/uv" pip install --python "$bin/python" --constraint constraints.txt "$@"; }
offered() { UV_HTTP_RETRIES=1 install --quiet --dry-run --torch-backend "$1" torch >/dev/null 2>&1; }

sh scripts/check_machine.sh "$python"
test -x "$bin/python" || "$python" -m venv "$venv"
"$bin/python" -m pip install --quiet --constraint constraints.txt uv

if [ "$torch" = auto ] && [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
    if offered cpu; then
        echo "== no NVIDIA card: the CPU build of PyTorch (TORCH=cuda for the other)"
        set -- --torch-backend cpu
    else
        echo "== no NVIDIA card, but only the CUDA build of PyTorch can be reached: 4 GB more are downloaded"
        set --
    fi
elif [ "$torch" = auto ]; then
    set --
elif [ "$torch" = cuda ]; then
    set -- --reinstall-package torch
elif offered "$torch"; then
    set -- --torch-backend "$torch" --reinstall-package torch
else
    echo "error: uv finds no PyTorch for TORCH=$torch (its index cannot be reached, or there is no such backend);" \
        "TORCH=auto takes the build that can be had" >&2
    exit 2
fi
install "$@" --editable ".[$extras]"
