# What building, testing and checking need, as Debian 12, 13 and Ubuntu 22.04 and later name it.
# POSIX sh, sourced by deploy/try.sh, tests/run.sh and .ci/run; it only defines names.
# shellcheck shell=sh disable=SC2034

# Compiler, generators and libraries of kvarnd, libkvarn and kvarnctl.
KVARN_BUILD_PACKAGES="cmake ninja-build gcc libc6-dev pkg-config protobuf-c-compiler
    protobuf-compiler libuv1-dev libprotobuf-c-dev libjemalloc-dev libxxhash-dev libzstd-dev
    libinih-dev libbsd-dev libssl-dev zlib1g-dev libsystemd-dev"

# What ctest runs besides.
KVARN_TEST_PACKAGES="libcmocka-dev python3 python3-pytest python3-protobuf python3-numpy
    python3-hypothesis fiu-utils libfiu0"

# The library for AArch64 and its tests, on other machines: compiler, libc, emulator.
KVARN_AARCH64_PACKAGES="gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"

# What python -m kvarn.worker needs besides what pip installs.
KVARN_MODEL_PACKAGES="python3 python3-venv"

# packages_missing NAME...: prints the packages among NAME... that are not installed.
packages_missing()
{
    for packages_name in "$@"; do
        case "$(dpkg-query -W -f='${db:Status-Status}' "$packages_name" 2>/dev/null)" in
        installed*) ;;
        *) printf '%s ' "$packages_name" ;;
        esac
    done
}

# packages_as_root COMMAND...: runs it as root; 1 where that is not allowed. Asks for a password
# only where somebody is there to type it.
packages_as_root()
{
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    elif command -v sudo >/dev/null 2>&1 && [ -t 0 ]; then
        sudo "$@"
    else
        return 1
    fi
}

# packages_need NAME...: installs those that are missing; nothing is run where none is. Returns 2,
# after saying what is missing and how to install it, where it may not or cannot install. Where
# there is no dpkg it says so and returns 0: CMake names what it does not find.
packages_need()
{
    if ! command -v dpkg-query >/dev/null 2>&1; then
        echo "packages: no dpkg here; needed are, by Debian's names:" "$@"
        return 0
    fi
    packages_lack=$(packages_missing "$@")
    [ -n "$packages_lack" ] || return 0
    if packages_as_root true; then
        echo "packages: installing $packages_lack"
        # One source of several that cannot be reached is no reason to stop: install tells.
        packages_as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update ||
            echo "packages: apt-get update failed"
        # shellcheck disable=SC2086 # a list of names, split on purpose
        packages_as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
            -o DPkg::Lock::Timeout=300 install --no-install-recommends $packages_lack ||
            echo "packages: apt-get install failed"
    fi
    packages_lack=$(packages_missing "$@")
    [ -n "$packages_lack" ] || return 0
    {
        echo "packages: missing: $packages_lack"
        echo "packages: as root: apt-get update && apt-get install -y $packages_lack"
    } >&2
    return 2
}
