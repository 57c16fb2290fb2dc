"""Feature maps: a model's list of them, and the selection of some by index (timm's ``models/_features.py``)."""

from collections.abc import Iterator, Sequence
from typing import Any


class FeatureInfo(Sequence[dict[str, Any]]):
    """Describes the feature maps of a model, one dict each.

    The keys are `num_chs`, `reduction` (image pixels per pixel of the map, along one edge) and `module` (timm's name).
    `channels()`, `reduction()` and `module_name()` list one field of the maps that a backbone returns.

    Args:
        info: the dicts of all feature maps.
        out_indices: indices of the maps that a backbone returns. None: all.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: tuple[int, ...] | None = None):
        self.info = list(info)
        self.out_indices = tuple(range(len(self.info))) if out_indices is None else out_indices

    def get(self, key: str) -> list[Any]:
        """Return one field of each returned feature map."""
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
    """Resolve a selection of feature maps to indices from 0.

    Args:
        count: number of feature maps.
        indices: n for the last n, a sequence of indices (negative ones count from the end), or None for all.

    Raises:
        ValueError: an index is out of range, or there are none.
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
