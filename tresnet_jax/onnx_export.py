"""A folded model as an ONNX model: each layer is written as nodes of a graph.

Tensors are (B, C, H, W), as in files that PyTorch writes, and weights have timm's names and shapes. Importing this
module needs the extra `onnx`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from flax import nnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from tresnet_jax.folding import Activation
from tresnet_jax.models import resnetd, tresnet
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.block import ResidualBlock
from tresnet_jax.models.layers import Identity, SqueezeExcite, Stack
from tresnet_jax.models.ml_decoder import EPSILON, NUM_HEADS, LayerNorm, MLDecoder
from tresnet_jax.models.pooling import AvgPool, pool_kind
from tresnet_jax.models.winograd import WinogradConv
from tresnet_jax.version import __version__

OPSET, IR_VERSION = 17, 8  # those of ONNX 1.12, of 2022: old enough for most runtimes
INPUT, LOGITS, FEATURES = 'images', 'logits', 'features'
BLUR = np.outer((1, 2, 1), (1, 2, 1)) / 16

# The layers of a residual block's branch, in order.
BRANCHES: dict[type, tuple[str, ...]] = {
    tresnet.BasicBlock: ('conv1', 'conv2', 'se'),
    tresnet.Bottleneck: ('conv1', 'conv2', 'se', 'conv3'),
    resnetd.BasicBlock: ('conv1', 'bn1', 'conv2', 'bn2'),
    resnetd.Bottleneck: ('conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'bn3'),
}


class Graph:
    """The nodes and weights written so far. A tensor is identified by its name."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, name: str, value: Any) -> str:
        """Add a constant and return its name."""
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, path: str, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of the layer at a path and return the name of its output."""
        name = f'{path}.{operator}'
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def layer(self, path: str, layer: Any, x: str) -> str:
        """Add the nodes of a layer and return the name of its output.

        Raises:
            ValueError: a layer of this type cannot be written.
        """
        kind = type(layer)
        if kind not in WRITERS:
            raise ValueError(f'{path}: a layer of type {kind.__name__} cannot be exported to ONNX')
        return WRITERS[kind](self, path, layer, x)


def _float32(variable: Any) -> np.ndarray:
    return np.asarray(variable[...], np.float32)


def _pair(value: Any) -> list[int]:
    """Return one number for each of two axes; Flax accepts one for both."""
    return np.broadcast_to(value, 2).tolist()


def _weights(graph: Graph, path: str, kernel: np.ndarray, bias: Any) -> list[str]:
    weights = [graph.weight(f'{path}.weight', kernel)]
    return weights if bias is None else [*weights, graph.weight(f'{path}.bias', _float32(bias))]


def _identity(graph: Graph, path: str, layer: Identity, x: str) -> str:
    return x


def _stack(graph: Graph, path: str, stack: Stack, x: str) -> str:
    for index, layer in enumerate(stack):
        x = graph.layer(f'{path}.{index}', layer, x)
    return x


def _conv(graph: Graph, path: str, conv: nnx.Conv, x: str) -> str:
    (top, bottom), (left, right) = conv.padding  # pyright: ignore
    kernel = _float32(conv.kernel).transpose(3, 2, 0, 1)
    return graph.node(
        path,
        'Conv',
        x,
        *_weights(graph, path, kernel, conv.bias),
        kernel_shape=kernel.shape[2:],
        strides=_pair(conv.strides),
        dilations=_pair(conv.kernel_dilation),
        pads=[top, left, bottom, right],
        group=conv.feature_group_count,
    )


def _linear(graph: Graph, path: str, linear: nnx.Linear, x: str) -> str:
    return graph.node(path, 'Gemm', x, *_weights(graph, path, _float32(linear.kernel).T, linear.bias), transB=1)


def _activation(graph: Graph, path: str, activation: Activation, x: str) -> str:
    if activation.slope is None:
        return x
    return graph.node(path, 'LeakyRelu', x, alpha=activation.slope) if activation.slope else graph.node(path, 'Relu', x)


def _avg_pool(graph: Graph, path: str, pool: AvgPool, x: str) -> str:
    border = {'ceil_mode': 1} if pool.stride == 2 else {'pads': [0, 0, 1, 1], 'count_include_pad': 1}
    return graph.node(path, 'AveragePool', x, kernel_shape=[2, 2], strides=[pool.stride, pool.stride], **border)


def _blur_pool(graph: Graph, path: str, channels: int, x: str) -> str:
    pads = graph.weight(f'{path}.pads', np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    kernel = graph.weight(f'{path}.filt', np.broadcast_to(np.float32(BLUR), (channels, 1, 3, 3)))
    padded = graph.node(path, 'Pad', x, pads, mode='reflect')
    return graph.node(path, 'Conv', padded, kernel, kernel_shape=[3, 3], strides=[2, 2], group=channels)


def _conv_norm_act(graph: Graph, path: str, layer: tresnet.ConvNormAct, x: str) -> str:
    x = graph.layer(f'{path}.bn', layer.bn, graph.layer(f'{path}.conv', layer.conv, x))
    return x if layer.aa is None else _blur_pool(graph, f'{path}.aa', layer.conv.out_features, x)


def _squeeze_excite(graph: Graph, path: str, se: SqueezeExcite, x: str) -> str:
    hidden = graph.layer(f'{path}.fc1', se.fc1, graph.node(path, 'GlobalAveragePool', x))
    logits = graph.layer(f'{path}.fc2', se.fc2, graph.node(path, 'Relu', hidden))
    return graph.node(path, 'Mul', x, graph.node(path, 'Sigmoid', logits))


def _block(graph: Graph, path: str, block: ResidualBlock, x: str) -> str:
    shortcut = x if block.downsample is None else graph.layer(f'{path}.downsample', block.downsample, x)
    for name in BRANCHES[type(block)]:
        if (layer := getattr(block, name)) is not None:
            x = graph.layer(f'{path}.{name}', layer, x)
    return graph.node(path, 'Relu', graph.node(path, 'Add', x, shortcut))


def _layer_norm(graph: Graph, path: str, norm: LayerNorm, x: str) -> str:
    weights = _weights(graph, path, _float32(norm.scale), norm.bias)
    return graph.node(path, 'LayerNormalization', x, *weights, axis=-1, epsilon=EPSILON)


def _dense(graph: Graph, path: str, kernel: np.ndarray, bias: np.ndarray, x: str) -> str:
    """Add a linear layer over the last of any number of axes; the kernel is (in, out)."""
    product = graph.node(path, 'MatMul', x, graph.weight(f'{path}.kernel', kernel))
    return graph.node(path, 'Add', product, graph.weight(f'{path}.bias', bias))


def _reshape(graph: Graph, path: str, x: str, *shape: int) -> str:
    """Reshape a tensor; 0 keeps the length of an axis."""
    return graph.node(path, 'Reshape', x, graph.weight(f'{path}.shape', np.array(shape)))


def _ml_decoder(graph: Graph, path: str, head: MLDecoder, x: str) -> str:
    def dense(name: str, linear: nnx.Linear, x: str) -> str:
        return _dense(graph, f'{path}.{name}', _float32(linear.kernel), _float32(linear.bias), x)

    # (B, channels, h, w) -> (B, pixels, width)
    pixels = _reshape(graph, path, x, 0, head.embed_standart.in_features, -1)
    pixels = graph.node(path, 'Transpose', pixels, perm=[0, 2, 1])
    memory = graph.node(path, 'Relu', dense('embed_standart', head.embed_standart, pixels))

    name, layer, width = 'decoder.layers.0', head.decoder.layers[0], head.decoder_embedding
    attention = layer.multihead_attn
    kernels = np.split(_float32(attention.in_proj_kernel), 3, 1)
    biases = np.split(_float32(attention.in_proj_bias), 3)

    # The queries depend on the weights alone.
    queries = np.asarray(layer.norm1(2 * head.query_embed.embedding[...]), np.float32)
    query = (queries @ kernels[0] + biases[0]).reshape(-1, NUM_HEADS, width // NUM_HEADS)
    query = query.transpose(1, 0, 2) / np.float32(width // NUM_HEADS) ** 0.5  # (heads, groups, width of a head)

    def of_heads(number: int, part: str, axes: list[int]) -> str:
        at = f'{path}.{name}.multihead_attn.{part}'
        projected = _dense(graph, at, kernels[number], biases[number], memory)
        return graph.node(at, 'Transpose', _reshape(graph, at, projected, 0, 0, NUM_HEADS, -1), perm=axes)

    at = f'{path}.{name}.multihead_attn'
    scores = graph.node(f'{at}.scores', 'MatMul', graph.weight(f'{at}.query', query), of_heads(1, 'key', [0, 2, 3, 1]))
    weights = graph.node(at, 'Softmax', scores, axis=-1)
    mixed = graph.node(f'{at}.mixed', 'MatMul', weights, of_heads(2, 'value', [0, 2, 1, 3]))
    mixed = _reshape(graph, at, graph.node(at, 'Transpose', mixed, perm=[0, 2, 1, 3]), 0, 0, width)
    attended = dense(f'{name}.multihead_attn.out_proj', attention.out_proj, mixed)

    x = graph.node(at, 'Add', graph.weight(f'{path}.{name}.queries', queries), attended)
    x = graph.layer(f'{path}.{name}.norm2', layer.norm2, x)
    hidden = graph.node(f'{path}.{name}', 'Relu', dense(f'{name}.linear1', layer.linear1, x))
    x = graph.node(f'{path}.{name}', 'Add', x, dense(f'{name}.linear2', layer.linear2, hidden))
    x = graph.layer(f'{path}.{name}.norm3', layer.norm3, x)

    # A linear layer for each group: (B, groups, 1, width) @ (groups, width, classes of a group)
    at = f'{path}.duplicate_pooling'
    kernel = graph.weight(f'{at}.kernel', _float32(head.duplicate_pooling))
    logits = graph.node(at, 'MatMul', _reshape(graph, at, x, 0, 0, 1, width), kernel)
    start, end, axis = (
        graph.weight(f'{at}.{name}', np.array([value]))
        for name, value in (('start', 0), ('end', head.num_classes), ('axis', 1))
    )
    logits = graph.node(at, 'Slice', graph.node(at, 'Flatten', logits), start, end, axis)
    return graph.node(at, 'Add', logits, graph.weight(f'{at}.bias', _float32(head.duplicate_pooling_bias)))


WRITERS: dict[type, Callable[[Graph, str, Any, str], str]] = {
    Activation: _activation,
    AvgPool: _avg_pool,
    Identity: _identity,
    LayerNorm: _layer_norm,
    MLDecoder: _ml_decoder,
    nnx.Conv: _conv,
    nnx.Linear: _linear,
    SqueezeExcite: _squeeze_excite,
    Stack: _stack,
    resnetd.Shortcut: _stack,
    tresnet.ConvNormAct: _conv_norm_act,
    tresnet.Shortcut: _stack,
    WinogradConv: _conv,  # the convolution that it was made from
    **dict.fromkeys(BRANCHES, _block),
}


def _tresnet_stem(graph: Graph, model: tresnet.TResNet, x: str) -> tuple[str, str]:
    # The channels have the order of `space_to_depth`.
    x = graph.node('body', 'SpaceToDepth', x, blocksize=model.config.family.stem_block)
    x = graph.layer('body.conv1', model.body.conv1, x)
    return x, x


def _resnetd_stem(graph: Graph, model: resnetd.ResNetD, x: str) -> tuple[str, str]:
    x = graph.layer('bn1', model.bn1, graph.layer('conv1', model.conv1, x))
    return x, graph.node('maxpool', 'MaxPool', x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])


STEMS: dict[type, Callable[[Graph, Any, str], tuple[str, str]]] = {
    tresnet.TResNet: _tresnet_stem,
    resnetd.ResNetD: _resnetd_stem,
}


def _feature_maps(graph: Graph, model: ImageModel) -> Iterator[str]:
    """Add the stem and the stages, and yield the name of each feature map."""
    first, x = STEMS[type(model)](graph, model, INPUT)
    yield first
    for number, stage in enumerate(model._stages(), 1):
        for index, block in enumerate(stage):
            x = graph.layer(f'{model.config.family.stages}{number}.{index}', block, x)
        yield x


def _global_pool(graph: Graph, pool_type: str, x: str) -> str:
    def pooled(operator: str) -> str:
        path = f'global_pool.{operator}'
        return graph.node(path, 'Flatten', graph.node(path, operator, x))

    kind = pool_kind(pool_type)
    if not kind:
        return x
    if kind == 'avg':
        return pooled('GlobalAveragePool')
    if kind == 'max':
        return pooled('GlobalMaxPool')
    both = pooled('GlobalAveragePool'), pooled('GlobalMaxPool')
    if kind == 'avgmax':
        return graph.node('global_pool', 'Mean', *both)
    return graph.node('global_pool', 'Concat', *both, axis=1)


def _outputs(graph: Graph, model: ImageModel) -> dict[str, str]:
    """Add all layers and return the tensor of each output by the output's name."""
    if model.out_indices is not None:
        names, maps = model.feature_info.module_name(range(5)), enumerate(_feature_maps(graph, model))
        return {names[index]: x for index, x in maps if index in model.out_indices}
    *_, last = _feature_maps(graph, model)
    x = _global_pool(graph, model.global_pool, last)
    x = graph.layer(model.get_classifier(name_only=True), model.get_classifier(), x)
    return {LOGITS if model.num_classes else FEATURES: x}


def onnx_model(
    model: ImageModel, *, batch: int | None, image_size: tuple[int, int] | None, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return a model of `fold_batchnorm` as an ONNX model.

    Args:
        model: a float32 model.
        batch: images per call. None: any number.
        image_size: height and width of the images in pixels. None: any that the model takes.
        metadata: the model's `metadata_props`.

    Raises:
        ValueError: the model has another dtype, does not take the image size, or has a layer that cannot be written.
    """
    if model.dtype != np.float32:
        raise ValueError(
            f"ONNX files are written in float32, and the model has dtype {model.dtype}: use dtype='float32'"
        )
    if type(model) not in STEMS:
        raise ValueError(f'a model of type {type(model).__name__} cannot be exported to ONNX')
    if image_size is not None:
        model._check_input(*image_size)
    graph = Graph()
    outputs = _outputs(graph, model)
    for name, x in outputs.items():
        graph.nodes.append(helper.make_node('Identity', [x], [name], name))
    height, width = image_size or ('height', 'width')
    shape = ['batch' if batch is None else batch, model.in_chans, height, width]
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            model.architecture or type(model).__name__,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid('', OPSET)],
        ir_version=IR_VERSION,
        producer_name='tresnet_jax',
        producer_version=__version__,
    )
    helper.set_model_props(proto, dict(metadata))
    return shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
