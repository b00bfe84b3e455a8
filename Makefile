# make serve: install and serve every shipped checkpoint.  make test: install and check everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyTorch's CPU index (https://download.pytorch.org/whl/cpu), where the default index would bring CUDA along
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: setup setup-train setup-dev serve test test-clients fuzz check format system-packages image-test conformance-emulated sanitize soak clean

setup: $(VENV)/.serve
setup-train: $(VENV)/.train
setup-dev: $(VENV)/.dev

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

BUILT := pyproject.toml constraints.txt CMakeLists.txt $(wildcard model/runtime/native/src/*)

# without a compiler the kernel is not built: then torch has to advance the models
$(VENV)/.serve: $(BUILT) | $(BIN)/pip
	$(PIP_INSTALL) --editable .
	$(BIN)/python -c 'import sys; from model.runtime.choice import native_is_built; sys.exit(not native_is_built())' \
		|| { echo 'The native runtime was not built: it takes a compiler of C++20 and the headers of Python (Debian: g++, python3-dev);' \
			'$(BIN)/pip install --verbose --editable . shows why. PyTorch is installed instead.'; $(PIP_INSTALL) --editable '.[torch]'; }
	touch $@

$(VENV)/.train: $(BUILT) | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[train]'
	touch $@ $(VENV)/.serve

$(VENV)/.dev: $(BUILT) | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.serve $(VENV)/.train

serve: setup
	$(BIN)/aft serve

test: setup-dev check
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --cov --cov-report term

# Clients as their users have them, in an environment of their own, against the service that `make setup-dev` installs.
CLIENTS := build/clients
$(CLIENTS)/.python: tests/clients/requirements.txt
	$(PYTHON) -m venv --clear $(CLIENTS)/python
	$(CLIENTS)/python/bin/pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

$(CLIENTS)/.node: tests/clients/package.json
	mkdir -p $(@D)
	cp $< $(@D)
	npm install --prefix $(@D) --no-audit --no-fund --loglevel error
	touch $@

FUZZ := build/fuzz
$(FUZZ)/bin/st:
	$(PYTHON) -m venv --clear $(FUZZ)
	$(FUZZ)/bin/pip install --quiet --disable-pip-version-check schemathesis==4.32.5

# made-up requests over the OpenAPI document, thousands of them
fuzz: setup-dev $(FUZZ)/bin/st
	$(BIN)/python tests/fuzz.py $(FUZZ)/bin/st

# where npm and a Node of at least 20 are not at hand, their part is skipped, with a word
NODE_20 = $(shell command -v npm >/dev/null && node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' && echo yes)
test-clients: setup-dev $(CLIENTS)/.python $(if $(NODE_20),$(CLIENTS)/.node)
	$(BIN)/pytest tests/clients

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

system-packages:
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends g++ python3-dev python3-venv prometheus \
		$$(command -v node >/dev/null && command -v npm >/dev/null || echo nodejs npm)

# The kernel on emulated processors (Debian: qemu-user, g++-aarch64-linux-gnu): a path forced on a new processor cannot
# show an instruction that leaked into it.
conformance-emulated: setup
	$(BIN)/python tests/native_emulated.py

# The kernel under the address and undefined-behaviour sanitizers in Python's tests, and its threads under the thread
# sanitizer in a program of their own. nanobind comes into the folder: the environment has it only while pip builds.
SANITIZED := build/sanitized
SANITIZED_CMAKE := PYTHONPATH=$(SANITIZED)/packages $(BIN)/python -m cmake
sanitize: setup-dev
	$(PIP_INSTALL) --upgrade --target $(SANITIZED)/packages nanobind cmake
	$(SANITIZED_CMAKE) -S . -B $(SANITIZED)/kernel -DCMAKE_BUILD_TYPE=None \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-Dnanobind_DIR=$$(PYTHONPATH=$(SANITIZED)/packages $(BIN)/python -m nanobind --cmake_dir) \
		-DCMAKE_CXX_FLAGS='-g1 -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS'
	$(SANITIZED_CMAKE) --build $(SANITIZED)/kernel
	LD_PRELOAD=$$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
		AFT_SANITIZED_KERNEL=$(SANITIZED)/kernel PYTHONPATH=tests \
		$(BIN)/pytest -p sanitized_kernel tests/test_native.py tests/test_native_draws.py tests/test_guidance.py tests/test_match.py tests/test_library.py
	$(BIN)/python tests/native_races.py

# What the service endures, at length: disconnects, overload, SIGTERM, 20 minutes of everything. For a quiet machine.
soak: setup-dev
	cd benchmarks && $(CURDIR)/$(BIN)/python -m endurance --json results/endurance.json

# A running Docker engine, or the program named by IMAGE_CHECK, which is given this folder and the checks' arguments.
image-test:
	docker/image-test

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage* htmlcov
