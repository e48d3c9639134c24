#!/bin/sh
# Kills the daemon of a build again and again under traffic; an oracle looks at what comes back.
# usage: sh tests/crash.sh OPTION...: those of tests/crash/crash_loop.py; --help lists them. The
# build is the one in KVARN_BIN_DIR, by default build/bin.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
export PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# The system's own interpreter may not be the first on the path.
for python in "${KVARN_PYTHON:-python3}" /usr/bin/python3; do
    if "$python" -c 'import google.protobuf, numpy' 2>/dev/null; then
        exec "$python" "$here/crash/crash_loop.py" "$@"
    fi
done
echo "crash.sh: needs a python3 with protobuf and numpy" >&2
exit 2
