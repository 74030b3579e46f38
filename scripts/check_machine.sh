#!/bin/sh
# Names everything that is missing on this machine before anything is installed.
# usage: check_machine.sh PYTHON
python=$1
missing=""
need() { missing="$missing
  - $1"; }

if ! command -v "$python" >/dev/null 2>&1; then
    need "$python (Debian: apt-get install python3; or set PYTHON=… to a Python 3.11 or newer)"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    need "Python 3.11 or newer: $python is $("$python" --version 2>&1) (set PYTHON=… to a newer one)"
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need "the venv module of $python (Debian: apt-get install python3-venv)"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
        need "the headers of $python (Debian: apt-get install python3-dev)"
fi
command -v cc >/dev/null 2>&1 || need "a C compiler, cc (Debian: apt-get install build-essential)"
command -v c++ >/dev/null 2>&1 || need "a C++ compiler, c++ (Debian: apt-get install build-essential)"

if [ -n "$missing" ]; then
    echo "error: this machine lacks what the set-up needs; nothing was installed:$missing" >&2
    exit 2
fi
