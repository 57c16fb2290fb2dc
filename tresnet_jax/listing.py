"""Names of the models and of their pretrained weights, listed as timm lists them."""

import fnmatch
import re
from collections.abc import Sequence

from tresnet_jax.variants import ALIASES, ARCHITECTURES, PRETRAINED


def list_models(
    filter: str | Sequence[str] = '',
    *,
    pretrained: bool = False,
    exclude_filters: str | Sequence[str] = '',
    include_tags: bool | None = None,
) -> list[str]:
    """Return the names of models in natural order, as ``timm.list_models``.

    Args:
        filter: shell patterns, one of which must match. A pattern without a tag matches all tags. Empty: all models.
        pretrained: only names of pretrained weights.
        exclude_filters: shell patterns, none of which may match.
        include_tags: list the tags of each architecture, or else the architectures. None: as `pretrained`.

    Example:
        >>> import tresnet_jax
        >>> tresnet_jax.list_models('tresnet*')
        ['tresnet_l', 'tresnet_m', 'tresnet_v2_l', 'tresnet_xl']
        >>> tresnet_jax.list_models('resnet*', exclude_filters=['*0d', 'resnet1*'])
        ['resnet26d', 'resnet34d']
        >>> tresnet_jax.list_models('*.fashion_mnist', pretrained=True)
        ['test_resnet.fashion_mnist', 'test_tresnet.fashion_mnist']
    """
    tags = pretrained if include_tags is None else include_tags
    names = list(PRETRAINED if tags else ARCHITECTURES)
    if pretrained and not tags:
        names = [name for name in names if any(row.architecture == name for row in PRETRAINED.values())]
    wanted, unwanted = _patterns(filter, tags), _patterns(exclude_filters, tags)
    return sorted(
        (name for name in names if (not wanted or _matches(name, wanted)) and not _matches(name, unwanted)),
        key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)],
    )


def list_pretrained(filter: str | Sequence[str] = '', exclude_filters: str | Sequence[str] = '') -> list[str]:
    """Return the names of pretrained weights, with tags, in natural order, as ``timm.list_pretrained``.

    Args:
        filter, exclude_filters: as for `list_models`.

    Example:
        >>> import tresnet_jax
        >>> tresnet_jax.list_pretrained('resnet18d')
        ['resnet18d.ra2_in1k', 'resnet18d.ra4_e3600_r224_in1k']
    """
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters)


def is_model(model_name: str) -> bool:
    """Return whether the architecture of a name is known. The tag is ignored, as in timm.

    Example:
        >>> import tresnet_jax
        >>> tresnet_jax.is_model('resnet50d.a1_in1k'), tresnet_jax.is_model('resnet50')
        (True, False)
    """
    architecture = model_name.partition('.')[0]
    return architecture in ARCHITECTURES or architecture in ALIASES


def _patterns(given: str | Sequence[str], tags: bool) -> list[str]:
    patterns = ([given] if given else []) if isinstance(given, str) else list(given)
    return patterns + [f'{pattern}.*' for pattern in patterns if tags and '.' not in pattern]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
