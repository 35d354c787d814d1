"""Readings of benchmarks/memory.py where what is held is known: for test_benchmarks.py, which runs
them in a fresh process."""

import memory
import pytest
import torch

CPU = torch.device("cpu")


def read_known_allocations(size):
    def one_after_another():
        for _ in range(3):
            torch.ones(size * 2**20, dtype=torch.uint8)

    def held_together():
        return [torch.ones(size * 2**18, dtype=torch.uint8) for _ in range(8)]

    kept = torch.ones(50 * 2**20, dtype=torch.uint8)  # before the call: no part of it
    for factor, run in ((1, one_after_another), (2, held_together), (1, one_after_another)):
        memory.peak_memory(run, CPU)
        peak = memory.peak_memory(run, CPU)
        assert peak.extra / 2**20 == pytest.approx(factor * size, abs=1.0)
        assert peak.total >= peak.extra + kept.nbytes
