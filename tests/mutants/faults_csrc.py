"""Faults of csrc: where they can be planted, and libraries that hold them all (fault.h).

Left out, because they are no behaviour that a test of this build could see:

- the text of errors: what stands in a call of `fail`;
- barriers and fences: ThreadSanitizer sees that one is missing (`make sanitize`);
- what the compiler computes: lines with constexpr, static_assert, enum, template <>, using,
  __launch_bounds__, schemas. These are sizes of blocks and buffers, and types;
- code for builds that do not run here: `__CUDA_ARCH__`, and what the emulation replaces;
- csrc/python and common/module.*, which load libraries (tests/test_packaging.py);
- places where the fault does not compile.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants.fault import Edit, Fault, bits, edited, numbered

OTHER = {
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="},
    **{"+": "-", "-": "+", "*": "+", "/": "*", "%": "*", "&": "|", "|": "&"},
}
REMOVED = "the statement is removed"
EXTREMES = {"std::min": "standard_min", "std::max": "standard_max"}
EXTREMES |= {"min_of": "min_of", "max_of": "max_of"}
AT_COMPILE_TIME = re.compile(
    r"\bconstexpr\b|\bstatic_assert\b|\benum\b|\btemplate <|\busing\b|__launch_bounds__|__shared__"
    r"|\bm\.(def|impl)\(|SSD_SIMD\(|\bnamespace\b|\boperator\b"
)
DECLARATION = re.compile(
    r"(const|auto|static|return|struct|extern|unsigned|goto|default|case|friend|typename|else|if|for|while"
    r"|switch|do|private|public|protected)\b|[\w:]+(<.*>)?(::\w+)?[&*]* [&*]?\w+( = |;|\(|\[|\{|,)"
)
# Conditions of the preprocessor whose first branch, or whose `#else`, is compiled for a GPU alone.
GPU_FIRST, GPU_ELSE = ("__CUDA_ARCH__", "ifndef SSD_OPS_EMULATION"), ("ifdef SSD_OPS_EMULATION",)


def blank(text: str) -> str:
    """The text with spaces for what is no code of this build: comments, strings, directives, messages."""

    def spaces(match: re.Match) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(
        r'//[^\n]*|/\*.*?\*/|"(\\.|[^"\\\n])*"|\'(\\.|[^\'\\])+\'', spaces, text, flags=re.S
    )
    text = _without_gpu_branches(text)
    text = re.sub(r"^ *#([^\n]*\\\n)*[^\n]*", spaces, text, flags=re.M)
    for found in [*re.finditer(r"\bfail\(|\b__sync\w+\(|\b__threadfence\(", text)]:
        end = matching(text, found.end() - 1)
        text = text[: found.start()] + " " * (end - found.start()) + text[end:]
    text = re.sub(r"(?<=\w )\w+\[\d+\](?=[;,]| =)", spaces, text)  # the size of an array
    # From a word of compile time to the end of the declaration, or to the body that it opens.
    return re.sub(rf"^[^\n]*({AT_COMPILE_TIME.pattern})[^;{{]*", spaces, text, flags=re.M)


def _without_gpu_branches(text: str) -> str:
    kept, open_branches = [], []
    for line in text.splitlines(keepends=True):
        if re.match(r" *#if", line):
            open_branches.append(
                [any(w in line for w in GPU_FIRST), any(w in line for w in GPU_ELSE)]
            )
        elif re.match(r" *#else", line):
            open_branches[-1].pop(0)
        elif re.match(r" *#endif", line):
            open_branches.pop()
        elif any(branch[0] for branch in open_branches):
            line = " " * (len(line) - 1) + "\n"
        kept.append(line)
    return "".join(kept)


def matching(code: str, at: int) -> int:
    """Behind the bracket that closes the one at a place."""
    depth = 0
    for place in range(at, len(code)):
        depth += (code[place] in "([{") - (code[place] in ")]}")
        if depth == 0:
            return place + 1
    return len(code)


STOPS = re.compile(r"\s(?:&&|\|\||\?|:|=|[-+*/|&]=)\s+|[,;]\s*|\breturn\s+")


def term(code: str, start: int, step: int) -> int:
    """Where the operand of `&&`, `||` or `?` ends that begins at `start`, forwards (1) or backwards (-1)."""
    depth, place = 0, start
    while 0 <= place < len(code):
        depth += step * ((code[place] in "([{") - (code[place] in ")]}"))
        if depth < 0:
            break
        if depth == 0 and place != start and (found := STOPS.match(code, place)):
            return place if step > 0 else found.end()
        place += step
    return place if step > 0 else place + 1


def planted(code: str) -> Iterator[tuple[str, tuple[Edit, ...]]]:
    """Every fault of a blanked text: the change in words, and its edits with {} for the fault's number."""
    for found in re.finditer(r"(?<=\S) (<|<=|>|>=|==|!=|[-+*/%&|])(?=\s)", code):
        op = found[1]
        yield (
            f"{op} becomes {OTHER[op]}",
            (Edit(found.end(), found.end(), f" ::fault::At<{{}}>() {op}"),),
        )
    number = r"(?<![\w.<])(0x[\da-f]+|\d+\.\d*(e-?\d+)?|\d+(e-?\d+)?)(u|ull|f)?(?![\w.>])"
    for found in re.finditer(number, code):
        edit = Edit(*found.span(), "::fault::constant<{}>(", ")")
        yield f"{found[0]} becomes {found[0]} + 1", (edit,)
    for found in re.finditer(r"(?<![\w:])(std::min|std::max|min_of|max_of)(<\w+>)?\(", code):
        given = f"{{}}, {found[2][1:-1]}" if found[2] else "{}"
        edit = Edit(
            found.start(), found.end() - 1, f"::fault::{EXTREMES[found[1]]}<{given}>", instead=True
        )
        yield f"{found[1]} becomes the other", (edit,)
    for found in re.finditer(r"\b(if|while) \(", code):
        end = matching(code, found.end() - 1) - 1
        edit = Edit(found.end(), end, "static_cast<bool>(", ") != ::fault::on<{}>()")
        yield f"the condition of {found[1]} is negated", (edit,)
    for found in re.finditer(r" \? ", code):
        start = term(code, found.start() - 1, -1)
        edit = Edit(start, found.start(), "(static_cast<bool>(", ") != ::fault::on<{}>())")
        yield "the condition of ? is negated", (edit,)
    yield from _terms(code)
    yield from _statements(code)


def _terms(code: str) -> Iterator[tuple[str, tuple[Edit, ...]]]:
    spans: dict[tuple[int, int], bool] = {}
    for found in re.finditer(r"(?<=\S) (&&|\|\|)\s", code):
        left = term(code, found.start() - 1, -1), found.start()
        begin = found.end() + len(code[found.end() :]) - len(code[found.end() :].lstrip())
        right = begin, term(code, begin, 1)
        for span in (left, right):
            spans[span] = spans.get(span, False) or found[1] == "&&"
    for (start, end), is_and in spans.items():
        yes = (
            ("(::fault::on<{}>() || (", "true") if is_and else ("(!::fault::on<{}>() && (", "false")
        )
        said = " ".join(code[start:end].split())
        yield f"{said} becomes {yes[1]}", (Edit(start, end, yes[0], "))"),)


def _statements(code: str) -> Iterator[tuple[str, tuple[Edit, ...]]]:
    last = "{"
    for found in re.finditer(r"^( *)(\S.*)$", code, flags=re.M):
        line = found[2].rstrip()
        whole = last[-1] in ";{}:)" and re.search(r"\w.*;$", line) and not DECLARATION.match(line)
        if whole and matching("(" + line[:-1] + ")", 0) == len(line) + 1 and found[1]:
            start = found.start(2)
            edit = Edit(start, start + len(line), "{{ if (!::fault::on<{}>()) ", " }}")
            yield REMOVED, (edit,)
        last = line


def find(root: Path) -> list[Fault]:
    """Every fault of csrc."""
    faults = []
    for path in sorted((root / "csrc").rglob("*.*")):
        file = str(path.relative_to(root))
        if path.suffix == ".map" or path.stem == "module" or path.parent.name == "python":
            continue
        text = path.read_text()
        lines = text.splitlines()
        for change, edits in sorted(planted(blank(text)), key=lambda p: p[1][0].start):
            line = text.count("\n", 0, edits[0].start) + 1
            code = lines[line - 1].strip()
            faults.append(Fault(file, line, code, change, edits, range(line, line + 1)))
    return numbered(faults)


class Build:
    """A copy of csrc with faults in it, and its two libraries: the CPU kernels and the emulated ones."""

    def __init__(self, root: Path, folder: Path) -> None:
        from torch.utils.cpp_extension import include_paths, library_paths

        self.root, self.folder = root, folder
        place = root / "tests" / "emulation" / "build.py"
        spec = importlib.util.spec_from_file_location("_build", place)
        self.builder = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.builder)
        self.copy = folder / "csrc"
        here = Path(__file__).resolve().parent
        version = (root / "ssd_ops" / "version.py").read_text().split('"')[1]
        self.flags = [
            *("-std=c++20", "-O1", "-w", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
            *("-fno-math-errno", "-fno-trapping-math", "-ftemplate-backtrace-limit=0"),
            *("-DTORCH_TARGET_VERSION=0x020b000000000000", '-DSSD_OPS_TARGET="2.11"'),
            *(
                f'-DSSD_OPS_VERSION="{version}"',
                "-include",
                str(here / "fault.h"),
                f"-I{self.copy}",
            ),
            *(f"-isystem{path}" for path in include_paths()),
        ]
        self.libraries = [f"-L{path}" for path in library_paths()]
        self.libraries += [f"-Wl,-rpath,{path}" for path in library_paths()]
        self.libraries += ["-ltorch", "-ltorch_cpu", "-lc10"]

    def make(self, faults: list[Fault], jobs: int, say) -> tuple[Path, Path, set[int]]:
        """The libraries, and the numbers (from 1) of the faults that are in them: those that compile."""
        left, bad = set(range(1, len(faults) + 1)), self.folder / "bad.json"
        if bad.exists():
            left -= {
                n for n, f in enumerate(faults, 1) if _key(f) in set(json.loads(bad.read_text()))
            }
        while True:
            self._write(faults, left)
            with ThreadPoolExecutor(jobs) as pool:
                errors = list(pool.map(self._compile, self._sources()))
            wrong = {n for text in errors if text for n in self._blamed(text, faults, left)}
            say(f"{sum(map(bool, errors))} files do not compile, for {len(wrong)} faults")
            if not any(errors):
                break
            if not wrong:
                raise RuntimeError(next(filter(None, errors)))
            left -= wrong
            dropped = [_key(f) for n, f in enumerate(faults, 1) if n not in left]
            bad.write_text(json.dumps(dropped))
        cpu, emulated = self.folder / "libssd_ops.so", self.folder / "emulated.so"
        objects = [self._object(s) for s in self._sources()]
        self._link(cpu, [o for o in objects if o.parent.name == "cpu"])
        self._link(emulated, [o for o in objects if o.parent.name == "emulated"])
        return cpu, emulated, left

    def _write(self, faults: list[Fault], left: set[int]) -> None:
        by_file: dict[str, list[Edit]] = {}
        for number in left:
            fault = faults[number - 1]
            for e in fault.edits:
                texts = (text.format(number) for text in (e.before, e.after))
                by_file.setdefault(fault.file, []).append(Edit(e.start, e.end, *texts, e.instead))
        for path in (self.root / "csrc").rglob("*.*"):
            made = self.copy / path.relative_to(self.root / "csrc")
            text = edited(path.read_text(), by_file.get(str(path.relative_to(self.root)), []))
            text = self.builder.with_shared_memory_of_a_block(text, made)
            if not made.exists() or made.read_text() != text:
                made.parent.mkdir(parents=True, exist_ok=True)
                made.write_text(text)

    def _sources(self) -> list[Path]:
        found = [p for p in sorted(self.copy.rglob("*.c*")) if p.suffix in (".cpp", ".cu")]
        found = [p for p in found if p.name != "module.cu" and p.parent.name != "python"]
        return [*found, self.root / "tests" / "emulation" / "fibers.cpp"]

    def _object(self, source: Path) -> Path:
        kind = "emulated" if source.suffix == ".cu" or source.name == "fibers.cpp" else "cpu"
        return self.folder / kind / f"{source.stem}.o"

    def _compile(self, source: Path) -> str:
        """What the compiler says against a source. What has not changed is not compiled again."""
        made = self._object(source)
        made.parent.mkdir(exist_ok=True)
        emulated = ["-DSSD_OPS_EMULATION", f"-I{self.root / 'tests' / 'emulation'}", "-x", "c++"]
        command = [os.environ.get("CXX", "g++"), *self.flags]
        command += emulated if made.parent.name == "emulated" else []
        listed = subprocess.run([*command, "-MM", str(source)], capture_output=True, text=True)
        read = listed.stdout.replace("\\\n", " ").split()[1:]
        contents = sorted(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in read)
        options = [word for word in command if "/" not in word]  # wherever the copy is
        state = hashlib.sha256(" ".join(options + contents).encode())
        key = made.with_suffix(".key")
        if made.exists() and key.exists() and key.read_text() == state.hexdigest():
            return ""
        done = subprocess.run(
            [*command, "-c", str(source), "-o", str(made)], capture_output=True, text=True
        )
        if done.returncode == 0:
            key.write_text(state.hexdigest())
        return done.stderr if done.returncode else ""

    def _blamed(self, text: str, faults: list[Fault], left: set[int]) -> set[int]:
        """The faults that an error is about: the number that it names, or all of its line."""
        blamed: set[int] = set()
        for block in re.split(r"\n(?=\S+: In |In file included)", text):
            for error in re.findall(r"^(\S+?):(\d+):\d+: error: (.*)$", block, flags=re.M):
                place, line = Path(error[0]), int(error[1])
                text = error[2] if place.is_relative_to(self.copy) else block
                named = {
                    int(n) for n in re.findall(r"(?:\bint N = |(?:At|Left)<)(\d+)", text)
                } & left
                if not named and place.is_relative_to(self.copy):
                    file = str(Path("csrc") / place.relative_to(self.copy))
                    near = {n for n in left if faults[n - 1].file == file}
                    named = {n for n in near if line in faults[n - 1].lines}
                    # A declaration that was taken for a statement is missed further down.
                    named = named or {n for n in near if faults[n - 1].change.startswith(REMOVED)}
                blamed |= named
        return blamed

    def _link(self, library: Path, objects: list[Path]) -> None:
        aside = library.with_suffix(".aside")
        soname = f"-Wl,-soname,{library.name}"
        command = [
            os.environ.get("CXX", "g++"),
            "-shared",
            soname,
            *map(str, objects),
            *self.libraries,
        ]
        subprocess.run([*command, "-o", str(aside)], check=True)
        aside.rename(library)


class Flags:
    """The switches of libraries with faults, and what they say of the faults that are reached."""

    def __init__(self, libraries: list[Path], built: set[int]) -> None:
        self.libraries, self.built = [ctypes.CDLL(str(path)) for path in libraries], built
        several = ctypes.c_ubyte * (1 << 16)
        self.flags = [several.in_dll(library, "fault_reached") for library in self.libraries]

    def start(self) -> None:
        for flags in self.flags:
            ctypes.memset(flags, 0, len(flags))

    def stop(self) -> int:
        return bits(n for n in self.built if any(flags[n] for flags in self.flags))

    def switch_on(self, number: int) -> None:
        for library in self.libraries:
            ctypes.c_int.in_dll(library, "fault_number").value = number


def _key(fault: Fault) -> str:
    return f"{fault.file} {fault.code} {fault.change}"
