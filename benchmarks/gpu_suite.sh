#!/usr/bin/env bash
# Everything that needs a GPU, in one command of less than nine minutes and without a network:
#
#   benchmarks/gpu_suite.sh OUT_DIR        (or: make gpu)
#
# Builds in place, runs the op tests on CUDA, compares CPU and CUDA on 10,000 random batches, captures every
# padded op in a CUDA graph, trains, runs compute-sanitizer, the probes and the benchmarks. OUT_DIR gets results.json,
# table.md and log.txt. PYTHON names the interpreter (default: python3); it needs torch with CUDA, nvcc on
# the PATH, pytest, pytest-benchmark and hypothesis, and, for the rivals, torchvision.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu/suite.py "${1:-gpu-results}"
