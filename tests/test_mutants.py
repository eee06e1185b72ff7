"""The planting of faults (tests/mutants): which ones are made, and that one is caught where a test looks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import fault, faults_csrc, faults_python, server

HERE = Path(__file__).resolve().parent

PYTHON = '''"""Text."""

__all__ = ["least"]


def least(values: list[int], limit: int = 3) -> int:
    """The least value below a limit."""
    if not values:
        raise ValueError(f"values must be {limit + 1}")
    best = min(
        values,
        key=abs,
    )
    print("a - b")
    return best if best < limit else -1
'''

CSRC = """// a < b
#ifdef __CUDA_ARCH__
int gpu(int a) { return a + 1; }
#endif
constexpr int kSize = 2 * 3;
template <typename T>
int least(const T* values, int count) {
  if (count == 0) fail("count must be ", 1 + 2);
  int best = values[0];
  for (int i = 1; i < count && best > 7; ++i) best = min_of(best, values[i]);
  best -= 4;
  return best > 0 ? best : std::max(count, 5);
}
"""


def changes(found):
    return {(fault.line, fault.change) for fault in found}


def test_faults_of_python():
    found = list(faults_python.faults_of(PYTHON, "f.py"))
    assert changes(found) == {
        (6, "3 becomes 4"),
        (8, "not values is negated"),
        (8, "not values becomes values"),
        (10, "key=abs is left out"),
        (15, "return best if best < limit else -1 becomes return None"),
        (15, "best < limit is negated"),
        (15, "< becomes <="),
        (15, "-1 becomes 1"),
        (15, "1 becomes 2"),
    }
    for one in found:
        text = fault.edited(PYTHON, list(one.edits))
        assert text.count("\n") == PYTHON.count("\n") and text != PYTHON
        compile(text, "f.py", "exec")


def test_faults_of_csrc():
    blank = faults_csrc.blank(CSRC)
    assert len(blank) == len(CSRC)
    found = {
        (CSRC.count("\n", 0, edits[0].start) + 1, change)
        for change, edits in faults_csrc.planted(blank)
    }
    assert found == {
        *((8, "== becomes !="), (8, "0 becomes 0 + 1"), (8, "the condition of if is negated")),
        *((9, "0 becomes 0 + 1"), (10, "1 becomes 1 + 1"), (10, "7 becomes 7 + 1")),
        *((10, "< becomes <="), (10, "> becomes >="), (10, "min_of becomes the other")),
        *((10, "i < count becomes true"), (10, "best > 7 becomes true")),
        *((11, "4 becomes 4 + 1"), (11, "the statement is removed")),
        *((12, "> becomes >="), (12, "0 becomes 0 + 1"), (12, "the condition of ? is negated")),
        *((12, "std::max becomes the other"), (12, "5 becomes 5 + 1")),
    }


def test_a_build_holds_every_fault_of_csrc(tmp_path):
    """Each fault of a function changes what it returns, and none does while it is switched off."""
    code = CSRC.replace("std::max(count, 5)", "std::max<int>(count, 5)")
    planted = list(faults_csrc.planted(faults_csrc.blank(code)))
    edits = [
        fault.Edit(e.start, e.end, e.before.format(n), e.after.format(n), e.instead)
        for n, (_, made) in enumerate(planted, 1)
        for e in made
    ]
    main = """
#include <cstdio>
int main() {
  const int tables[][4] = {{9, 8, 3, 1}, {4, 9, 9, 9}, {8, 7, 2, 9}, {3, 0, 0, 0}, {5, 2, 2, 2}};
  for (fault_number = 0; fault_number <= COUNT; ++fault_number) {
    for (const auto& table : tables)
      for (int count : {1, 2, 3, 4}) std::printf("%d ", least(table, count));
    std::puts("");
  }
}
"""
    head = "#include <algorithm>\n#define fail(...) return -100\n"
    head += "template <typename T> T min_of(T a, T b) { return a < b ? a : b; }\n"

    def lines(text: str, *options: str) -> list[str]:
        source, program = tmp_path / "f.cpp", tmp_path / "f"
        source.write_text(text)
        command = ["g++", "-std=c++20", "-w", "-O1", *options, f"-DCOUNT={len(planted)}"]
        subprocess.run([*command, str(source), "-o", str(program)], check=True)
        return subprocess.run([program], capture_output=True, text=True).stdout.splitlines()

    switch = ["-include", str(HERE / "mutants" / "fault.h")]
    got = lines(head + fault.edited(code, edits) + main, *switch)
    plain = lines(head + "int fault_number;" + code + main)
    assert got[0] == plain[0] and len(got) == len(planted) + 1
    same = [planted[n - 1][0] for n in range(1, len(got)) if got[n] == plain[0]]
    # `count == 0` and `best > 0` never decide here; nor does one loop more over numbers behind the end.
    assert set(same) <= {"0 becomes 0 + 1", "< becomes <=", "== becomes !=", "> becomes >="}, same


def test_a_fault_is_caught_where_a_test_looks(tmp_path, monkeypatch):
    """In a process of its own: one test, a fault that it sees, one that it cannot see, and one that hangs."""
    (tmp_path / "code.py").write_text(PYTHON.replace("__all__", "names"))
    (tmp_path / "test_code.py").write_text(
        "import code_under_test as c\ndef test_it():\n    assert c.least([2, 1]) == 1\n"
    )
    (tmp_path / "code.py").rename(tmp_path / "code_under_test.py")
    drive = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(tmp_path)!r}]
import pytest
from mutants import fault, faults_python, server
path = {str(tmp_path / "code_under_test.py")!r}
text = open(path).read()
def drive(s):
    (name,) = s.items
    functions = faults_python.Functions(path)
    for one in faults_python.faults_of(text, path):
        changed = fault.edited(text, list(one.edits))
        plant = lambda: functions.replace(path, changed)
        print("FAULT", one.line, one.change, ":", s.noticed_by([name], plant, 20.0), file=sys.stderr)
    def hang():
        while True: pass
    print("FAULT hang :", s.noticed_by([name], hang, 0.3), file=sys.stderr)
    print("FAULT none :", s.noticed_by([name], int, 20.0), file=sys.stderr)
pytest.main(["-q", "-s", "-p", "no:cacheprovider", {str(tmp_path)!r}], plugins=[server.Server(drive)])
"""
    done = subprocess.run(
        [sys.executable, "-c", drive], capture_output=True, text=True, cwd=tmp_path
    )
    said = dict(
        line.removeprefix("FAULT ").split(" : ")
        for line in done.stderr.splitlines()
        if "FAULT" in line
    )
    assert said["none"] == "None" and said["hang"] == "the process", done.stderr
    assert said["8 not values is negated"] == "test_code.py::test_it"
    assert said["15 best < limit is negated"] == "test_code.py::test_it"
    # The test asks for nothing at the limit, nor for no value below it.
    assert said["15 < becomes <="] == said["15 -1 becomes 1"] == "None"


def test_equal_faults_are_listed_by_code():
    equal = fault.read_equal(
        "# a comment\n\na.h :: x < y :: < becomes <= :: why\na.h :: z :: * :: why\n"
    )
    one = fault.Fault("a.h", 7, "x < y", "< becomes <=", (), range(7, 8))
    assert fault.is_equal(one, equal)
    assert not fault.is_equal(fault.Fault("a.h", 7, "x < y", "y becomes x", (), range(7, 8)), equal)
    assert fault.is_equal(fault.Fault("a.h", 9, "z", "anything", (), range(9, 10)), equal)


def test_the_list_names_code_that_is_there():
    """A line that has gone, or has changed, has to be argued anew."""
    for file, code, _ in fault.read_equal(fault.EQUAL.read_text()):
        lines = [line.strip() for line in (HERE.parent / file).read_text().splitlines()]
        assert code in lines, f"{file} has no line {code!r}"


def test_functions_get_as_much_time():
    seconds = {"a[1]": 3.0, "a[2]": 1.0, "b[1]": 2.0, "b[2]": 9.0, "c[1]": 0.1, "c[2]": 0.1}
    runs = {name: server.Run(took, 0) for name, took in seconds.items()}
    assert server.spread(runs) == ["c[1]", "c[2]", "a[2]", "b[1]", "a[1]", "b[2]"]
    names = ["f::a", "g::a", "f::b", "g::b"]
    assert server.by_file(names) == ["f::a", "f::b", "g::a", "g::b"]


def test_a_result_of_a_child_comes_back():
    assert server.in_child(lambda: [1, "a"], limit=20.0) == [1, "a"]


def test_the_page_says_the_figures():
    result = json.loads((HERE.parent / "benchmarks" / "results" / "mutants.json").read_text())
    page = (HERE.parent / "docs" / "reliability.md").read_text()
    for kind, folder in (("python", "ssd_ops"), ("csrc", "csrc")):
        caught, planted = result[kind]["caught"], result[kind]["planted"]
        assert f"{caught} of {planted} in `{folder}`" in page, "docs/reliability.md: other figures"
        assert planted - caught == len(result[kind]["not noticed"])
        assert [sum(column) for column in zip(*result[kind]["files"].values(), strict=True)] == [
            caught,
            planted,
        ]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_what_a_test_reaches(number):
    assert server.Run(1.0, 0b1010).reaches(number) == (number in (1, 3))
