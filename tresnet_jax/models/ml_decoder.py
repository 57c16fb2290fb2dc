"""ML-Decoder, a head for many labels: Ridnik et al., "ML-Decoder: Scalable and Versatile Classification Head",
arXiv:2111.12933.

The reference is ``timm/layers/ml_decoder.py``; attribute paths are timm's keys. A fixed random query for each group of
classes attends to the pixels of the last feature map, which is not pooled, and a linear layer of the group returns the
logits of its classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tresnet_jax.models.initializers import normal, uniform
from tresnet_jax.models.layers import Dropout, at_least_float32, linear, param_dtype
from tresnet_jax.models.meshes import shard_like

QUERIES = 'query_embed'  # the name of the queries, which are drawn, stored and never trained
DEFAULT_GROUPS, DEFAULT_EMBEDDING = 100, 768
NUM_HEADS, HIDDEN, DROPOUT, EPSILON = 8, 2048, 0.1, 1e-5  # timm has no option for these


def _constant(value: float, length: int, dtype: jnp.dtype) -> nnx.Param:
    return nnx.Param(jax.device_put(np.full(length, value, param_dtype(dtype))))


def _like(value: nnx.Param, x: jax.Array) -> jax.Array:
    """Return a parameter (C,) with the dtype and the number of axes of x, (..., C)."""
    return jnp.expand_dims(value[...].astype(x.dtype), tuple(range(x.ndim - 1)))


class LayerNorm(nnx.Module):
    """torch's ``LayerNorm`` over the last axis, computed at least in float32."""

    def __init__(self, num_features: int, *, dtype: jnp.dtype):
        self.scale = _constant(1, num_features, dtype)
        self.bias = _constant(0, num_features, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = at_least_float32(x)
        centred = wide - wide.mean(-1, keepdims=True)
        normalised = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)
        return (normalised * _like(self.scale, wide) + _like(self.bias, wide)).astype(x.dtype)


class MultiheadAttention(nnx.Module):
    """torch's ``MultiheadAttention`` of queries to a memory, with dropout on the attention weights.

    Attributes:
        in_proj_kernel, in_proj_bias: projections of queries, keys and values, (features, 3 features) and (3 features,).
    """

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        init = uniform((6 / (4 * features)) ** 0.5)  # Xavier's, for the three projections together
        self.in_proj_kernel = nnx.Param(init(rngs.params(), (features, 3 * features), param_dtype(dtype)))
        self.in_proj_bias = _constant(0, 3 * features, dtype)
        self.out_proj = linear(features, features, uniform(features**-0.5), dtype, rngs)
        self.out_proj.bias = _constant(0, features, dtype)
        self.dropout = Dropout(DROPOUT)

    def _projected(self, x: jax.Array, number: int) -> jax.Array:
        """Return one of the three projections, (B, N, features) -> (B, N, heads, features / heads)."""
        features = x.shape[-1]
        part = slice(number * features, (number + 1) * features)
        y = x @ self.in_proj_kernel[...][:, part].astype(x.dtype)
        y += self.in_proj_bias[...][None, None, part].astype(x.dtype)
        return y.reshape(*y.shape[:2], NUM_HEADS, features // NUM_HEADS)

    def __call__(self, queries: jax.Array, memory: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """(1 or B, G, features) and (B, N, features) -> (B, G, features)."""
        query, key, value = self._projected(queries, 0), self._projected(memory, 1), self._projected(memory, 2)
        scores = jnp.einsum('bghd,bnhd->bhgn', query, key) / query.shape[-1] ** 0.5
        weights = nnx.softmax(at_least_float32(scores)).astype(scores.dtype)
        mixed = jnp.einsum('bhgn,bnhd->bghd', self.dropout(weights, rngs=rngs), value)
        return self.out_proj(mixed.reshape(*mixed.shape[:2], memory.shape[-1]))


class DecoderLayer(nnx.Module):
    """timm's ``TransformerDecoderLayerOptimal``: torch's decoder layer without self-attention."""

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(features, dtype=dtype)
        self.multihead_attn = MultiheadAttention(features, dtype=dtype, rngs=rngs)
        self.linear1 = linear(features, HIDDEN, uniform(features**-0.5), dtype, rngs)
        self.linear2 = linear(HIDDEN, features, uniform(HIDDEN**-0.5), dtype, rngs)
        self.norm2 = LayerNorm(features, dtype=dtype)
        self.norm3 = LayerNorm(features, dtype=dtype)
        self.dropout, self.dropout1, self.dropout2, self.dropout3 = (Dropout(DROPOUT) for _ in range(4))

    def __call__(self, x: jax.Array, memory: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """(1 or B, G, features) and (B, N, features) -> (B, G, features)."""
        if not self.dropout1.deterministic:  # the queries of each image are dropped on their own
            x = shard_like(jnp.broadcast_to(x, (memory.shape[0], *x.shape[1:])), memory)
        x = self.norm1(x + self.dropout1(x, rngs=rngs))
        x = self.norm2(x + self.dropout2(self.multihead_attn(x, memory, rngs=rngs), rngs=rngs))
        hidden = self.dropout(nnx.relu(self.linear1(x)), rngs=rngs)
        return self.norm3(x + self.dropout3(self.linear2(hidden), rngs=rngs))


class MLDecoder(nnx.Module):
    """The ML-Decoder head (timm's ``MLDecoder``), in evaluation mode; in training mode it has dropout of 0.1.

    Args:
        num_classes: number of classes, 1 or more.
        num_of_groups: number of queries, each for num_classes / num_of_groups classes, rounded up. None: 100. At most
            one for each class.
        decoder_embedding: width of the decoder, a multiple of 8. None: 768.
        num_features: channels of the feature map (timm's ``initial_num_features``).
        dtype: the compute dtype.
        rngs: random numbers for the initial weights.

    Attributes:
        num_classes, num_of_groups, decoder_embedding: as above, without None.
        query_embed: the queries, (num_of_groups, decoder_embedding); their gradient is zero.
        duplicate_pooling, duplicate_pooling_bias: the linear layers of the groups, (num_of_groups, decoder_embedding,
            classes of a group), and (num_classes,).

    Raises:
        ValueError: there are no classes, or a number is not allowed.
    """

    def __init__(
        self,
        num_classes: int,
        num_of_groups: int | None = None,
        decoder_embedding: int | None = None,
        *,
        num_features: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        groups = DEFAULT_GROUPS if num_of_groups is None else num_of_groups
        features = DEFAULT_EMBEDDING if decoder_embedding is None else decoder_embedding
        if num_classes < 1 or groups < 1:
            raise ValueError(f'an ML-Decoder needs a class and a group, got {num_classes} classes, {groups} groups')
        if features < 1 or features % NUM_HEADS:
            raise ValueError(f'decoder_embedding must be a multiple of {NUM_HEADS}, got {features}')
        self.num_classes = num_classes
        self.num_of_groups = groups = min(groups, num_classes)
        self.decoder_embedding = features
        of_group = -(-num_classes // groups)
        self.embed_standart = linear(num_features, features, uniform(num_features**-0.5), dtype, rngs)
        self.decoder = nnx.Dict(layers=nnx.List([DecoderLayer(features, dtype=dtype, rngs=rngs)]))
        self.query_embed = nnx.Embed(
            groups, features, dtype=dtype, param_dtype=param_dtype(dtype), embedding_init=normal(1.0), rngs=rngs
        )
        init = normal((2 / (features * of_group + groups * of_group)) ** 0.5)  # Xavier's, as torch counts three axes
        self.duplicate_pooling = nnx.Param(init(rngs.params(), (groups, features, of_group), param_dtype(dtype)))
        self.duplicate_pooling_bias = _constant(0, num_classes, dtype)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return the logits of a feature map: (B, h, w, num_features) -> (B, num_classes)."""
        batch, height, width, channels = x.shape
        memory = nnx.relu(self.embed_standart(x.reshape(batch, height * width, channels)))
        queries = jax.lax.stop_gradient(self.query_embed.embedding[...]).astype(memory.dtype)
        decoded = self.decoder.layers[0](queries[None], memory, rngs=rngs)
        logits = jnp.einsum('bgd,gdc->bgc', decoded, self.duplicate_pooling[...].astype(decoded.dtype))
        flat = logits.reshape(batch, logits.shape[1] * logits.shape[2])
        return flat[:, : self.num_classes] + _like(self.duplicate_pooling_bias, flat)

    def products(self, pixels: int) -> tuple[int, int]:
        """Return the multiply-accumulates and the outputs of all but the layers of type ``nnx.Linear``, for one image.

        The outputs are those of projections and of the groups' linear layers, not those inside the attention.

        Args:
            pixels: number of pixels of the feature map.
        """
        groups, features, of_group = self.duplicate_pooling.shape
        projected = groups + 2 * pixels
        macs = projected * features**2 + 2 * groups * pixels * features + groups * features * of_group
        return macs, projected * features + groups * of_group
