"""A layout: how one library names the tensors of a TResNet or ResNet-D."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np


class Tensor(Protocol):
    """A tensor whose values are read on demand; `stored.StoredTensor` is one.

    Attributes:
        shape: the shape in the file.
        dtype: NumPy's dtype; that of bfloat16 is ml_dtypes'.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def numpy(self) -> np.ndarray:
        """Return the values, which the caller must not change."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Computed:
    """A tensor that a function computes on demand.

    Attributes:
        shape, dtype: those of the result.
        compute: return the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    compute: Callable[[], np.ndarray]

    def numpy(self) -> np.ndarray:
        """Return the values."""
        return self.compute()


def as_tensor(array: np.ndarray) -> Tensor:
    """Return an array as a tensor."""
    return Computed(array.shape, array.dtype, lambda: array)


def transposed(tensor: Tensor) -> Tensor:
    """Return a tensor with its axes in reverse order."""
    return Computed(tensor.shape[::-1], tensor.dtype, lambda: tensor.numpy().T)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A naming of tensors.

    The name of a tensor has segments with dots between them. The names below follow a prefix, any number of leading
    segments that is the same for all tensors of one network ('module.backbone.').

    Attributes:
        name: 'timm', 'inplace_abn', 'timm features_only', 'PaddleClas', ...
        signature: names of tensors that all networks of the layout have. The first one identifies the layout. No name
            is of stage 4, so that a backbone without its last stages is found too.
        body: a regular expression of the first segment of each name that belongs to the network, without the
            classifier: 'stem|layer[1-4]'. Tensors of other first segments are never given to `to_timm`.
        to_timm: from the tensors of the body and of the classifier, without the prefix and without counters, to the
            same tensors under timm's names and in torch's layouts, without reading values. A tensor that the layout
            does not have keeps its name, and is reported as unexpected. Raises ValueError with the reason, as part of a
            sentence ('PaddleClas ResNet18_vd, which has one more projection'), for another network of the library.
        classifier: where the layout keeps its classifier, without the leaf: 'fc'; None: it has none of its own.
        absent: parts of names which rule the layout out if a tensor under the prefix, or a counter, has one.
        unseen: networks of the library with the same tensors that compute another function; empty for timm's, which are
            in `twins`.
    """

    name: str
    signature: tuple[str, ...]
    body: str
    to_timm: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    classifier: str | None = None
    absent: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def member(self, name: str) -> bool:
        """Return whether a name, without the prefix, is one of the body or of the classifier."""
        owner, _, leaf = name.rpartition('.')
        if owner == self.classifier and leaf in ('weight', 'bias'):
            return True
        return re.fullmatch(self.body, name.partition('.')[0]) is not None
