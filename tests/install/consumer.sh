#!/bin/sh
# Builds and runs a project of somebody else against the installed files.
# usage: consumer.sh cmake|pkg-config PREFIX LIBDIR WORK CC
set -eu

how=$1 prefix=$2 libdir=$3 work=$4 cc=$5
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
rm -rf "$work"
mkdir -p "$work"

case "$how" in
cmake)
    cmake -S "$here/consumer" -B "$work" -G Ninja -DCMAKE_C_COMPILER="$cc" \
        -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_FLAGS="-Wall -Wextra -Werror" \
        -DCMAKE_PREFIX_PATH="$prefix"
    cmake --build "$work"
    ;;
pkg-config)
    # Only the flags that pkg-config gives; --static takes the archive, without it the shared one.
    export PKG_CONFIG_PATH="$prefix/$libdir/pkgconfig"
    build()
    {
        name=$1
        shift
        # shellcheck disable=SC2046 # flags, split on purpose
        set -- $(pkg-config --cflags "$@") "$here/consumer/${name%_*}.c" $(pkg-config --libs "$@")
        "$cc" -std=gnu11 -Wall -Wextra -Werror -o "$work/$name" "$@" -lm
    }
    build tile_shared libkvarn
    build connect_ libkvarn_client
    mv "$work/connect_" "$work/connect"
    mkdir "$work/static"
    cp "$prefix/$libdir/libkvarn.a" "$prefix/$libdir/libkvarn_base.a" "$work/static"
    # shellcheck disable=SC2046
    "$cc" -std=gnu11 -o "$work/tile_kvarn" $(pkg-config --cflags libkvarn) \
        "$here/consumer/tile.c" -L"$work/static" $(pkg-config --libs --static libkvarn)
    ;;
*)
    exit 2
    ;;
esac

run()
{
    want=$1
    shift
    got=0
    LD_LIBRARY_PATH=$prefix/$libdir "$@" || got=$?
    [ "$got" -eq "$want" ] || {
        echo "$1: exit status $got, not $want" >&2
        exit 1
    }
}
run 0 "$work/tile_kvarn"
run 0 "$work/tile_shared"
run 3 "$work/connect" "unix:$work/nobody"

# Which library each of them took.
ldd "$work/tile_shared" | grep -q "libkvarn.so" || {
    echo "tile_shared does not use the shared library" >&2
    exit 1
}
if ldd "$work/tile_kvarn" | grep -q libkvarn.so; then
    echo "tile_kvarn uses the shared library" >&2
    exit 1
fi
