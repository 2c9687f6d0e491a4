#!/usr/bin/env bash
# Run a command with the driver messages of test/interfaces importable, as the tests over DDS want them.
#
#   tools/with_driver_messages.sh PYTHON PREFIX COMMAND...
#
# rosidl generates them into PREFIX, from PYTHON's environment (extra ros-interfaces or ros-kilted-interfaces) or from a
# sourced ROS 2 installation. Nothing is built again while the definitions and the environment are the same. Where the
# generators or a compiler are missing, the command runs all the same, and tests that need the messages are skipped.
set -euo pipefail
python=$(realpath -s "$(command -v "$1")") prefix=$(realpath -m "$2")
shift 2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sources=$here/test/interfaces

environment=$("$python" -c 'import sys; print(sys.prefix)')
# Colon-separated, as AMENT_PREFIX_PATH is; cmake wants semicolons.
search=$environment${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}
path=$(dirname "$python"):$PATH

missing() {
    for tool in cmake c++; do
        PATH=$path command -v "$tool" >/dev/null || { echo "$tool"; return; }
    done
    [ -n "$(IFS=:; for p in $search; do ls -d "$p"/share/rosidl_default_generators 2>/dev/null; done)" ] ||
        echo "the rosidl generators (extra ros-interfaces, or ros-kilted-interfaces)"
}

build() {
    stamp=$(cd "$sources" && { find . -type f | LC_ALL=C sort | xargs cat; echo "$search $("$python" -V)"; } | sha256sum)
    mkdir -p "$prefix"
    exec 9>"$prefix/.lock"
    flock 9
    [ "$stamp" != "$(cat "$prefix/.stamp" 2>/dev/null)" ] || return 0
    echo "building the drivers' messages (under a minute, once)"
    for package in "$sources"/*/; do
        name=$(basename "$package")
        PATH=$path AMENT_PREFIX_PATH=$search build_package >"$prefix/$name.log" 2>&1 ||
            { tail -20 "$prefix/$name.log" >&2; exit 1; }
    done
    echo "$stamp" >"$prefix/.stamp"
}

build_package() {
    cmake -S "$package" -B "$prefix/build/$name" -DCMAKE_INSTALL_PREFIX="$prefix" -DBUILD_TESTING=OFF \
        -DCMAKE_PROJECT_INCLUDE="$sources/wheels.cmake" -DCMAKE_PREFIX_PATH="${search//:/;}" \
        -DPython3_EXECUTABLE="$python" -DCMAKE_BUILD_TYPE=Release &&
        cmake --build "$prefix/build/$name" --parallel 2 --target install
}

what=$(missing)
if [ -n "$what" ]; then
    echo "not building the drivers' messages, and skipping their tests; missing: $what" >&2
    exec "$@"
fi
build
exec 9>&-
site=$(cd "$prefix"/l*/python3*/site-packages && pwd)
export LD_LIBRARY_PATH=$prefix/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
export AMENT_PREFIX_PATH=$prefix${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}
exec "$@"
