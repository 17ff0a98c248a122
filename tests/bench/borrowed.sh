#!/usr/bin/env bash
# A report of a borrowed machine that has gcc, make and Python 3.11, and no network.
#
#   here:   bash tests/bench/borrowed.sh pack      build/borrowed.tar: the committed tree, wheels, .debs
#   there:  tar xf borrowed.tar && cd minimax2 && bash tests/bench/borrowed.sh [FILE [PARTS]]
#
# There it unpacks what the build needs below build/borrowed (nothing is installed, root is not
# needed), builds, tests the level (test-tiles_avx512, test-kernels, test-same), then writes FILE.md
# and FILE.json (build/report; PARTS as `minimax2 bench --only`). Both machines must have the same
# Debian and the same minor version of Python: wheels and .debs are made for those of the first.
#
#   WITH_LLAMA=1    pack: carry llama-cpp-python too, built for the machine that packs
#   EVERY=1         test-same with every kind of weights, as `make test-same` does
set -eu
cd "$(dirname "$0")/../.."
here=$PWD
box=$here/build/borrowed

pack() {
    local staging=$here/build/packing
    rm -rf "$staging" && mkdir -p "$staging/minimax2/build/borrowed/debs"
    git archive HEAD | tar x -C "$staging/minimax2"
    git rev-parse --short HEAD >"$staging/minimax2/build/borrowed/commit"
    # Headers and libraries that the build links or the tests include, with pkg-config's program.
    (cd "$staging/minimax2/build/borrowed/debs" && apt-get -qq download libpcre2-dev libpcre2-8-0 \
        libutf8proc-dev libutf8proc2 libcmocka-dev libcmocka0 pkgconf pkgconf-bin libpkgconf3)
    # What setup.py and the tests import; their list is that of pyproject.toml.
    .venv/bin/python - >"$staging/wanted" <<'PYTHON'
import tomllib
with open("pyproject.toml", "rb") as file:
    made = tomllib.load(file)
print("\n".join(["setuptools", "wheel", "cffi>=1.15", "scipy-openblas32",
                 *made["project"].get("dependencies", []),
                 "pytest", "hypothesis", "numpy"]))
PYTHON
    .venv/bin/python -m pip download -qq -d "$staging/minimax2/build/borrowed/wheels" \
        -r "$staging/wanted"
    if [ "${WITH_LLAMA-}" ]; then
        .venv/bin/python -m pip wheel -qq -w "$staging/minimax2/build/borrowed/wheels" \
            -r tests/bench/requirements.txt
    fi
    tar cf "$here/build/borrowed.tar" -C "$staging" minimax2
    rm -rf "$staging"
    ls -l "$here/build/borrowed.tar"
}

# Points pkg-config, the compiler and the loader at the unpacked .debs.
unpack() {
    local root=$box/root name
    for name in "$box"/debs/*.deb; do
        dpkg-deb -x "$name" "$root"
    done
    local lib=$root/usr/lib/$(gcc -print-multiarch)
    export PATH=$root/usr/bin:$PATH PKG_CONFIG_SYSROOT_DIR=$root
    export PKG_CONFIG_LIBDIR=$lib/pkgconfig:$root/usr/share/pkgconfig
    export CPATH=$root/usr/include LIBRARY_PATH=$lib LD_LIBRARY_PATH=$lib
    # pkg-config leaves out what CPATH names, and the .so links point into /lib: make them local.
    for name in "$lib"/*.so; do
        [ -e "$name" ] || ln -sf "$(basename "$(readlink "$name")")" "$name"
    done
}

venv() {
    python3 -m venv --without-pip .venv
    local wheel
    wheel=$(python3 -c 'import ensurepip, pathlib
print(next((pathlib.Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"), ""))')
    PYTHONPATH=$wheel .venv/bin/python -m pip install -qq --no-index \
        --find-links "$box/wheels" pip setuptools wheel 2>/dev/null ||
        PYTHONPATH=$wheel .venv/bin/python -m pip install -qq --no-index \
            --find-links "$box/wheels" setuptools wheel
    PYTHONPATH=$wheel .venv/bin/python -m pip install -qq --no-index --find-links "$box/wheels" \
        cffi scipy-openblas32 numpy pytest hypothesis tqdm
    PYTHONPATH=$wheel .venv/bin/python -m pip install -qq --no-index --no-build-isolation \
        --no-deps -e .
    ls "$box"/wheels/llama_cpp_python* >/dev/null 2>&1 &&
        PYTHONPATH=$wheel .venv/bin/python -m pip install -qq --no-index \
            --find-links "$box/wheels" llama-cpp-python
    return 0
}

if [ "${1-}" = pack ]; then
    pack
    exit
fi
if [ -d "$box/debs" ]; then
    unpack
fi
[ -x .venv/bin/python ] || venv
jobs=$(nproc)
make -s -C csrc -j "$jobs"
cp -f build/release/libminimax2.so "python/minimax2/$(basename "$(ls python/minimax2/libminimax2.so.*)")"
make -s -C csrc -j "$jobs" tests
for test in tiles_avx512 kernels; do
    make -s -C csrc "test-$test"
done
MM2_EVERY_KIND=${EVERY-} .venv/bin/python -m pytest -q tests/python/test_same_bits.py
.venv/bin/python -m minimax2 bench --report "${1:-build/report}" ${2:+--only "$2"}
