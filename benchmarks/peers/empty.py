"""Ops that do nothing, with the schemas of ours and registered as ours: what a call costs before any work.

Each gives its first tensor back, once for every result. They are compiled from the schemas that the loaded
library has, so there is one for every op.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import cases
import torch

from ssd_ops import _ext

NAMESPACE = "ssd_ops_empty"
# The types of a schema, in C++.
TYPES = {
    "Tensor": "const Tensor&",
    "Optional[Tensor]": "std::optional<Tensor>",
    "List[Tensor]": "std::vector<Tensor>",
    "float": "double",
    "Optional[float]": "std::optional<double>",
    "List[float]": "std::vector<double>",
    "int": "int64_t",
    "Optional[int]": "std::optional<int64_t>",
    "List[int]": "std::vector<int64_t>",
    "bool": "bool",
}
HEAD = """
#include <optional>
#include <tuple>
#include <vector>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
using torch::stable::Tensor;
"""


def _schemas() -> list:
    return [
        getattr(torch.ops.ssd_ops, name.split("::")[1]).default._schema for name in _ext.op_names()
    ]


def source() -> str:
    """The C++ of all of them."""
    functions, schemas, kernels = [], [], []
    for schema in _schemas():
        name = schema.name.split("::")[1]
        types = [str(argument.type) for argument in schema.arguments]
        parameters = ", ".join([f"{TYPES[types[0]]} first", *(TYPES[t] for t in types[1:])])
        first = "first[0]" if types[0] == "List[Tensor]" else "first"
        count = len(schema.returns)
        results = f"std::tuple<{', '.join(['Tensor'] * count)}>" if count > 1 else "Tensor"
        value = f"{{{', '.join([first] * count)}}}" if count > 1 else first
        functions.append(f"static {results} {name}({parameters}) {{ return {value}; }}")
        schemas.append(f'  m.def("{str(schema).split("::", 1)[1]}");')
        kernels.append(f'  m.impl("{name}", TORCH_BOX(&{name}));')
    return "\n".join(
        [
            HEAD,
            *functions,
            f"STABLE_TORCH_LIBRARY_FRAGMENT({NAMESPACE}, m) {{",
            *schemas,
            "}",
            f"STABLE_TORCH_LIBRARY_IMPL({NAMESPACE}, CPU, m) {{",
            *kernels,
            "}\n",
        ]
    )


def compile_library(text: str, folder: str, name: str, *flags: str) -> str:
    """A shared library of C++ text, made with the compiler that builds ours; its path."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        raise RuntimeError(f"{compiler} is not installed")
    code, library = Path(folder, f"{name}.cpp"), Path(folder, f"{name}.so")
    code.write_text(text)
    command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", *flags, str(code)]
    subprocess.run([*command, "-o", str(library)], check=True)
    return str(library)


@functools.cache
def load() -> torch.library.Library:
    """Compiles and loads the library; gives back what has to be kept."""
    from torch.utils.cpp_extension import include_paths, library_paths

    major, minor = _ext.build_info()["torch_target"].split(".")
    flags = [
        f"-DTORCH_TARGET_VERSION=0x{int(major):02x}{int(minor):02x}000000000000",
        *(f"-isystem{path}" for path in include_paths()),
        *(f"-L{path}" for path in library_paths()),
        *("-Wl,--no-as-needed", "-ltorch_cpu"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        torch.ops.load_library(compile_library(source(), folder, NAMESPACE, *flags))
    library = torch.library.Library(NAMESPACE, "IMPL")
    for name in _ext.op_names():
        library.impl(name.split("::")[1], torch.library.fallthrough_kernel, "Autograd")
    return library


def empty_call(function: Callable, args: tuple) -> Callable:
    """The call of the empty op with the arguments that a public function gives to its op."""
    load()
    op, given = cases.raw_call(function, args)
    name = op._schema.name.split("::")[1]
    return functools.partial(getattr(getattr(torch.ops, NAMESPACE), name), *given)
