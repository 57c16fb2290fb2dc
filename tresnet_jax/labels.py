"""Names of the classes of a classifier.

The ImageNet tables are files in ``class_names/`` (from timm, ``timm/data/_info``), read on first use.
"""

import functools
import re
from importlib import resources
from typing import Any

from tresnet_jax.variants import MULTILABEL, PretrainedConfig, pretrained_config

FASHION_MNIST = (
    'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot',
)  # fmt: skip

SYNSET = re.compile(r'n\d{8}')  # WordNet's identifier, as in the names of ImageNet's folders

# timm also recognises ImageNet's subsets by their size (timm/data/imagenet_info.py: infer_imagenet_subset).
_TABLE_OF_SIZE = {1000: 'imagenet1k', 11221: 'imagenet21k_miil'}


def class_names(source: Any) -> tuple[str, ...] | None:
    """Return the name of each output of a classifier.

    Names stored with the weights (by a training run or a saved model) take precedence. ImageNet's 1,000 names are those
    of the model cards ('Samoyed'); the 11,221 names of the `miil_in21k` tags are WordNet's lemmas ('person, ...').

    Args:
        source: a model, a model's name, its row of the table (`PretrainedConfig`), or a number of classes. If the
            number of classes of a model differs from that of its weights, only the number counts.

    Returns:
        One name per class in the order of the outputs, or None if they are unknown. Names can repeat.

    Raises:
        ValueError: the model's name is unknown.

    Example:
        >>> import tresnet_jax
        >>> tresnet_jax.class_names('test_resnet.fashion_mnist')[8:]
        ('Bag', 'Ankle boot')
        >>> tresnet_jax.class_names(1000)[258]
        'Samoyed'
    """
    source = _resolve(source)
    if names := _own_names(source):
        return names
    if _is_fashion_mnist(source):
        return FASHION_MNIST
    if _is_multilabel(source):
        return None
    table = _TABLE_OF_SIZE.get(_num_classes(source))
    return tuple(name for _, name in _read(table)) if table else None


def class_synsets(source: Any) -> tuple[str, ...] | None:
    """Return the WordNet synset of each output of a classifier, such as 'n02111889'. Synsets never repeat.

    Args:
        source: see `class_names`.

    Returns:
        One synset per class in the order of the outputs, or None if the classes are unknown or not WordNet's.

    Raises:
        ValueError: the model's name is unknown.
    """
    source = _resolve(source)
    if names := _own_names(source):
        return names if all(map(SYNSET.fullmatch, names)) else None
    if _is_fashion_mnist(source) or _is_multilabel(source):
        return None
    table = _TABLE_OF_SIZE.get(_num_classes(source))
    return tuple(synset for synset, _ in _read(table)) if table else None


def are_names(value: Any) -> bool:
    """Return whether a value read from JSON is a list of names."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _resolve(source: Any) -> Any:
    return pretrained_config(source) if isinstance(source, str) else source


def _num_classes(source: Any) -> int:
    return source if isinstance(source, int) else source.num_classes


def _config(source: Any) -> PretrainedConfig | None:
    return source if isinstance(source, PretrainedConfig) else getattr(source, 'pretrained_cfg', None)


def _own_names(source: Any) -> tuple[str, ...] | None:
    """Return the names stored with the weights, if the classifier still has the same number of classes."""
    config = _config(source)
    names = config.label_names if config else None
    return names if names and len(names) == _num_classes(source) else None


def _is_fashion_mnist(source: Any) -> bool:
    config = _config(source)
    return config is not None and config.tag == 'fashion_mnist' and _num_classes(source) == len(FASHION_MNIST)


def _is_multilabel(source: Any) -> bool:
    """Return whether images have any number of classes; the number of classes then does not identify ImageNet."""
    config = _config(source)
    return config is not None and config.task == MULTILABEL


@functools.cache
def _read(table: str) -> tuple[tuple[str, str], ...]:
    """Return (synset, name) of each class."""
    text = (resources.files('tresnet_jax') / 'class_names' / f'{table}.tsv').read_text(encoding='utf-8')
    rows = (line.partition('\t') for line in text.splitlines())
    return tuple((synset, name) for synset, _, name in rows)
