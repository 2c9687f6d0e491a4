#!/usr/bin/env bash
# Build the driver messages of test/interfaces with rosidl, for tests that talk to the drivers over DDS.
#
#   tools/build_test_interfaces.sh PYTHON PREFIX
#
# PYTHON is the environment's Python (its site has the rosidl generators, or a ROS 2 installation is sourced); PREFIX is
# where the result goes. Nothing is built again while the definitions and the environment are the same.
set -euo pipefail
python=$(command -v "$1") prefix=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sources=$here/test/interfaces

for tool in cmake c++; do
    command -v "$tool" >/dev/null || { echo "missing: $tool" >&2; exit 3; }
done
environment=$("$python" -c 'import sys; print(sys.prefix)')
# Colon-separated, as AMENT_PREFIX_PATH is; cmake wants semicolons.
search=$environment${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}
[ -n "$(IFS=:; for p in $search; do ls -d "$p"/share/rosidl_default_generators 2>/dev/null; done)" ] ||
    { echo "missing: the rosidl generators (pip install -e '.[ros-interfaces]')" >&2; exit 3; }

stamp=$(cd "$sources" && { find . -type f | LC_ALL=C sort | xargs cat; echo "$search $("$python" -V)"; } | sha256sum)
[ "$stamp" != "$(cat "$prefix/.stamp" 2>/dev/null)" ] || exit 0
mkdir -p "$prefix"
exec 9>"$prefix/.lock"
flock 9
[ "$stamp" != "$(cat "$prefix/.stamp" 2>/dev/null)" ] || exit 0

export PATH="$(dirname "$python"):$PATH" AMENT_PREFIX_PATH="$search"
for package in "$sources"/*/; do
    name=$(basename "$package")
    cmake -S "$package" -B "$prefix/build/$name" -DCMAKE_INSTALL_PREFIX="$prefix" -DBUILD_TESTING=OFF -DCMAKE_PROJECT_INCLUDE="$sources/wheels.cmake" \
        -DCMAKE_PREFIX_PATH="${search//:/;}" -DPython3_EXECUTABLE="$python" -DCMAKE_BUILD_TYPE=Release >"$prefix/$name.log" 2>&1 &&
        cmake --build "$prefix/build/$name" --parallel 2 --target install >>"$prefix/$name.log" 2>&1 ||
        { tail -20 "$prefix/$name.log" >&2; exit 1; }
done
echo "$stamp" >"$prefix/.stamp"
