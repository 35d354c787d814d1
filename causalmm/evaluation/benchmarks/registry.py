"""The benchmarks by name: a new one is a module like pope.py and a line here.

The command line, its help, the scores, the docs and the tests ask this table.
Tests: tests/evaluation/test_scoring.py.
"""

from importlib import import_module

from causalmm.evaluation.benchmarks.benchmark import Benchmark

_MODULES = (
    "pope",
    "mme",
    "vlind",
    "chair",
    "amber",
    "hallusion",
)
BENCHMARKS: dict[str, Benchmark] = {
    name: import_module(f"{__package__}.{name}").BENCHMARK for name in _MODULES
}
