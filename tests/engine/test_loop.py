"""What a training asks of the process that it runs in."""

import platform

import pytest
import torch
from torch import nn

from diffusers_ext.engine.loop import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_freed_memory_is_used_again():
    """Steps of a small network need no new pages; by default some 2,000 each."""
    from resource import RUSAGE_SELF, getrusage

    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(8)))
    pictures = torch.ones(4, 16, 64, 64)

    def new_pages(steps: int = 4) -> int:
        before = getrusage(RUSAGE_SELF).ru_minflt
        for _ in range(steps):
            model(pictures).sum().backward()
        return getrusage(RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    new_pages()
    assert new_pages() < 400
