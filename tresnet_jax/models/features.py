"""Feature maps: a model's list of them, and the selection of some by index (timm's ``models/_features.py``)."""

from collections.abc import Iterator, Sequence
from typing import Any


class FeatureInfo(Sequence[dict[str, Any]]):
    """Describes the feature maps of a model, one dict each.

    The keys are `num_chs`, `reduction` (image pixels per pixel of the map, along one edge) and `module` (timm's name).
    `channels`, `reduction`, `module_name` and `get_dicts` describe the maps that a backbone returns, as a list. `idx`
    selects other maps, counted among all maps of the model: a number returns one item, a sequence returns a list.

    Args:
        info: the dicts of all feature maps, of removed stages too.
        out_indices: indices of the maps that a backbone returns. None: all.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: tuple[int, ...] | None = None):
        self.info = list(info)
        self.out_indices = tuple(range(len(self.info))) if out_indices is None else out_indices

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return one field of the feature maps."""
        found = self.get_dicts([key], idx)
        return found[key] if isinstance(found, dict) else [each[key] for each in found]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the fields `keys` of the feature maps; None: all fields."""

        def fields(index: int) -> dict[str, Any]:
            info = self.info[index]
            return {key: info[key] for key in (info if keys is None else keys)}

        return fields(idx) if isinstance(idx, int) else [fields(i) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        return self.get('num_chs', idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        return self.get('reduction', idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        return self.get('module', idx)

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
