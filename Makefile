# The front door. `make demo` and `make test` set up everything they need; `make help` lists the rest.
PYTHON := .venv/bin/python
LIBRARY := build/release/libminimax2.so
PACKAGED := python/minimax2/libminimax2.so.$(shell sed -n 's/^ *MM2_ABI = \([0-9]*\),.*/\1/p' csrc/minimax2.h)
BUILD_INPUTS := setup.py pyproject.toml csrc/minimax2.h $(filter-out bindings/check_sync.py,$(wildcard bindings/*.py)) \
	$(wildcard bindings/*.c bindings/*.h)
# Where the system has no OpenBLAS, the one of pip's wheel.
export OPENBLAS = $(abspath $(firstword $(wildcard .venv/lib/python3.*/site-packages/scipy_openblas32/lib/libscipy_openblas.so)))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# The first python3 on the path if it is new enough and complete, else Debian's.
BASE_PYTHON = $(shell python3 -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11)' 2>/dev/null && echo python3 || echo /usr/bin/python3)

.PHONY: help packages lib install py lua demo test test-c build-asan test-asan test-py test-bits test-rest test-same test-lua parity sync golden bench compare lint notebooks clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, then generate from the embedded model in Python and in Lua"
	@echo "make test       set up, then run every test; ends with a summary"
	@echo "make lib        the C library, $(LIBRARY)"
	@echo "make install    the library for programs in C, under PREFIX=/usr/local"
	@echo "make py         .venv with the Python package in place (editable)"
	@echo "make lua        the library and the cdef that the Lua modules load"
	@echo "make test-c     C tests; test-asan: the same under address and undefined-behaviour sanitizers"
	@echo "make test-py    pytest; test-lua: busted; parity: Python and Lua byte by byte; sync: bindings"
	@echo "make test-same  the same bits: threads x rows x chunks x levels; counts what differs"
	@echo "make golden     recompute the golden values with transformers and compare (installs torch)"
	@echo "make bench      prefill and decode speed of the embedded model; MODEL=path for another"
	@echo "make compare    speed beside llama.cpp's, on the same file: ARGS='--format q4_k_m --what pp512,tg32'"
	@echo "make lint       clang-format, flake8, luacheck"
	@echo "make notebooks  execute every notebook"
	@echo "make clean      remove what was built"

packages:
	@bash .ci/packages

lib: packages
	@$(MAKE) -s -C csrc -j $(shell nproc)

install: lib
	@$(MAKE) -s -C csrc install

lua: lib
	@python3 bindings/gen_cdef.py

.venv/pyvenv.cfg: | packages
	@echo "Making .venv"
	@$(BASE_PYTHON) -m venv .venv

# The package, editable, with what its build needs; stamped so that the second time is quick.
build/package.stamp: .venv/pyvenv.cfg $(BUILD_INPUTS) | packages
	@echo "Building the C library and the Python package (a minute or two)"
	@$(PYTHON) -m pip install -qq setuptools wheel "cffi >= 1.15"
	@$(PYTHON) -m pip install -qq --no-build-isolation -e .
	@pkg-config --exists openblas || $(PYTHON) -m pip install -qq scipy-openblas32
	@mkdir -p build && touch $@

py: packages build/package.stamp
	@$(MAKE) -s -C csrc -j $(shell nproc)
	@cmp -s $(LIBRARY) $(PACKAGED) || install -m 755 $(LIBRARY) $(PACKAGED)

build/test.stamp: build/package.stamp pyproject.toml
	@echo "Installing what the tests need"
	@$(PYTHON) -m pip install -qq --no-build-isolation -e '.[test]'
	@touch $@

demo: py
	@$(PYTHON) python/examples/demo.py

test: py build/test.stamp
	@bash .ci/test

test-c: lib
	@$(MAKE) -s -C csrc -j $(shell nproc) tests
	@$(MAKE) -s -C csrc -j $(shell nproc) --output-sync=target test

build-asan: packages
	@$(MAKE) -s -C csrc -j $(shell nproc) SANITIZE=address,undefined tests

test-asan: build-asan
	@$(MAKE) -s -C csrc -j $(shell nproc) --output-sync=target SANITIZE=address,undefined test

test-py: py build/test.stamp
	@$(PYTHON) -m pytest

# The two halves of test-py, of about the same length.
test-bits: py build/test.stamp
	@$(PYTHON) -m pytest tests/python/test_same_bits.py

test-rest: py build/test.stamp
	@$(PYTHON) -m pytest --ignore=tests/python/test_same_bits.py

test-same: py build/test.stamp
	@MM2_EVERY_KIND=1 $(PYTHON) -m pytest tests/python/test_same_bits.py

test-lua: lib
	@busted

parity: py build/test.stamp
	@$(PYTHON) tests/parity/run.py

sync: py
	@$(PYTHON) bindings/gen_cdef.py --check
	@$(PYTHON) bindings/check_sync.py

golden: py build/test.stamp
	@$(PYTHON) -m pip install -q -r tests/tiny/requirements.txt
	@$(PYTHON) tests/golden/make_golden.py
	@$(PYTHON) tests/golden/make_hashes.py
	@$(PYTHON) -m pytest tests/python/test_golden.py tests/python/test_hooks_match_torch.py

bench: py
	@$(PYTHON) -m minimax2 bench $(if $(MODEL),-m "$(MODEL)")

build/compare.stamp: build/package.stamp tests/bench/requirements.txt
	@echo "Installing llama-cpp-python, which pip builds for this machine: several minutes"
	@$(PYTHON) -m pip install -qq -r tests/bench/requirements.txt
	@touch $@

# LLAMA_PYTHON=path: another interpreter that has llama-cpp-python already.
compare: py $(if $(LLAMA_PYTHON),build/test.stamp,build/compare.stamp)
	@$(PYTHON) tests/bench/compare.py $(if $(LLAMA_PYTHON),--llama-python "$(LLAMA_PYTHON)") $(ARGS)

lint: py
	@bash .ci/packages lint
	@$(PYTHON) -m pip install -qq flake8 flake8-pyproject
	@git ls-files -co --exclude-standard '*.c' '*.h' | xargs clang-format --dry-run -Werror
	@git ls-files -co --exclude-standard '*.py' | xargs $(PYTHON) -m flake8
	@luacheck -q lua tests/lua tests/parity

notebooks: py build/test.stamp
	@$(PYTHON) -m jupyter execute notebooks/*.ipynb

clean:
	rm -rf build *.egg-info python/*.egg-info python/minimax2/*.so*
