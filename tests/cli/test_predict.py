"""The prediction command line: what it prints, in which order, and how it fails."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tests.helpers.paths import ROOT
from tresnet_jax import variants
from tresnet_jax.checkpoints.run import CHECKPOINTS
from tresnet_jax.cli import image_files, predict
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.run_config import CONFIG_FILE, save_config

IMAGES = ROOT / 'tresnet_jax' / 'embedded' / 'pictures'
EMBEDDED = 'test_resnet.fashion_mnist'
TRACED: list[tuple[int, ...]] = []  # The shape of each batch the stub was compiled for.


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Stub:
    """A model that puts a grey image into a class by its brightness: black is class 0, white the last."""

    num_classes: int = 10
    in_chans: int = 3
    pretrained_cfg: variants.PretrainedConfig | None = None
    dtype: str = 'float32'

    def __call__(self, x: jax.Array) -> jax.Array:
        TRACED.append(x.shape)
        brightness = (x.mean((1, 2, 3)) + 1) / 2 * (self.num_classes - 1)
        distance = brightness[:, None] - jnp.arange(self.num_classes, dtype=x.dtype)[None]
        return (-4 * distance**2).astype(self.dtype)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line, with a stub for the model; gives exit code, standard output, standard error."""

    def run(*argv, stub: Stub | None = None) -> tuple[int, str, str]:
        if stub:
            monkeypatch.setattr(image_files, 'create_model', lambda name, **options: stub)
            monkeypatch.setattr(image_files, 'fold_batchnorm', lambda model: model)
        code = predict.main([str(a) for a in argv])
        return code, *capsys.readouterr()

    TRACED.clear()
    return run


def fashion(**changes) -> Stub:
    return Stub(**{'pretrained_cfg': variants.PRETRAINED[EMBEDDED], **changes})


@pytest.fixture
def greys(tmp_path) -> Path:
    """A folder of images 0.png to 9.png, each as bright as its number, in sizes of their own."""
    for number in range(10):
        grey = round(number * 255 / 9)
        Image.new('RGB', (20 + number, 50 - number), (grey,) * 3).save(tmp_path / f'{number}.png')
    return tmp_path


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('batch_size', [1, 4, 10, 32])
def test_every_image_gets_its_own_answer_and_one_compilation(run, greys, batch_size):
    argv = (greys, '--model', EMBEDDED, '--batch-size', batch_size, '--topk', 1, '--json')
    code, out, err = run(*argv, stub=fashion())
    assert (code, err) == (0, '')
    document = json.loads(out)
    assert [Path(p['path']).name for p in document['pictures']] == [f'{i}.png' for i in range(10)]
    assert [p['classes'][0]['index'] for p in document['pictures']] == list(range(10))
    assert TRACED == [(min(batch_size, 10), 32, 32, 3)]


def test_lines(run, greys):
    code, out, err = run(greys / '8.png', greys / '1.png', '--model', EMBEDDED, '--topk', 2, stub=fashion())
    first, name, second, *rest = out.splitlines()
    assert code == 0 and len(rest) == 3
    assert (first, rest[0]) == (str(greys / '8.png'), str(greys / '1.png'))
    assert name.startswith('  Bag 0.9') and rest[1].startswith('  Trouser 0.9')
    assert second.startswith('  Ankle boot 0.0') and rest[2].startswith('  T-shirt/top 0.0')


def test_json(run, greys):
    stub = Stub(num_classes=1000, pretrained_cfg=variants.PRETRAINED['resnet50d.a1_in1k'])
    code, out, _ = run(greys / '3.png', '--model', 'resnet50d.a1_in1k', '--json', '--test-size', stub=stub)
    document = json.loads(out)
    assert code == 0 and list(document) == ['model', 'checkpoint', 'data_config', 'pictures']
    assert document['model'] == 'resnet50d.a1_in1k' and document['checkpoint'] is None
    assert document['data_config']['input_size'] == [3, 288, 288] and TRACED == [(1, 288, 288, 3)]
    classes = document['pictures'][0]['classes']
    assert len(classes) == 5
    assert all(list(c) == ['index', 'name', 'synset', 'probability'] for c in classes)
    probabilities = [c['probability'] for c in classes]
    assert probabilities == sorted(probabilities, reverse=True) and 0.99 < sum(probabilities) <= 1.001


def test_imagenet_names_and_synsets(run, greys):
    class Samoyed(Stub):
        def __call__(self, x: jax.Array) -> jax.Array:
            return jax.nn.one_hot(jnp.full(len(x), 258), 1000) * 20

    jax.tree_util.register_static(Samoyed)
    stub = Samoyed(1000, pretrained_cfg=variants.PRETRAINED['tresnet_m.miil_in1k'])
    argv = (greys / '3.png', '--model', 'tresnet_m.miil_in1k', '--topk', 1)
    code, out, _ = run(*argv, stub=stub)
    assert (code, out) == (0, f'{greys / "3.png"}\n  Samoyed 1.0000\n')
    _, out, _ = run(*argv, '--json', stub=stub)
    assert json.loads(out)['pictures'][0]['classes'][0]['synset'] == 'n02111889'


def test_classes_without_names_and_more_classes_than_there_are(run, greys):
    stub = Stub(num_classes=3, pretrained_cfg=variants.PRETRAINED['test_resnet.r160_in1k'])
    code, out, _ = run(greys / '0.png', '--model', 'test_resnet', '--topk', 50, stub=stub)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ['0', '1', '2']


def test_softmax_is_float32(run, greys):
    argv = (greys / '4.png', '--model', EMBEDDED, '--topk', 10, '--json')
    _, out, _ = run(*argv, stub=fashion(dtype='bfloat16'))
    probabilities = [c['probability'] for c in json.loads(out)['pictures'][0]['classes']]
    assert abs(sum(probabilities) - 1) < 1e-6


def test_bad_images_are_named_and_skipped(run, greys):
    (greys / '2.png').write_bytes((greys / '2.png').read_bytes()[:60])
    (greys / '5.png').write_text('not an image')
    Image.new('L', (200_000, 1)).save(greys / 'thin.png')
    missing = greys / 'missing.jpg'
    argv = (greys, missing, '--model', EMBEDDED, '--topk', 1, '--batch-size', 4, '--json')
    code, out, err = run(*argv, stub=fashion())
    assert code == 1
    images = {Path(p['path']).name: p for p in json.loads(out)['pictures']}
    assert list(images) == [*(f'{i}.png' for i in range(10)), 'thin.png', 'missing.jpg']
    bad = ['2.png', '5.png', 'thin.png', 'missing.jpg']
    assert [name for name, p in images.items() if 'error' in p] == bad
    for name in bad:
        assert [line for line in err.splitlines() if str(greys / name) in line] == [images[name]['error']]
    good = {name: p['classes'][0]['index'] for name, p in images.items() if 'classes' in p}
    assert good == {f'{i}.png': i for i in range(10) if i not in (2, 5)}
    assert TRACED == [(4, 32, 32, 3)]


def test_nothing_but_bad_images(run, greys):
    plot = greys / 'sheet.png'
    argv = (greys / 'a.png', greys / 'b.png', '--model', EMBEDDED, '--plot', plot)
    code, out, err = run(*argv, stub=fashion())
    assert (code, out) == (1, '') and TRACED == []
    assert 'a.png' in err and 'b.png' in err and 'Traceback' not in err
    assert not plot.exists()


def test_plot(run, greys, monkeypatch):
    sheets = []
    monkeypatch.setattr(predict, 'SHEET_IMAGES', 3)
    monkeypatch.setattr(predict, 'contact_sheet', lambda *arguments: sheets.append(arguments))
    (greys / '1.png').write_text('not an image')
    code, _, _ = run(greys, '--model', EMBEDDED, '--plot', greys / 'sheet.png', stub=fashion())
    images, captions, path = sheets.pop()
    assert code == 1 and path == greys / 'sheet.png'
    assert [image.size for image in images] == [(20, 50), (22, 48), (23, 47)]
    assert [caption.split()[0] for caption in captions] == ['T-shirt/top', 'Pullover', 'Dress']
    assert all(len(caption.splitlines()) == 3 for caption in captions)


def test_plot_is_an_image(run, greys):
    assert run(greys, '--model', EMBEDDED, '--plot', greys / 'sheet.png', stub=fashion())[0] == 0
    with Image.open(greys / 'sheet.png') as sheet:
        assert sheet.format == 'PNG' and min(sheet.size) > 400


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--model', 'resnet50x'], "unknown architecture 'resnet50x'; did you mean resnet50d"),
        (['--model', 'resnet50d.a9_in1k'], "unknown tag 'resnet50d.a9_in1k'"),
        (['--model', 'resnet50d.a1_in1k'], 'resnet50d.a1_in1k'),
        (['--model', EMBEDDED, '--checkpoint', 'missing.safetensors'], 'missing.safetensors: no such file'),
        (['--model', EMBEDDED, '--plot', 'missing/sheet.png'], 'missing/sheet.png: cannot be written'),
        (['--model', EMBEDDED, '--plot', '.'], '--plot .: cannot be written'),
        (['--model', EMBEDDED, '--topk', 0], '--topk'),
        (['--model', EMBEDDED, '--batch-size', 0], '--batch-size'),
    ],
)
def test_mistakes_are_one_line_and_no_work(run, greys, argv, message):
    code, out, err = run(greys, *argv)
    assert (code, out) == (2, '')
    assert err.startswith('error: ') and message in err and err.count('\n') == 1


def test_broken_checkpoints(run, greys):
    for content in (b'', b'garbage, and not little of it'):
        (greys / 'a.safetensors').write_bytes(content)
        code, out, err = run(greys, '--model', EMBEDDED, '--checkpoint', greys / 'a.safetensors')
        assert (code, out) == (2, '')
        assert err.startswith('error: ') and 'a.safetensors' in err and 'Traceback' not in err


@pytest.mark.parametrize('stub', [fashion(in_chans=4), fashion(num_classes=0)])
def test_models_without_colours_or_classes(run, greys, stub):
    code, _, err = run(greys, '--model', EMBEDDED, stub=stub)
    assert code == 2 and 'cannot classify' in err


def test_no_images(run, tmp_path):
    for argv in ([], [tmp_path]):
        code, out, err = run(*argv, '--model', EMBEDDED)
        assert (code, out) == (2, '') and err.startswith('error: no images in ')


def test_the_command_line_itself_is_checked(run, capsys):
    for argument, code in ('--help', 0), ('--modle', 2):
        with pytest.raises(SystemExit) as caught:
            run(argument)
        assert caught.value.code == code
        captured = capsys.readouterr()
        assert '--model NAME' in (captured.err if code else captured.out)


def test_the_model_of_a_run_is_known(run, greys, monkeypatch):
    run_folder = greys / 'run'
    (run_folder / 'checkpoints').mkdir(parents=True)
    (run_folder / 'model.json').write_text(json.dumps({'format': 'tresnet_jax', 'architecture': 'test_tresnet'}))
    asked = []
    monkeypatch.setattr(predict, 'load_classifier', lambda flags: asked.append(flags.model) or fashion())
    assert run(greys / '3.png', '--checkpoint', run_folder)[0] == 0
    assert run(greys / '3.png', '--checkpoint', run_folder, '--model', 'test_resnet')[0] == 0
    assert asked == ['test_tresnet', 'test_resnet']


def test_the_model_must_be_known(run, greys):
    expected = 'error: which model? give --model NAME, or --checkpoint RUN\n'
    assert run(greys / '3.png') == (2, '', expected)
    assert run(greys / '3.png', '--checkpoint', greys / '3.png') == (2, '', expected)


def test_top():
    probabilities = np.array([0.2, 0.3, 0.2, 0.3], np.float32)
    assert predict.top(probabilities, 3) == [1, 3, 0]
    assert predict.top(probabilities, 9) == [1, 3, 0, 2]


@pytest.mark.parametrize('name', [EMBEDDED, 'test_tresnet.fashion_mnist'])
def test_embedded_model(run, name):
    """The probabilities are those of the logits that timm gave for these images."""
    with safe_open(IMAGES.parent / f'{name}.golden.safetensors', 'np') as golden:
        names = json.loads(golden.metadata()['pictures'])
        expected = dict(zip(names, softmax(golden.get_tensor('logits')), strict=True))
    code, out, _ = run(IMAGES, '--model', name, '--topk', 10, '--json', '--batch-size', 4)
    images = json.loads(out)['pictures']
    assert code == 0 and len(images) == 10
    for image in images:
        probabilities = {c['index']: c['probability'] for c in image['classes']}
        row = expected[Path(image['path']).name]
        assert np.allclose([probabilities[i] for i in range(10)], row, rtol=1e-4, atol=1e-6)


def test_batch_norm_is_folded(run, monkeypatch):
    models, original = [], predict.predict
    monkeypatch.setattr(predict, 'predict', lambda model, *rest: models.append(model) or original(model, *rest))
    assert run(IMAGES / '8_bag.png', '--model', EMBEDDED)[0] == 0
    assert models[0].folded


def test_white_of_a_run(run, tmp_path):
    """That of the run's images, unless the flag gives another."""
    Image.fromarray(np.full((20, 20), 4095, np.uint16)).save(tmp_path / 'white.png')
    (tmp_path / 'run' / CHECKPOINTS).mkdir(parents=True)
    save_config(TrainConfig(max_value=4095), tmp_path / 'run')
    argv = (tmp_path / 'white.png', '--model', EMBEDDED, '--checkpoint', tmp_path / 'run', '--topk', 1)
    for flags, name in (((), 'Ankle boot'), (('--max-value', 65535), 'Trouser')):
        code, out, err = run(*argv, *flags, stub=fashion())
        assert (code, err) == (0, '') and name in out
    (tmp_path / 'run' / CONFIG_FILE).unlink()  # a run that only its model.json describes
    assert 'Trouser' in run(*argv, stub=fashion())[1]


def test_checkpoint(run):
    path = IMAGES.parent / f'{EMBEDDED}.safetensors'
    _, without, _ = run(IMAGES, '--model', EMBEDDED)
    code, out, _ = run(IMAGES, '--model', EMBEDDED, '--checkpoint', path)
    assert code == 0 and out == without


def test_script():
    """The script runs, and a reader that leaves early, such as `head`, makes no noise."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, 'scripts/predict.py', str(IMAGES), '--model', EMBEDDED]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, '')
