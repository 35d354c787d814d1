# make generate    ask an embedded demonstration model about a picture
# make test        the fast tests; make test-slow runs the others
# make app         the page in the browser, on the demonstration models
# make test-browser  the tests of the page, in chromium, which has to be installed
# make lint        ruff check and ruff format --check
# make docs        the site, into site/
# make demo-models retrain the demonstration models
# make clean       remove what was generated (not the virtual environment)
#
# Each makes the virtual environment in $(VENV) first, if it is missing or its requirements changed.

PYTHON ?= python3
VENV ?= .venv
IMAGE ?= examples/llava_300041_helped.png
PROMPT ?= What color is the mushroom?

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.causalmm-installed
VENDORED := $(VENV)/.causalmm-vendored
DOCS := $(VENV)/.causalmm-docs
# What is installed without its dependencies.
APART := env/requirements-authors.txt env/requirements-app.txt env/requirements-serve.txt

.PHONY: setup generate app test test-slow test-browser lint docs demo-models clean

setup: $(INSTALLED) $(VENDORED)

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"$(PYTHON) is Python %d.%d, and the pinned packages need 3.11 or newer: run make with PYTHON=..." \
		% sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

# torch before the rest and by its exact version: left to a dependency's range, pip would take the
# newest build with gigabytes of CUDA packages. Without build isolation, the files to patch are
# those of the transformers just installed.
$(INSTALLED): env/requirements.txt $(APART) env/torchvision.pth pyproject.toml hatch_build.py | $(PY)
	$(PY) -m pip install $$(grep '^torch==' env/requirements.txt)
	$(PY) -m pip install -r env/requirements.txt
	$(PY) -m pip install --no-deps $(addprefix -r ,$(APART))
	$(PY) -m pip install --no-build-isolation --no-deps -e .
	touch $@

# Only when a patch is newer: edits in the vendored files survive until they are exported.
$(VENDORED): $(INSTALLED) patches/upstream.toml $(wildcard patches/*/*.patch)
	$(PY) scripts/vendor.py build
	touch $@

generate: setup
	$(PY) scripts/generate.py --image "$(IMAGE)" --prompt "$(PROMPT)" --compare

app: setup
	$(PY) -m causalmm app

# Workers take over what others have left, in the order of the files, so that most models of a
# module are made once. A worker has one thread: threads of several on the same cores wait for one
# another at every operation.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test: setup
	$(PYTEST) -m "not slow and not browser"

test-slow: setup
	$(PYTEST) -m "slow and not browser"

# One server and one browser: not distributed.
test-browser: setup
	$(PY) -m pytest -m browser tests/app

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# Needs no torch. The constraints keep what the other requirements pin.
$(DOCS): env/requirements-docs.txt env/requirements.txt | $(PY)
	$(PY) -m pip install -r env/requirements-docs.txt -c env/requirements.txt
	touch $@

docs: $(DOCS)
	$(PY) -m mkdocs build --strict

demo-models: setup
	$(PY) scripts/train_demo.py llava
	$(PY) scripts/train_demo.py qwen2_vl

clean:
	rm -f *_causalmm/modeling_*.py $(VENDORED)
	rm -rf build dist site .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
