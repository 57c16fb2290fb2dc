"""ReaL labels by the names of the images of any kind of data; tests/parity compares the accuracies with timm's."""

from typing import NamedTuple

import pytest

from tresnet_jax.data.real_labels import accepted_labels
from tresnet_jax.errors import DataError

LABELS = [[1], [2, 3], []]


class Named(NamedTuple):
    """A source of images that have only names."""

    names: list[str]
    name: str = 'val'

    def __len__(self) -> int:
        return len(self.names)

    def describe(self, index: int) -> str:
        return self.names[index]


def test_names_of_images():
    names = [
        '/data/n01440764/ILSVRC2012_val_00000002.JPEG',
        '/data/val-0.tar: ILSVRC2012_val_00000001.jpg',
        'hfds:ILSVRC/imagenet-1k validation 7: ILSVRC2012_val_00000003_n01751748.JPEG',
    ]
    assert accepted_labels(Named(names), LABELS).tolist() == [[2, 3], [1, -1], [-1, -1]]
    assert accepted_labels(Named(names[2:]), LABELS).tolist() == [[-1]]


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['embedded:fashion_mnist test 0'], 'such as ILSVRC2012_val_00000001.JPEG, up to number 3; got embedded'),
        (['/x/ILSVRC2012_val_00000004.JPEG'], 'up to number 3; got '),
        (['/x/ILSVRC2012_val_00000000.JPEG'], 'up to number 3; got '),
        (['/ILSVRC2012_val_00000001.JPEG/1.png'], 'up to number 3; got '),
        (['a/ILSVRC2012_val_00000001.JPEG', 'b/ILSVRC2012_val_00000001.JPEG'], 'are the same image'),
    ],
)
def test_refused_names(names, message):
    with pytest.raises(DataError, match=f'^val: .*{message}'):
        accepted_labels(Named(names), LABELS)
