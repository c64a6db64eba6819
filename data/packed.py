"""Many strings in two arrays: a forked worker that reads them copies no page, as it would with a list of objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class PackedStrings(Sequence[str]):
    """A read-only sequence of strings, such as a million paths."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]  # (n + 1,)

    @classmethod
    def of(cls, strings: Iterable[str]) -> PackedStrings:
        encoded = [os.fsencode(text) for text in strings]
        offsets = np.concatenate(([0], np.cumsum([len(text) for text in encoded], dtype=np.int64))).astype(np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} strings")
        index = int(index) % len(self)
        return os.fsdecode(self.data[self.offsets[index] : self.offsets[index + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
