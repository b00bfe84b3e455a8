# make serve: install and serve every shipped checkpoint.  make test: install and check everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# PyTorch's CPU index (https://download.pytorch.org/whl/cpu), where the default index would bring CUDA along
TORCH_INDEX ?=
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: setup setup-dev serve test check format system-packages image-test clean

setup: $(VENV)/.serve
setup-dev: $(VENV)/.dev

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[train]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.serve

serve: setup
	$(BIN)/aft serve

test: setup-dev check
	$(BIN)/pytest --numprocesses 2 --dist loadgroup --cov --cov-report term

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

system-packages:
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends prometheus

# A running Docker engine, or the program named by IMAGE_CHECK, which is given this folder and the checks' arguments.
image-test:
	docker/image-test

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage* htmlcov
