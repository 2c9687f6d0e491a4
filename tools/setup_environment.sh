#!/usr/bin/env bash
# Make a virtual environment with everything that the demo and the tests need.
#
#   tools/setup_environment.sh PYTHON VENV EXTRAS
#
# LIGHTVLA_TORCH chooses where torch comes from:
#   (unset)    the default package index (Linux: the CUDA build)
#   a URL      another index, such as https://download.pytorch.org/whl/cpu
#   existing   the torch and torchvision that PYTHON already has
# With a ROS 2 installation sourced, its rclpy is used and no ROS wheels are installed.
set -euo pipefail
python=$1 venv=$2 extras=$3
torch=${LIGHTVLA_TORCH:-}

fail() {
    echo "error: $*" >&2
    exit 1
}

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null ||
    fail "Python 3.10 to 3.14 is needed, but '$python' is $("$python" --version 2>&1); set PYTHON=/path/to/python3.12"

site=()
if [ -n "${ROS_DISTRO:-}" ]; then
    echo "ROS 2 $ROS_DISTRO is sourced: using its rclpy"
    extras=$(tr , '\n' <<<"$extras" | grep -v '^ros' | paste -sd ,)
    site=(--system-site-packages)
elif ! "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 14))'; then
    fail "the ROS 2 wheels need Python 3.10 to 3.13; set PYTHON=python3.12, or source a ROS 2 installation first"
fi
[ "$torch" != existing ] || site=(--system-site-packages)

# The renderer of the simulated robot needs one system library.
have_gl() { "$python" -c 'import ctypes.util as u, sys; sys.exit(not (u.find_library("EGL") or u.find_library("OSMesa")))'; }
if [[ $extras == *sim* ]] && ! have_gl; then
    install="apt-get install -y libegl1 libgl1-mesa-dri"
    echo "installing the GL library of the renderer: $install"
    if [ "$(id -u)" = 0 ]; then
        { apt-get update -q && $install; } >/dev/null || fail "that did not work; run: $install"
    else
        sudo -n true 2>/dev/null || fail "the renderer needs a GL library; run: sudo $install"
        { sudo -n apt-get update -q && sudo -n $install; } >/dev/null || fail "that did not work; run: sudo $install"
    fi
fi

"$python" -m venv "${site[@]}" "$venv" 2>/dev/null ||
    fail "cannot make the virtual environment $venv; run: sudo apt-get install -y python3-venv"

pip=("$venv/bin/python" -m pip --disable-pip-version-check install)
"${pip[@]}" --quiet --upgrade pip
if [[ $extras == *policy* ]]; then
    case $torch in
        existing)
            "$venv/bin/python" -c 'import torch, torchvision' ||
                fail "LIGHTVLA_TORCH=existing, but $python has no working torch and torchvision"
            ;;
        "")
            if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
                echo "downloading torch with CUDA and everything else: about 3.3 GB, 6.6 GB on disk"
                echo "(smaller: LIGHTVLA_TORCH=https://download.pytorch.org/whl/cpu make ...)"
            fi
            ;;
        *) "${pip[@]}" torch torchvision --index-url "$torch" ;;
    esac
fi
"${pip[@]}" --editable ".[$extras]"
# For its arm models alone: one of its dependencies has no build for Python 3.13, and none is needed here.
[[ $extras != *sim* ]] || "${pip[@]}" --no-deps "gym-aloha>=0.1.3"
touch "$venv/.complete"
