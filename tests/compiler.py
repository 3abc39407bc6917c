"""Whether torch.compile can build anything here: a mark for tests of compiled forms."""

from __future__ import annotations

import pytest


def has_compiler() -> bool:
    """Whether torch finds a C++ compiler that runs."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler")
