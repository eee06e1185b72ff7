"""MXNet 1.9.1 as a rival. It runs in another process, because it needs an older NumPy than torch does.

Make a Python environment with `pip install mxnet==1.9.1 numpy==1.23.5`, then:

SSD_OPS_MXNET=/path/to/its/python pytest benchmarks -k mxnet

That Python runs this file as a server. Each line of JSON on its standard input is a command: load arrays from
files, run an op and wait for its results, or write the results to files. The benchmark times one "run"
command and its answer.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

VARIABLE = "SSD_OPS_MXNET"


class Rival:
    """An op of MXNet as a function of tensors. It returns a function that fetches the results."""

    def __init__(self, op: str, python: str) -> None:
        self.op, self.python = op, python
        self.args: tuple = ()
        self.folder: tempfile.TemporaryDirectory | None = None

    def __call__(self, *args):
        if len(args) != len(self.args) or any(map(operator.is_not, args, self.args)):
            self._load(args)
        self._ask({"do": "run", "op": self.op})
        return self._fetch

    def _load(self, args) -> None:
        import torch

        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory()
            self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
            threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
            self.process = subprocess.Popen(
                [self.python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                stderr=self.errors, env={**os.environ, **threads},
            )  # fmt: skip
        files = [self._place(f"in{number}.npy") for number in range(len(args))]
        for file, arg in zip(files, args, strict=True):
            np.save(file, arg.numpy())
        self._ask({"do": "load", "files": files})
        self.args = args

    def _fetch(self):
        import torch

        count = self._ask({"do": "fetch", "folder": self._place("")})
        results = [torch.from_numpy(np.load(self._place(f"out{n}.npy"))) for n in range(count)]
        return results if count > 1 else results[0]

    def _place(self, name: str) -> str:
        return str(Path(self.folder.name) / name)

    def _ask(self, what: dict) -> int:
        with contextlib.suppress(
            BrokenPipeError
        ):  # if the process has ended, the error below says so
            print(json.dumps(what), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            raise RuntimeError(f"{VARIABLE}: the process ended: {self.errors.read()[-500:]}")
        return json.loads(answer)


def rival(op: str) -> Rival | str:
    """The op, or the reason why it cannot run."""
    python = os.environ.get(VARIABLE)
    return Rival(op, python) if python else f"{VARIABLE} does not name a Python with MXNet"


def fetched(same):
    """Makes a comparison that first fetches the results of a `Rival`."""

    def compare(*results) -> bool:
        return same(*(result() if callable(result) else result for result in results))

    return compare


def serve() -> None:
    import mxnet as mx

    def target(anchors, labels):
        # MXNet reads the class predictions only to mine negatives.
        preds = mx.nd.zeros((labels.shape[0], 2, anchors.shape[1]))
        return mx.nd.contrib.MultiBoxTarget(anchors, labels, preds)

    def detection(cls_probs, offset_preds, anchors):
        return [mx.nd.contrib.MultiBoxDetection(cls_probs, offset_preds, anchors, threshold=0.01)]

    ops = {"target": target, "detection": detection}
    inputs, results = [], []
    for line in sys.stdin:
        what = json.loads(line)
        if what["do"] == "load":
            inputs = [mx.nd.array(np.load(file)) for file in what["files"]]
        elif what["do"] == "run":
            results = ops[what["op"]](*inputs)
            for result in results:
                result.wait_to_read()
        else:
            for number, result in enumerate(results):
                np.save(os.path.join(what["folder"], f"out{number}.npy"), result.asnumpy())
        print(len(results), flush=True)


if __name__ == "__main__":
    serve()
