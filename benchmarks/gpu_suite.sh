#!/usr/bin/env bash
# All checks that need a GPU, in one command. It takes less than nine minutes and needs no network:
#
#   benchmarks/gpu_suite.sh OUT_DIR        (or: make gpu)
#
# In order: builds in place; calls every op once, then under compute-sanitizer (memcheck, racecheck); the op tests
# on CUDA; large shapes; times beside the rivals', warm and cold, eager and in a CUDA graph; agreement of CPU and
# CUDA on random batches until a deadline; training; torch.compile of the rivals; probes. A step that fails or
# hangs is ended with all its processes, and the next begins.
#
# OUT_DIR gets results.json, table.md and log.txt, which are written again after every step. PYTHON names the
# interpreter (default: python3); it needs torch with CUDA, nvcc on the PATH, pytest, pytest-benchmark and
# hypothesis. torchvision (a rival), pytest-xdist and pytest-timeout are used where they are installed.
#
# A rehearsal without a GPU, on tiny shapes: python benchmarks/gpu/suite.py OUT_DIR --device cpu
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/gpu/suite.py "${1:-gpu-results}"
