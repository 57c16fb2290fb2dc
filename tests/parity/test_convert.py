"""The converter against torch and timm: round trips, strict loading, training trees."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch
from flax import nnx

import convert
import tresnet_jax
from convert.__main__ import main
from convert.golden import timm_model
from tests.helpers.closeness import assert_close, assert_identical
from tests.helpers.models import SMALL
from tests.helpers.reference import call, images, nhwc, ours, reference, state_of
from tresnet_jax.variants import ARCHITECTURES

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16, 'float64': torch.float64}


def arrays(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return arrays of the same dtypes; torch does not know ml_dtypes, but the bits of bfloat16 are the same."""
    return {
        key: value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        if value.dtype == torch.bfloat16
        else value.numpy()
        for key, value in state.items()
    }


def trained_state(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return a state dict whose counters all differ."""
    state = reference(name, num_classes=7).state_dict()
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    for i, key in enumerate(k for k in state if k.endswith('num_batches_tracked')):
        state[key] = torch.tensor(1000 + i)
    return state


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('source_suffix, target_suffix', [('.safetensors', '.pth'), ('.pth', '.safetensors')])
def test_round_trip_is_bit_identical(name, dtype, source_suffix, target_suffix, tmp_path, capsys):
    """torch -> flax -> torch on the command line keeps names, shapes, dtypes, values and counters."""
    state = trained_state(name, DTYPES[dtype])
    source, middle, target = tmp_path / f'a{source_suffix}', tmp_path / 'b.safetensors', tmp_path / f'c{target_suffix}'
    torch.save(state, source) if source_suffix == '.pth' else safetensors.torch.save_file(state, source)
    assert main([str(source), str(middle)]) == 0
    assert main([str(middle), str(target), '--to', 'torch']) == 0
    back = torch.load(target) if target_suffix == '.pth' else safetensors.torch.load_file(target)
    assert_identical(arrays(back), arrays(state))
    timm_model(name, num_classes=7).load_state_dict(back, strict=True)
    assert name in capsys.readouterr().out

    with safetensors.safe_open(middle, 'np') as file:
        metadata, dtypes = file.metadata(), {file.get_tensor(key).dtype.name for key in file.keys()}  # noqa: SIM118
    assert dtypes == {'float64' if dtype == 'float64' else 'float32'}
    assert metadata['architecture'] == name and metadata['num_classes'] == '7' and metadata['in_chans'] == '3'
    assert len(metadata['source_sha256']) == 64
    assert set(json.loads(metadata['source_dtypes']).values()) == {dtype}


@pytest.mark.parametrize('name', SMALL)
def test_a_source_without_counters_stays_without(name, tmp_path):
    state = {k: v for k, v in trained_state(name, torch.float32).items() if not k.endswith('num_batches_tracked')}
    torch.save(state, tmp_path / 'a.pt')
    assert main([str(tmp_path / 'a.pt'), str(tmp_path / 'b.safetensors')]) == 0
    assert main([str(tmp_path / 'b.safetensors'), str(tmp_path / 'c.pt')]) == 0
    assert_identical(arrays(torch.load(tmp_path / 'c.pt')), arrays(state))


@pytest.mark.parametrize('name', ['test_resnet', 'test_tresnet', 'resnet18d', 'tresnet_m'])
def test_a_flax_model_loads_into_timm(name):
    """The result of `to_torch` loads with strict=True and gives the same logits."""
    mine = tresnet_jax.create_model(name, num_classes=5)
    theirs = timm_model(name, num_classes=5)
    theirs.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in convert.to_torch(mine).items()}, strict=True)
    x = images(1, 3, 64, 64).float()
    assert_close(call(mine, nhwc(x)), nhwc(theirs(x)), 1e-5)  # float32


@pytest.mark.parametrize('name', sorted(ARCHITECTURES))
def test_every_architecture_is_recognised_by_its_shapes(name, tmp_path):
    """The shapes come from the meta device, so that no weight is drawn."""
    with torch.device('meta'):
        shapes = {k: tuple(v.shape) for k, v in timm_model(name).state_dict().items()}
    tensors = {k: np.broadcast_to(np.int64(3) if shape == () else np.float32(0), shape) for k, shape in shapes.items()}
    checkpoint = convert.Checkpoint(tmp_path / 'x', 'torch', tensors, {})
    params, stats, report = convert.to_flax(checkpoint)
    assert report.architecture == name
    assert len(report.counters) + report.tensors == len(shapes)
    back = convert.to_torch(params, stats, num_batches_tracked=3)
    assert {k: v.shape for k, v in back.items()} == shapes


def test_gradients_convert_like_parameters():
    model = reference('test_resnet', num_classes=4).float()
    apply, params, stats = tresnet_jax.functional(ours(model, 'test_resnet'))
    gradient = jax.grad(lambda p: apply(p, stats, np.ones((1, 32, 32, 3), np.float32)).sum())
    grads = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(gradient, params))
    theirs = dict(model.named_parameters())
    assert {k: v.shape for k, v in convert.to_torch(grads).items()} == {k: tuple(v.shape) for k, v in theirs.items()}


def test_timm_loads_our_torch_file_as_a_checkpoint(tmp_path):
    embedded = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
    file = tmp_path / 'model.safetensors'
    convert.save_torch(file, convert.to_torch(embedded))
    theirs = timm.create_model('test_resnet', num_classes=10, checkpoint_path=str(file)).eval()
    x = images(2, 3, 32, 32).float()
    assert_close(call(embedded, nhwc(x)), theirs(x).detach().numpy(), 1e-5)  # float32


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    """Nothing is written either."""
    marker = tmp_path / 'ran'

    class Trap:
        def __reduce__(self):
            return (open, (str(marker), 'w'))

    torch.save({'weight': Trap()}, tmp_path / 'trap.pth')
    assert main([str(tmp_path / 'trap.pth'), str(tmp_path / 'out.safetensors')]) == 2
    assert not marker.exists() and not (tmp_path / 'out.safetensors').exists()
    assert 'holds no state dict of tensors' in capsys.readouterr().err


def test_a_full_disk_under_a_torch_file(tmp_path, monkeypatch):
    """torch raises RuntimeError then."""

    def fail(state, path):
        path.write_bytes(b'half')
        raise RuntimeError('[enforce fail at inline_container.cc:626] .\nunexpected pos 64 vs 0')

    (tmp_path / 'a.pth').write_bytes(b'was here')
    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(convert.ConversionError, match='a.pth: cannot be written: .*unexpected pos 64 vs 0$'):
        convert.save_torch(tmp_path / 'a.pth', {'a': np.zeros(3)})
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [('a.pth', b'was here')]


@pytest.mark.usefixtures('x64')
def test_nothing_is_shared_with_the_source():
    """In float64 nothing is cast, and JAX and torch both reuse NumPy's memory where they can."""
    model = reference('test_tresnet', num_classes=4)
    params, stats, _ = convert.to_flax(state_of(model))
    mine = ours(model, 'test_tresnet', dtype='float64')
    before = jax.tree.map(np.array, (params, stats, nnx.to_pure_dict(nnx.state(mine))))
    back = convert.to_torch(mine)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
        for value in back.values():
            value += 1
    assert_identical((params, stats, nnx.to_pure_dict(nnx.state(mine))), before)
