"""Which feature maps a model has, and which of them are asked for (timm's ``models/_features.py``)."""

from collections.abc import Iterator, Sequence
from typing import Any


class FeatureInfo(Sequence[dict[str, Any]]):
    """One dict a feature map: `num_chs`, `reduction` (pixels of the image a step covers) and `module` (its name).

    `channels()`, `reduction()` and `module_name()` list one field of the maps that a backbone returns, or of all.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: tuple[int, ...] | None = None):
        self.info = list(info)
        self.out_indices = tuple(range(len(self.info))) if out_indices is None else out_indices

    def get(self, key: str) -> list[Any]:
        """One field of each returned feature map."""
        return [self.info[i][key] for i in self.out_indices]

    def channels(self) -> list[int]:
        return self.get('num_chs')

    def reduction(self) -> list[int]:
        return self.get('reduction')

    def module_name(self) -> list[str]:
        return self.get('module')

    def __getitem__(self, index: Any) -> Any:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.info)

    def __repr__(self) -> str:
        return f'FeatureInfo({self.info}, out_indices={self.out_indices})'


def take_indices(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Indices from 0: None all of `count`, n the last n, a sequence those, negative ones from the end.

    Raises:
        ValueError: one is out of range.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise ValueError(f'last-n ({indices}) is out of range (1 to {count})')
        return list(range(count - indices, count))
    taken = [count + i if i < 0 else i for i in indices]
    for i in taken:
        if not 0 <= i < count:
            raise ValueError(f'feature index {i} is out of range (0 to {count - 1})')
    if not taken:
        raise ValueError('no feature index was given')
    return taken
