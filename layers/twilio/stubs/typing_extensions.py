"""What the layer's packages take from typing_extensions, all of which Python 3.13 has: its own copies take 10 ms."""

from collections.abc import Buffer
from typing import NotRequired, Required, Self, Unpack, get_type_hints
from warnings import deprecated

__all__ = ["Buffer", "NotRequired", "Required", "Self", "Unpack", "deprecated", "get_type_hints"]
