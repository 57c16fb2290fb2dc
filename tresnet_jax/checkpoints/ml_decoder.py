"""The tensors of an ML-Decoder head (arXiv:2111.12933) under timm's names and those of the authors' repository."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tresnet_jax.checkpoints.layout import Tensor
from tresnet_jax.checkpoints.records import printable
from tresnet_jax.models.ml_decoder import HIDDEN, NUM_HEADS

POOLING, BIAS, QUERIES = 'duplicate_pooling', 'duplicate_pooling_bias', 'query_embed.weight'
DECODER = 'decoder.'  # timm keeps only the layers in `decoder`; the authors keep everything there


class Decoder(NamedTuple):
    """An ML-Decoder in a checkpoint.

    Attributes:
        tensors: timm's name, within the head -> tensor.
        keys: the keys of these tensors in the checkpoint.
        num_classes, num_of_groups, decoder_embedding: the sizes; 0 if there is a problem.
        problem: how it differs from timm's, to follow 'an ML-Decoder head'; None if it does not.
    """

    tensors: dict[str, Tensor]
    keys: frozenset[str]
    num_classes: int = 0
    num_of_groups: int = 0
    decoder_embedding: int = 0
    problem: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `build_model`, as `ImageModel.head_options`."""
        sizes = {'num_of_groups': self.num_of_groups, 'decoder_embedding': self.decoder_embedding}
        return {'head': 'ml_decoder', **sizes}

    def __str__(self) -> str:
        if self.problem:
            return f'an ML-Decoder head {self.problem}'
        return f'an ML-Decoder head of {self.num_of_groups} queries, {self.decoder_embedding} wide'


def decoder_shapes(classes: int, groups: int, embedding: int, features: int) -> dict[str, tuple[int, ...]]:
    """Return timm's name, within the head -> shape of each tensor."""
    layer = f'{DECODER}layers.0'
    linears = {
        'embed_standart': (embedding, features),
        f'{layer}.multihead_attn.in_proj_': (3 * embedding, embedding),
        f'{layer}.multihead_attn.out_proj': (embedding, embedding),
        f'{layer}.linear1': (HIDDEN, embedding),
        f'{layer}.linear2': (embedding, HIDDEN),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in linears.items():
        name = name if name.endswith('_') else f'{name}.'
        shapes |= {f'{name}weight': shape, f'{name}bias': shape[:1]}
    for number in '123':
        shapes |= {f'{layer}.norm{number}.{leaf}': (embedding,) for leaf in ('weight', 'bias')}
    of_group = -(-classes // max(groups, 1))
    return shapes | {QUERIES: (groups, embedding), POOLING: (groups, embedding, of_group), BIAS: (classes,)}


DECODER_NAMES = tuple(decoder_shapes(1, 1, 1, 1))


def find_decoder(tensors: Mapping[str, Tensor], features: int) -> Decoder | None:
    """Return the ML-Decoder among tensors, whatever precedes its names; None if there is none.

    Args:
        tensors: key -> tensor, or anything with a `shape`.
        features: channels of the last feature map.
    """
    owners = [key.removesuffix(POOLING) for key in tensors if key == POOLING or key.endswith(f'.{POOLING}')]
    if not owners:
        return None
    if len(owners) > 1:
        return Decoder({}, frozenset(), problem=f'beside {len(owners) - 1} more')
    owner = owners[0]

    def key_of(name: str) -> str:
        within = f'{owner.removesuffix(DECODER)}{name}' if owner.endswith(DECODER) else ''
        return within if name.startswith(DECODER) and within in tensors else f'{owner}{name}'

    keys = {name: key_of(name) for name in DECODER_NAMES}
    found = {name: tensors[key] for name, key in keys.items() if key in tensors}
    used = frozenset(keys[name] for name in found)
    # Without an owner, all tensors would seem to be parts of the head.
    starts = (owner,) if owner else (DECODER, 'layers.', 'wordvec')
    further = [key.removeprefix(owner) for key in tensors if key.startswith(starts) and key not in used]
    problem = _listed('without', [name for name in DECODER_NAMES if name not in found]) or _listed('with', further)
    if problem:
        return Decoder(found, used, problem=problem)
    if (len(found[POOLING].shape), len(found[BIAS].shape)) != (3, 1):
        return Decoder(found, used, problem=f'whose {POOLING} has shape {tuple(found[POOLING].shape)}')
    (groups, embedding, _), (classes,) = found[POOLING].shape, found[BIAS].shape
    if not 1 <= groups <= classes or embedding % NUM_HEADS:
        return Decoder(found, used, problem=f'of {groups} queries, {embedding} wide, for {classes} classes')
    expected = decoder_shapes(classes, groups, embedding, features)
    other = [name for name, shape in expected.items() if tuple(found[name].shape) != shape]
    if other:
        shape = tuple(found[other[0]].shape)
        problem = f'whose {other[0]} has shape {shape} instead of {expected[other[0]]}'
        return Decoder(found, used, problem=problem)
    return Decoder(found, used, classes, groups, embedding)


def _listed(word: str, names: Sequence[str]) -> str | None:
    """Return 'without linear1.bias and 3 more'; None without names."""
    if not names:
        return None
    return f'{word} {printable(names[0], 80)}' + (f' and {len(names) - 1} more' if len(names) > 1 else '')
