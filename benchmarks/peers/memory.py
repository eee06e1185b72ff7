"""Peak of the memory that a call takes, in bytes, its results included.

The process runs under a library that counts what goes through malloc, exactly; `measure.py` starts it.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import scenes
import torch
from empty import compile_library
from torch.utils._pytree import tree_leaves

# Counts the usable sizes of blocks. Its thread-safety is that of relaxed atomics: a peak is exact up to what
# another thread takes in the same instant.
COUNTER = r"""
#include <atomic>
#include <cstddef>
#include <dlfcn.h>
#include <malloc.h>
#include <cerrno>
static std::atomic<long> live{0}, peak{0};
static void add(void* block) {
  if (!block) return;
  const long now = live += static_cast<long>(malloc_usable_size(block));
  long seen = peak;
  while (now > seen && !peak.compare_exchange_weak(seen, now)) {}
}
static void drop(void* block) {
  if (block) live -= static_cast<long>(malloc_usable_size(block));
}
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
void* malloc(size_t size) {
  void* block = __libc_malloc(size);
  add(block);
  return block;
}
void* calloc(size_t count, size_t size) {
  void* block = __libc_calloc(count, size);
  add(block);
  return block;
}
void* realloc(void* old, size_t size) {
  drop(old);
  void* block = __libc_realloc(old, size);
  add(block ? block : size ? old : nullptr);
  return block;
}
void* memalign(size_t alignment, size_t size) {
  void* block = __libc_memalign(alignment, size);
  add(block);
  return block;
}
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** out, size_t alignment, size_t size) {
  *out = memalign(alignment, size);
  return *out ? 0 : ENOMEM;
}
void free(void* block) {
  drop(block);
  __libc_free(block);
}
long ssd_ops_restart() { return peak = live.load(); }
long ssd_ops_peak() { return peak; }
}
"""


def peak_of(counter: ctypes.CDLL, call) -> tuple[int, int]:
    """The peak above what was held before, and the bytes of the results."""
    call()  # threads and caches
    before = counter.ssd_ops_restart()
    results = [leaf for leaf in tree_leaves(call()) if isinstance(leaf, torch.Tensor)]
    peak = counter.ssd_ops_peak() - before
    return peak, sum(leaf.numel() * leaf.element_size() for leaf in results)


def report() -> list[dict]:
    counter = ctypes.CDLL(None)  # the functions of the preloaded library
    for name in ("restart", "peak"):
        getattr(counter, f"ssd_ops_{name}").restype = ctypes.c_long
    cells = {(cell.op, cell.case, cell.count): cell for cell in scenes.all_cells()}
    rows = []
    for op, case, *counts in scenes.MEMORY:
        row: dict = {"op": op, "case": case, "cells": []}
        for count in counts:
            shape = cells[op, case, count].shape()
            peak, results = peak_of(counter, lambda shape=shape: shape.ours(*shape.args))
            row["cells"].append({"n": count, "peak": peak, "results": results})
        rows.append(row)
    return rows


def measure(threads: int) -> list[dict]:
    """`report` of a new process that counts."""
    with tempfile.TemporaryDirectory() as folder:
        library = compile_library(COUNTER, folder, "counter", "-pthread")
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), str(threads)],
            env={**os.environ, "LD_PRELOAD": library},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    with torch.no_grad():
        print(json.dumps(report()))
