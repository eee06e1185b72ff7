# make demo [EPOCHS=20]  from a fresh clone to a trained detector and pictures of what it finds
# make test              the whole test suite
# make bench             our ops beside their rivals, as a table of medians
# make sanitize          the op tests, CUDA kernels emulated, under AddressSanitizer, UBSan and ThreadSanitizer
# make gpu [OUT=folder]  everything that needs a GPU: tests, checks and times, with the Python that has torch
# make wheel             a wheel for this Python, in dist/
#
# Each sets up what it needs in .venv and builds what has changed. Another torch, another Python:
#   make test TORCH=torch==2.11.0 VENV=.venv-2.11 PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PINS ?= numpy==2.4.6 ninja==1.13.2 pybind11==3.1.0 setuptools==84.2.1 wheel \
	pillow==13.0.0 matplotlib==3.11.2 tqdm==4.70.1 pooch==1.9.0 tyro==1.0.17 safetensors==0.8.0 faster-coco-eval==1.8.0 \
	onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 pycocotools==2.0.11 \
	pytest==9.2.0 pytest-benchmark==5.3.1 hypothesis ruff==0.17.6 mypy==2.4.1
EPOCHS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: demo test bench sanitize gpu wheel clean

demo: $(VENV)/built
	$(BIN)/python -m ssd_ops demo --out demo $(if $(EPOCHS),--epochs $(EPOCHS))

test: $(VENV)/built
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -rs tests
	$(BIN)/python -m pytest -q -rs benchmarks --benchmark-disable

bench: $(VENV)/built
	$(BIN)/python -m pytest -q -rs benchmarks --benchmark-columns=median,iqr,rounds \
		--benchmark-group-by=group --benchmark-json=benchmarks/latest.json
	$(BIN)/python benchmarks/table.py benchmarks/latest.json

sanitize: $(VENV)/built
	$(BIN)/python tests/sanitize.py

# Neither the network nor .venv: a machine with a GPU has a torch of its own.
gpu:
	PYTHON=$(PYTHON) benchmarks/gpu_suite.sh $(or $(OUT),gpu-results)

wheel: $(VENV)/built
	$(PIP) wheel --no-build-isolation --no-deps -w dist .

clean:
	rm -rf $(VENV) build dist *.egg-info ssd_ops/*.so

$(VENV)/torch: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'make: Python 3.11 or newer is needed; name yours with PYTHON=...' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH) $(PINS)
	touch $@

$(VENV)/built: $(VENV)/torch $(SOURCES)
	$(PIP) install --no-build-isolation --no-deps -e .
	touch $@
