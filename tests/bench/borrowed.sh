#!/usr/bin/env bash
# A report of a borrowed machine that has gcc, make and Python 3.11, and no network.
#
#   here:   bash tests/bench/borrowed.sh pack
#           build/borrowed.tar: the committed tree, Python wheels and Debian packages
#   there:  tar xf borrowed.tar && cd minimax2 && bash tests/bench/borrowed.sh [FILE [PARTS]]
#
# There it unpacks what the build needs below build/borrowed (nothing is installed, nobody needs to
# be root), builds, tests the level (test-tiles_avx512, test-kernels, test-same), and writes FILE.md and
# FILE.json (build/report; PARTS as for `minimax2 bench --only`). Both machines must have the same
# Debian and the same minor version of Python, for which the packages are made.
#
#   WITH_LLAMA=1   pack: carry llama-cpp-python too, built for the processor of the machine that packs
#   MM2_EVERY_KIND=1   there: test-same with every kind of weights; "skip": not at all
set -eu
cd "$(dirname "$0")/../.."
box=$PWD/build/borrowed
debs=(libpcre2-dev libpcre2-8-0 libutf8proc-dev libutf8proc2 libcmocka-dev libcmocka0 pkgconf-bin
    libpkgconf3)
wheels=(pip setuptools wheel "cffi>=1.15" "numpy>=1.25" tqdm scipy-openblas32 pytest hypothesis gguf
    ml_dtypes)

pack() {
    local staging=$PWD/build/packing
    rm -rf "$staging" && mkdir -p "$staging/minimax2/build/borrowed/debs"
    git archive HEAD | tar x -C "$staging/minimax2"
    git rev-parse --short HEAD >"$staging/minimax2/build/borrowed/commit"
    (cd "$staging/minimax2/build/borrowed/debs" && apt-get -qq download "${debs[@]}")
    .venv/bin/python -m pip download -qq -d "$staging/minimax2/build/borrowed/wheels" "${wheels[@]}"
    if [ "${WITH_LLAMA-}" ]; then
        .venv/bin/python -m pip wheel -qq -w "$staging/minimax2/build/borrowed/wheels" \
            -r tests/bench/requirements.txt
    fi
    tar cf build/borrowed.tar -C "$staging" minimax2
    rm -rf "$staging"
    ls -lh build/borrowed.tar
}

# Unpacks the Debian packages, and points compiler, pkg-config and loader at them.
unpack() {
    local root=$box/root name lib
    for name in "$box"/debs/*.deb; do
        dpkg-deb -x "$name" "$root"
    done
    lib=$root/usr/lib/$(gcc -print-multiarch)
    ln -sf pkgconf "$root/usr/bin/pkg-config"
    for name in "$lib"/*.so; do # those that lead to /lib
        [ -e "$name" ] || ln -sf "$root$(readlink "$name")" "$name"
    done
    export PATH=$root/usr/bin:$PATH PKG_CONFIG_LIBDIR=$lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root
    export CPATH=$root/usr/include LIBRARY_PATH=$lib LD_LIBRARY_PATH=$lib:$root/lib
}

venv() {
    python3 -c 'import os, sysconfig
path = os.path.join(sysconfig.get_path("include"), "Python.h")
assert os.path.exists(path), f"{path} is missing: the Python here cannot build extensions"'
    python3 -m venv --without-pip .venv
    export PYTHONPATH
    PYTHONPATH=$(echo "$box"/wheels/pip-*.whl)
    local install=(.venv/bin/python -m pip install -qq --no-index --find-links "$box/wheels")
    "${install[@]}" "${wheels[@]}"
    "${install[@]}" --no-build-isolation --no-deps -e .
    if ls "$box"/wheels/llama_cpp_python* >/dev/null 2>&1; then
        "${install[@]}" llama-cpp-python
    fi
    unset PYTHONPATH
}

if [ "${1-}" = pack ]; then
    pack
    exit
fi
if [ ! -d "$box" ]; then
    echo "There is no $box: make build/borrowed.tar by 'borrowed.sh pack' and start in its tree" >&2
    exit 1
fi
unpack
[ -x .venv/bin/minimax2 ] || venv
OPENBLAS=$(echo "$PWD"/.venv/lib/python3.*/site-packages/scipy_openblas32/lib/libscipy_openblas.so)
export OPENBLAS
make -s -C csrc -j "$(nproc)" test-tiles_avx512 test-kernels
if [ "${MM2_EVERY_KIND-}" != skip ]; then
    .venv/bin/python -m pytest -q -p no:cacheprovider tests/python/test_same_bits.py
fi
.venv/bin/python -m minimax2 bench --report "${1:-build/report}" ${2:+--only "$2"}
