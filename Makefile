# `make demo` and `make test` are the two commands; both set the machine up first (`make venv`).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.par_jax-ready
TORCH := torch==2.13.0

DEMO_DATA := data/demo
DEMO_RUN := runs/demo
DEMO_OUT := $(DEMO_RUN)/rdt
# What two cores do in a quarter of an hour.
DEMO_VAE_STEPS := 500
DEMO_STEPS := 650

.PHONY: venv demo test test-slow policies bench-gpu lint clean

venv: $(STAMP)

# Made again when the package's requirements change. The order matters: torch decides between a CPU and a
# CUDA build, and what comes after it takes the one that is there.
$(STAMP): setup.cfg pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: par_jax needs Python 3.11 or newer, this is %d.%d: name another one with PYTHON=" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --editable . --no-deps
	sh tools/vulkan.sh $(BIN)/python
	touch $(STAMP)

demo: venv
	@echo "a trained policy is here already: $(BIN)/python -m experiments.rollout --task=pushcube shows it"
	$(BIN)/python -m experiments.collect --task=pushcube --episodes=200 --out=$(DEMO_DATA) --workers=2
	$(BIN)/python -m experiments.finetune --task=pushcube --preset=tiny --data=$(DEMO_DATA) --workdir=$(DEMO_RUN) \
	  --vae_steps=$(DEMO_VAE_STEPS) --steps=$(DEMO_STEPS)
	$(BIN)/python -m experiments.rollout --checkpoint=$(DEMO_RUN) --task=pushcube --protocol=rdt --episodes=25 \
	  --out=$(DEMO_OUT) --workers=2
	$(BIN)/python -m experiments.curves --workdir=$(DEMO_RUN) --rollout=$(DEMO_OUT)

test: venv lint
	$(BIN)/python -m pytest -q -n 2 --dist=loadfile -m "not slow" --durations=10

test-slow: venv
	$(BIN)/python -m pytest -q -m slow

# Preset small on each task; its training wants a GPU. It goes on where it was stopped.
policies: venv
	sh tools/policies.sh $(BIN)/python

# For a machine with a GPU, with jax and torch for it in the environment.
bench-gpu: venv
	$(BIN)/python -m experiments.benchmark --suite=gpu --json=gpu.json

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
