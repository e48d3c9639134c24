#!/bin/sh
# Random traffic on a daemon whose memory is too small, each answer held against an oracle.
# usage: sh tests/soak.sh OPTION...: those of tests/crash/soak.py, which --help lists. The build is
# the one in KVARN_BIN_DIR, by default build/bin.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
export PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# The system's own interpreter may not be the first on the path.
for python in "${KVARN_PYTHON:-python3}" /usr/bin/python3; do
    if "$python" -c 'import google.protobuf, numpy' 2>/dev/null; then
        exec "$python" "$here/crash/soak.py" "$@"
    fi
done
echo "soak.sh: needs a python3 with protobuf and numpy" >&2
exit 2
