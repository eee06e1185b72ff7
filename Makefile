# `make` alone prints the targets. Each sets up what it needs in .venv and builds what has changed. Another
# torch, another Python:
#   make test TORCH=torch==2.11.0 VENV=.venv-2.11 PYTHON=python3.12
# All other pins stand in pyproject.toml, [dependency-groups].

SHELL := bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
PEERS ?= .venv-peers
TORCH ?= torch==2.13.0
# torchvision fits one torch alone.
PEERS_TORCH := torch==2.11.0 torchvision==0.26.0
# What `make rivals` writes, and the pages that are drawn from it.
RESULTS := benchmarks/results/cpu.json
PIP_PIN := pip==26.3
EPOCHS ?=
ARGS ?=
# Worker processes of the tests, each with one thread.
WORKERS ?= auto

BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check -q
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
IN_PEERS := PYTHONPATH=$(CURDIR) $(PEERS)/bin/python
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# Of what the compiler says, a line a file; if it fails, its last lines.
define show_progress
2>&1 | tee build/$(1).log | sed -un 's,^\(\[[0-9/]*\]\).* -c [^ ]*/\(csrc/[^ ]*\).*,  \1 \2,p' \
	|| { tail -n 40 build/$(1).log >&2; exit 1; }
endef

.PHONY: help demo test test-all long lint peers bench rivals performance docs sanitize mutants gpu wheel clean

help: ## print these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/built ## from a fresh clone to a trained detector and images of what it finds [EPOCHS=20]
	@$(BIN)/python -m ssd_ops demo --out demo $(if $(EPOCHS),--epochs $(EPOCHS))

test: lint ## lint, and the tests but the slow ones: what a developer runs
	$(PYTEST) -m "not slow" tests
	@echo 'Left out: the slow tests named above (make test-all), and what needs torchvision (make peers).'

test-all: lint ## every test, with more random cases, and that the benchmarks' rivals agree
	HYPOTHESIS_PROFILE=ci $(PYTEST) tests
	$(BIN)/python -m pytest -q -rs benchmarks --benchmark-disable

# Hours. It writes benchmarks/results/reliability.json, and from it the table of docs/reliability.md.
long: $(VENV)/built ## the checks of docs/reliability.md with all their examples, calls and repeats
	HYPOTHESIS_PROFILE=long $(PYTEST) -m long -k "not emulated" tests
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --draw set --calls 10000 --note set
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --draw threshold --calls 1000 --note threshold
	OMP_NUM_THREADS=1 $(BIN)/python tests/sanitize.py fuzz --cpu --calls 100000 --note sanitized
	$(BIN)/python tests/figures.py

lint: $(VENV)/built ## ruff, clang-format and mypy, as CI runs them; they change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc ssd_ops/include tests/emulation tests/mutants -regex '.*\.\(h\|cpp\|cu\|cuh\)' | xargs $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy

# The library of .venv, as it is: built once, it serves every torch from 2.11 on.
peers: $(VENV)/built $(PEERS)/tools ## what needs torchvision: its tests, and that the benchmarks' rivals agree
	@$(IN_PEERS) -c 'from torchvision.models.detection import ssd' # so that nothing is skipped for want of them
	@$(IN_PEERS) -c 'import cv2, ensemble_boxes, lsnms, onnxruntime, powerboxes, sahi'
	OMP_NUM_THREADS=1 $(IN_PEERS) -m pytest -q -n $(WORKERS) tests/integrations tests/test_docs.py \
		tests/test_house.py tests/tinyssd/test_coco.py
	$(IN_PEERS) -m pytest -q -rs benchmarks --benchmark-disable

bench: $(VENV)/built $(PEERS)/tools ## our ops beside their rivals, as a table of medians
	$(IN_PEERS) -m pytest -q -rs benchmarks --benchmark-columns=median,iqr,rounds \
		--benchmark-group-by=group --benchmark-json=benchmarks/latest.json
	$(IN_PEERS) benchmarks/table.py benchmarks/latest.json

# Ten minutes on two idle processors; ARGS are those of measure.py. Then `make performance`, to show it.
rivals: $(VENV)/built $(PEERS)/tools ## our ops beside every rival there is: writes benchmarks/results/cpu.json [OUT=file]
	$(IN_PEERS) benchmarks/peers/measure.py --out $(or $(OUT),$(RESULTS)) $(ARGS)

performance: $(VENV)/tools ## the tables and plots of docs/performance.md and the README, from cpu.json
	$(BIN)/python benchmarks/peers/page.py

docs: $(VENV)/built ## the site of the documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f .mkdocs.yml

sanitize: $(VENV)/built ## the op tests, CUDA kernels emulated, under AddressSanitizer, UBSan and ThreadSanitizer
	$(BIN)/python tests/sanitize.py

# Half an hour on an idle machine; ARGS are those of run.py, such as ARGS="csrc --only nms --seed 2".
mutants: $(VENV)/built ## plants faults in the code, and lists those that no test notices [ARGS=...]
	$(BIN)/python tests/mutants/run.py $(ARGS)

# Neither the network nor .venv: a machine with a GPU has a torch of its own.
gpu: ## all that needs a GPU: tests, checks and times, with the Python that has torch [OUT=folder]
	PYTHON=$(PYTHON) benchmarks/gpu_suite.sh $(or $(OUT),gpu-results)

wheel: $(VENV)/tools ## an sdist and, made from it, a wheel for this Python, in dist/
	@rm -rf dist && mkdir -p build
	@echo "Building the sdist, and from it the wheel (with nvcc for every GPU, which takes long) ..."
	@$(BIN)/python -m build --no-isolation $(call show_progress,wheel)
	@ls dist/*

clean: ## delete all that these targets make
	rm -rf $(VENV) $(PEERS) build dist site demo *.egg-info ssd_ops/*.so ssd_ops/lib/*.so benchmarks/latest.json

# $(call make_venv,folder,torch,group,group without what it asks for): an environment with them.
define make_venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'make: Python 3.11 or newer is needed; name yours with PYTHON=...' >&2; exit 1; }
@echo "Making $(1) ..."
@$(PYTHON) -m venv $(1)
@$(1)/bin/python $(PIP) install $(PIP_PIN)
@echo "Installing $(2) into $(1) (1 of 2: a download of 200 MB for a CPU, of several GB for a GPU) ..."
@$(1)/bin/python $(PIP) install $(2)
@echo "Installing the tools that the targets use into $(1) (2 of 2: a download of 150 MB) ..."
@$(1)/bin/python $(PIP) install --group $(3)
$(if $(4),@$(1)/bin/python $(PIP) install --no-deps --group $(4))
@touch $(1)/tools
endef

$(VENV)/tools: Makefile pyproject.toml
	$(call make_venv,$(VENV),$(TORCH),dev)

$(PEERS)/tools: Makefile pyproject.toml
	$(call make_venv,$(PEERS),$(PEERS_TORCH),peers,peers-alone)

$(VENV)/built: $(VENV)/tools $(SOURCES)
	@mkdir -p build
	@echo "Building ssd_ops (two to five minutes the first time; a line for each file) ..."
	@$(BIN)/python setup.py build_ext $(call show_progress,built)
	@$(BIN)/python $(PIP) install --no-build-isolation --no-deps -e .
	@touch $@
