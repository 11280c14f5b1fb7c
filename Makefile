# Everything here starts from a machine that has python3 with its venv module, and make.
PYTHON ?= python3
INSTALLER ?= uv# or: pip
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Each process that a test starts would otherwise compile anew what it imports, where the environment forbids keeping it.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check

.PHONY: setup setup-torch demo check test test-parity test-slow test-torch test-beam test-faults mutants examples docs \
	bench bench-full bench-gpu bench-peers lint format lock release-check clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# Only what requirements.lock names with a hash is fetched, uv and what builds included: the latter first, since a package
# of tensorflow-datasets comes as source. Where uv cannot reach the package index (a certificate that only pip is told
# of, say), pip takes over.
$(STAMP): requirements.lock pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)
	awk '/^(uv|setuptools)==/ {keep = 1; print; next} /^[^ ]/ {keep = 0} keep' requirements.lock > $(VENV)/first.txt
	$(PIP) --no-deps --require-hashes -r $(VENV)/first.txt
ifeq ($(strip $(INSTALLER)),uv)
	$(BIN)/uv pip install -q --python $(BIN)/python --no-build-isolation --no-deps --require-hashes -r requirements.lock \
		|| $(PIP) --no-build-isolation --no-deps --require-hashes -r requirements.lock
else
	$(PIP) --no-build-isolation --no-deps --require-hashes -r requirements.lock
endif
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

# torch is not locked: no lock file can name its CPU build for every platform. pip's defaults may bring the CUDA build,
# gigabytes; TORCH="torch torchvision timm --index-url ..." names another.
TORCH ?= torch torchvision timm

setup-torch: $(STAMP)
	$(PIP) $(TORCH)

demo: $(STAMP)
	$(BIN)/kimiajax table demo

# Two processes, which steal each other's tests at the end; XDIST="-p no:xdist" runs all in one.
XDIST ?= -n 2 --dist worksteal
PYTEST := $(BIN)/python -m pytest

# What a change must pass, and what .ci/run calls.
check: lint docs test examples test-faults test-parity

# In two calls, since a process reads once how much XLA is to optimise: little, and for some tests as for users.
test: $(STAMP)
	$(PYTEST) $(XDIST)
	$(PYTEST) $(XDIST) -m "optimised and not parity" tests/networks

# Minutes each, and the last after `make setup-torch`.
test-parity: $(STAMP)
	$(PYTEST) $(XDIST) -m "parity and not optimised and not torch and not slow"
	$(PYTEST) -m "parity and optimised" tests/networks

# Kills a run at twenty random moments.
test-slow: $(STAMP)
	$(PYTEST) -m slow

test-torch: $(STAMP)
	$(PYTEST) -m torch

# Plants every fault of tests/faults/matrix.py and prints the table. --matrix: a fault that was not planted is a failure.
test-faults: $(STAMP)
	$(PYTEST) $(XDIST) -m "faults and not slow" tests/faults --matrix

# In an environment of its own: Apache Beam wants older versions of some packages than requirements.lock has.
test-beam: .beam/.ready
	.beam/bin/python -m pytest -m beam tests/pipeline/test_beam.py

.beam/.ready: pyproject.toml
	$(PYTHON) -m venv --clear .beam
	.beam/bin/python -m pip install -q --disable-pip-version-check -e ".[beam]" beartype pytest
	touch $@

# Tools that are run by hand, in an environment of their own, so that `make setup` stays short.
.tools/.ready: tools.lock
	$(PYTHON) -m venv --clear .tools
	.tools/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

# Changes one module in a copy of the tree, one small mistake at a time, and lists those that no test notices:
# make mutants MODULE=kimiajax/evaluation/metrics.py [TESTS="tests/unit/test_metrics.py ..."]
MODULE ?=
TESTS ?= $(wildcard tests/*/test_$(basename $(notdir $(MODULE)))*.py)

mutants: $(STAMP) .tools/.ready
	@test -f "$(MODULE)" || { echo 'make mutants MODULE=FILE: name one file, as kimiajax/evaluation/metrics.py'; exit 2; }
	@test -n "$(TESTS)" || { echo 'make mutants: no tests are called after $(MODULE); name them with TESTS="FILE ..."'; exit 2; }
	rm -rf .mutants && mkdir .mutants
	git ls-files -z | xargs -0 cp --parents -t .mutants
	ln -s ../.cache .mutants/.cache
	printf '%s\n' '[cosmic-ray]' 'module-path = "$(MODULE)"' 'timeout = 300.0' 'excluded-modules = []' \
		'test-command = "$(CURDIR)/$(PYTEST) -x -p no:cacheprovider $(TESTS)"' \
		'[cosmic-ray.distributor]' 'name = "local"' > .mutants/cosmic-ray.toml
	cd .mutants && export PYTHONPATH=$(CURDIR)/.mutants PATH=$(CURDIR)/.tools/bin:$$PATH && \
		cosmic-ray baseline cosmic-ray.toml && cosmic-ray init cosmic-ray.toml session.sqlite && \
		cosmic-ray exec cosmic-ray.toml session.sqlite && cr-report --surviving-only --show-diff session.sqlite

# The others that are raced against, each in an environment of its own with the versions that its file pins.
PEERS := $(patsubst benchmarks/peers/%.txt,.peers/%/.ready,$(wildcard benchmarks/peers/*.txt))

bench-peers: $(PEERS)

.peers/%/.ready: benchmarks/peers/%.txt
	$(PYTHON) -m venv --clear .peers/$*
	.peers/$*/bin/python -m pip install -q --disable-pip-version-check -r $<
	touch $@

# On synthetic scans and random weights; each script says at its top what it asks and what it printed. And what the pages
# of the documentation show.
examples: $(STAMP)
	$(PYTEST) $(XDIST) -m examples
	set -e; for script in $(filter-out examples/scans.py,$(wildcard examples/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script; done

# A warning is a failure. The pages are in docs/_build/html.
docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# The short form, under 25 minutes on two cores; and every batch size, image size and scope, hours.
bench: $(STAMP)
	$(BIN)/kimiajax bench --peers all --out runs/bench/bench.json

bench-full: $(STAMP)
	$(BIN)/kimiajax bench --full --peers all --out runs/bench/bench-full.json

# Where a GPU is, with the environment that is active there: jax, torch and this package.
bench-gpu:
	python -m benchmarks features finetune_step --in-place --peers torch torch.compile --batches 32 128 256 \
		--precisions float32 tf32 bfloat16 --scopes step tail --out runs/bench/bench-gpu.json
	python -m benchmarks roofline vgg16 --batch 128 --precision bfloat16 --out runs/bench/roofline-vgg16-gpu.json
	python -m benchmarks roofline inception_v3 --batch 128 --precision bfloat16 --out runs/bench/roofline-inception_v3-gpu.json

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Rewrites requirements.lock and tools.lock from pyproject.toml, for Python 3.11 to 3.13 on every platform.
LOCKED := -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links
lock: $(STAMP)
	$(BIN)/uv pip compile $(LOCKED) --group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile $(LOCKED) --group tools -o tools.lock

# Builds what a release holds and uses it as whoever installs it does: minutes, and it needs the package index.
release-check: $(STAMP) .tools/.ready
	rm -rf dist
	$(BIN)/uv build -q --no-build-isolation --python $(BIN)/python --out-dir dist .
	.tools/bin/twine check --strict dist/*.whl dist/*.tar.gz
	PYTHON=$(PYTHON) .ci/try-wheel dist/*.whl

clean:
	rm -rf $(VENV) .peers .beam .tools .mutants .cache dist .pytest_cache .ruff_cache
