# Each target does its own set-up: a virtual environment in .venv, this package and what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: demo story test docs quality style

demo: $(VENV)/.ready
	PATH="$(abspath $(BIN)):$$PATH" $(OFFLINE) python examples/controlnet_demo.py --output_dir runs/demo

story: $(VENV)/.ready
	PATH="$(abspath $(BIN)):$$PATH" python examples/story --output_dir runs/story $(ARGS)

test: $(VENV)/.ready
	PATH="$(abspath $(BIN)):$$PATH" $(OFFLINE) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal $(ARGS)

docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(OFFLINE) $(BIN)/python -m sphinx -q -W --keep-going -b html docs site
	@echo "open site/index.html"

quality: $(VENV)/.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

style: $(VENV)/.ready
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# torch and torchvision are resolved in one command, so that they come from one build.
# PYTHONWARNINGS: setuptools prints a page of advice on editable installs, which pip would pass on.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed; make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing this package and what it needs into $(VENV); the first time this takes some minutes"
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
