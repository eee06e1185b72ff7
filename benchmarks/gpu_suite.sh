#!/usr/bin/env bash
# All checks that need a GPU, in one command. It takes less than nine minutes and needs no network:
#
#   benchmarks/gpu_suite.sh OUT_DIR        (or: make gpu)
#
# It builds in place, runs the op tests on CUDA, compares CPU and CUDA on 10,000 random batches, captures every
# op of fixed output shape in a CUDA graph, trains, and runs compute-sanitizer, the probes and the benchmarks.
# It writes results.json, table.md and log.txt to OUT_DIR. PYTHON names the interpreter (default: python3). It
# needs torch with CUDA, nvcc on the PATH, pytest, pytest-benchmark and hypothesis, and torchvision as a rival.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu/suite.py "${1:-gpu-results}"
