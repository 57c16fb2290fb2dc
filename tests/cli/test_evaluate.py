"""``evaluate.py``: the figures, the published ones beside them, classes by name, several hosts, and what goes wrong."""

import csv
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import convert
import tresnet_jax
from tests.helpers.paths import ROOT
from tests.helpers.processes import free_port
from tests.helpers.runs import CONFIG, make_run
from tresnet_jax.cli import evaluate as evaluate_command
from tresnet_jax.cli.evaluate import (
    choose_outputs,
    choose_test_set,
    figure,
    main,
    published_for,
)
from tresnet_jax.cli.inputs import match_inputs
from tresnet_jax.cli.measuring import with_labels, with_outputs
from tresnet_jax.cli.results import read_results, write_result
from tresnet_jax.data.examples import Unreadable
from tresnet_jax.data.sources import open_source
from tresnet_jax.data.transforms import create_transform, resolve_data_config
from tresnet_jax.errors import DataError, TrainingError
from tresnet_jax.published import TEST_SETS
from tresnet_jax.training.evaluate import EvalResult
from tresnet_jax.training.run_config import save_config
from tresnet_jax.variants import PRETRAINED, PublishedAccuracy

NAME, DATA = 'test_resnet.fashion_mnist', 'embedded:fashion_mnist'
PLAIN = ('--model', NAME, '--pretrained', '--data', DATA)
SPRINGER, TENCH = 'n02102040', 'n01440764'  # classes 217 and 0 of ImageNet


@pytest.fixture
def evaluate(capsys):
    """Run the command line; gives exit code, standard output, standard error."""

    def evaluate(*arguments) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return evaluate


@pytest.fixture(scope='module')
def logits() -> np.ndarray:
    """Of the embedded test images, prepared one by one on the host."""
    model, source = tresnet_jax.create_model(NAME, pretrained=True), open_source(DATA, 'test')
    transform = create_transform(**resolve_data_config(model))
    images = [Image.fromarray(source[i]['image'][..., 0]).convert('RGB') for i in range(len(source))]
    x = np.stack([transform(image) for image in images])
    return np.asarray(jax.jit(lambda model, x: model(x))(model, x))


def expected(logits: np.ndarray) -> dict[str, float]:
    labels = open_source(DATA, 'test').labels
    ranks = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(1)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return {'top1': (ranks < 1).mean(), 'top5': (ranks < 5).mean(), 'loss': losses.mean()}


def test_figures(evaluate, logits, tmp_path):
    """500 images on 4 devices, the last batch of 48 not full; with a report."""
    code, out, err = evaluate(*PLAIN, '--batch-size', 48, '--json', '--report', tmp_path)
    found, wanted = json.loads(out), expected(logits)
    assert (code, err) == (0, '')
    assert (found['model'], found['data']) == (NAME, 'embedded:fashion_mnist test')
    assert found['pictures'] == found['count'] == 500
    assert found['loss'] == pytest.approx(wanted['loss'], rel=1e-4)
    for name in ('top1', 'top5'):
        share = wanted[name]
        assert found[name]['value'] == pytest.approx(100 * share, abs=1e-9)
        assert found[name]['error'] == pytest.approx(100 * math.sqrt(share * (1 - share) / 500))
    assert (found['top1']['published'], found['top5']['published']) == (91.99, 99.94)
    sigma = 100 * math.sqrt(0.9199 * 0.0801 / 500)
    assert found['top1']['distance'] == pytest.approx((100 * wanted['top1'] - 91.99) / sigma)
    with (tmp_path / 'confusion.csv').open(newline='') as file:
        rows = list(csv.reader(file))[1:]
    expected_matrix = np.zeros((10, 10), int)
    np.add.at(expected_matrix, (open_source(DATA, 'test').labels, logits.argmax(1)), 1)
    assert [[int(number) for number in row[1:]] for row in rows] == expected_matrix.tolist()
    assert [row[0] for row in rows] == [*tresnet_jax.class_names(NAME)]


ACCURACY = EvalResult(loss=0.5, top1=0.78, top5=0.94, count=50_000)  # standard errors: 0.19 and 0.11 %


@pytest.mark.parametrize(
    'published, check, code',
    [
        (PublishedAccuracy(32, 78.5, 94.0), True, 0),  # 2.7 standard errors
        (PublishedAccuracy(32, 78.6, 94.0), True, 1),  # 3.3
        (PublishedAccuracy(32, 77.4, 94.0), True, 1),
        (PublishedAccuracy(32, 78.0, 94.4), True, 1),
        (PublishedAccuracy(32, 60.0, 70.0), False, 0),
        (None, False, 0),
    ],
)
def test_check(evaluate, monkeypatch, published, check, code):
    monkeypatch.setattr(evaluate_command, 'measure', lambda *_: ACCURACY)
    monkeypatch.setattr(evaluate_command, 'published_for', lambda *_: published)
    found, out, err = evaluate(*PLAIN, *(['--check'] if check else []))
    assert (found, err) == (code, '')
    assert 'top-1     78.000 % ± 0.19' in out and 'top-5     94.000 % ± 0.11' in out
    assert ('published' in out) == (published is not None)


def test_distance_is_in_standard_errors_of_the_published_share():
    """So that a perfect score on few images is no certainty."""
    found = figure(EvalResult(0.1, 1.0, 1.0, 25), 1.0, 90.0)
    assert (found.error, found.distance) == (0.0, pytest.approx(10 / 6))


def test_nothing_to_check(evaluate, monkeypatch):
    monkeypatch.setattr(evaluate_command, 'measure', lambda *_: pytest.fail('evaluated in vain'))
    code, out, err = evaluate(*PLAIN, '--check', '--image-size', 40)
    assert (code, out) == (2, '') and err.startswith(f'error: --check: nothing is published for {NAME} at 40 x 40')
    assert '91.99 % at 32 pixels by default' in err


def inputs_of(name: str, *, named: bool = True, test_size: bool = False, classes: tuple[str, ...] = (), **changes):
    """What `load_inputs` returns, without a network."""
    row = PRETRAINED[name]
    model = SimpleNamespace(pretrained_cfg=row, num_classes=row.num_classes)
    names = classes or tuple(map(str, range(row.num_classes)))
    source = SimpleNamespace(name='data', class_names=names, num_classes=len(names))
    data_config = resolve_data_config(row, test_size) | changes
    run = {'own': False, 'semantic': False}
    return SimpleNamespace(name=name, named=named, model=model, source=source, data_config=data_config, **run)


@pytest.mark.parametrize('name', [name for name, row in PRETRAINED.items() if row.accuracies])
def test_every_published_figure_has_its_flags(name):
    row = PRETRAINED[name]
    found = {published_for(inputs_of(name)), published_for(inputs_of(name, test_size=True))}
    assert found == set(row.accuracies)
    assert published_for(inputs_of(name, named=False)) is None
    assert published_for(inputs_of(name, crop_pct=0.8)) is None
    assert published_for(inputs_of(name, input_size=(3, 96, 96))) is None
    assert published_for(inputs_of(name, classes=('a', 'b'))) is None


def test_images(evaluate):
    """Flags have priority over the values of the tag."""
    flags = ('--crop-mode', 'squash', '--interpolation', 'box', '--mean', 0.25, '--std', 0.5, 0.5, 0.25, '--json')
    code, out, _ = evaluate(*PLAIN, '--split', 'test[:8]', '--batch-size', 8, *flags)
    found = json.loads(out)
    assert code == 0 and found['data_config'] == {
        'input_size': [3, 32, 32], 'interpolation': 'box', 'mean': [0.25] * 3, 'std': [0.5, 0.5, 0.25],
        'crop_pct': 1.0, 'crop_mode': 'squash',
    }  # fmt: skip
    assert found['top1']['published'] is None
    code, _, err = evaluate(*PLAIN, '--interpolation', 'cubic')
    assert code == 2 and err.startswith('error: evaluation images: interpolation must be one of nearest, ')


@pytest.mark.parametrize('name', [name for name, row in PRETRAINED.items() if row.published('imagenet-a')])
@pytest.mark.parametrize('test_set', TEST_SETS)
def test_published_figures_of_other_test_sets(name, test_set):
    """Those of the default size and of the test size; each is a whole number of images."""
    row, images = PRETRAINED[name], TEST_SETS[test_set].images
    found = {published_for(inputs_of(name), test_set), published_for(inputs_of(name, test_size=True), test_set)}
    assert found == set(row.published(test_set)) and {a.size for a in found} == {a.size for a in row.accuracies}
    for accuracy in found:
        right = accuracy.top1 * images / 100
        assert abs(right - round(right)) < 0.0006 * images / 100 and accuracy.top5 is None


def test_all_tags_of_imagenet_have_figures_of_other_test_sets():
    assert {name for name, row in PRETRAINED.items() if row.num_classes == 1000} == {
        name for name, row in PRETRAINED.items() if row.published('imagenet-v2')
    }


@pytest.mark.parametrize(
    ('classes', 'images', 'flags', 'message'),
    [
        (200, 7500, {'published': 'imagenet-a', 'valid_labels': True}, None),
        (200, 30, {'published': 'imagenet-r', 'valid_labels': True}, None),
        (1000, 10_000, {'published': 'imagenet-v2'}, None),
        (1000, 50_889, {'published': 'imagenet-sketch'}, None),
        (200, 7500, {'published': 'imagenet-a'}, 'compares 200 outputs, not 1000; give --valid-labels'),
        (1000, 7500, {'published': 'imagenet-a', 'valid_labels': True}, 'has 200 classes; data has 1000'),
        (200, 30_000, {'published': 'imagenet-a', 'valid_labels': True}, 'has 7,500 images; data has 30,000'),
        (1000, 50_000, {'published': 'imagenet-v2'}, 'has 10,000 images; data has 50,000'),
        (200, 10_000, {'published': 'imagenet-v2'}, 'has 1000 classes; data has 200'),
        (1000, 50_000, {'published': 'imagenet-real'}, 'imagenet-real, and no other test set, needs --real-labels'),
    ],
)
def test_the_test_set_is_named(classes, images, flags, message):
    inputs = inputs_of('resnet50d.a1_in1k', classes=tresnet_jax.labels.class_synsets(1000)[:classes])
    inputs.source = Sized(**vars(inputs.source), present=tuple(range(classes)), size=images)
    arguments = evaluate_command.EvaluateArguments(evaluate_command.InputFlags(), **flags)
    chosen = choose_outputs(inputs, valid_labels=arguments.valid_labels)
    if message is None:
        assert choose_test_set(arguments, inputs, chosen) == arguments.published
        assert choose_test_set(dataclasses.replace(arguments, published=None), inputs, chosen) is None
    else:
        with pytest.raises(TrainingError, match=f'^--published {arguments.published}: .*{message}'):
            choose_test_set(arguments, inputs, chosen)


def test_a_run_with_a_tree_of_classes():
    """Top-1 over all levels says little, and is not presented as the run's own metric."""
    inputs = inputs_of('resnet50d.a1_in1k')
    assert 'tree' not in choose_outputs(inputs, valid_labels=False).text
    inputs.semantic = True
    assert choose_outputs(inputs, valid_labels=False).text.endswith(f'; {evaluate_command.NO_TREE}')


class Sized(SimpleNamespace):
    """Data with a number of images."""

    def __len__(self) -> int:
        return self.size


def test_a_tag_without_published_figures():
    assert published_for(inputs_of('tresnet_m.miil_in21k')) is None


def test_classes_are_found_by_their_synsets():
    name = 'resnet50d.a1_in1k'
    assert match_inputs(inputs_of(name, classes=(TENCH, SPRINGER))).places.tolist() == [0, 217]
    everything = match_inputs(inputs_of(name, classes=tresnet_jax.labels.class_synsets(1000)))
    assert everything.places.tolist() == list(range(1000))  # the order that TFDS has, and sorted folders
    with pytest.raises(DataError, match='lacks 1 of 2 classes: n99999999'):
        match_inputs(inputs_of(name, classes=(TENCH, 'n99999999')))
    with pytest.raises(DataError, match='lacks 2 of 2 classes: cat, dog; expected names such as tench, '):
        match_inputs(inputs_of(name, classes=('cat', 'dog')))


def test_imagenet_v2_has_numbers_for_names():
    """Folders 0 to 999; sorted as text, 12 of them are at the place of their number."""
    names = sorted(map(str, range(1000)))
    match = match_inputs(inputs_of('resnet50d.a1_in1k', classes=tuple(names)))
    assert match.places.tolist() == [int(name) for name in names] and match.by == 'index'
    assert match.text.startswith('all 1000 classes, matched by index: 0 is tench, 1 is goldfish')


def imagenet_a(split: str) -> SimpleNamespace:
    """Return inputs whose data are 200 of ImageNet's classes, in sorted folders, as ImageNet-A and ImageNet-R have."""
    folder = pytest.importorskip('timm').__path__[0]
    indices = np.loadtxt(Path(folder) / 'data' / '_info' / f'imagenet_{split}_indices.txt', int)
    synsets = tresnet_jax.labels.class_synsets(1000)
    inputs = inputs_of('resnet50d.a1_in1k', classes=tuple(sorted(synsets[index] for index in indices)))
    inputs.source.present = tuple(range(200))
    inputs.indices = indices
    return inputs


@pytest.mark.parametrize('split', ['a', 'r'])
def test_valid_labels_cut_the_outputs_to_the_classes_present(split):
    """As timm's validate.py does with --valid-labels: output[:, valid_labels], and label k is line k of the list."""
    inputs = imagenet_a(split)
    logits = np.random.default_rng(0).standard_normal((40, 1000))
    labels = np.arange(40) * 5
    every, valid = (choose_outputs(inputs, valid_labels=valid) for valid in (False, True))
    found = np.asarray(with_outputs(lambda x: x, valid.outputs)(logits))
    assert np.array_equal(found, logits[:, inputs.indices].astype(found.dtype))
    step = with_labels(lambda variables, batch: batch['label'], valid.labels)
    assert np.array_equal(step(None, {'label': labels}), labels)
    assert valid.text.startswith('200 of 1000 classes, matched by synset')
    assert valid.text.endswith('outputs of 200 classes compared')
    assert every.outputs is None
    step = with_labels(lambda variables, batch: batch['label'], every.labels)
    assert np.array_equal(step(None, {'label': labels}), inputs.indices[labels])


def test_valid_labels_of_a_split_with_fewer_classes():
    inputs = inputs_of('resnet50d.a1_in1k', classes=('7', '3', '900'))
    inputs.source.present = (0, 2)  # no images of class 3
    classes = choose_outputs(inputs, valid_labels=True)
    assert classes.outputs.tolist() == [7, 900] and classes.labels[[0, 2]].tolist() == [0, 1]


@pytest.fixture
def dogs(tmp_path) -> tuple[Path, Path]:
    """Three springers, one tench, and weights that take every image for a springer and then for a tench."""
    for folder, number in ((SPRINGER, 3), (TENCH, 1)):
        (tmp_path / 'dogs' / folder).mkdir(parents=True)
        for i in range(number):
            Image.new('RGB', (40, 50), (i, 50, 90)).save(tmp_path / 'dogs' / folder / f'{i}.png')
    model = tresnet_jax.create_model('test_resnet', num_classes=1000)
    tensors = convert.to_torch(model)
    tensors['fc.weight'] *= 0
    tensors['fc.bias'] = np.zeros(1000, np.float32)
    tensors['fc.bias'][[217, 5, 6, 7, 0]] = 5, 4, 3, 2, 1
    convert.save_torch(tmp_path / 'springer.safetensors', tensors)
    return tmp_path / 'dogs', tmp_path / 'springer.safetensors'


def test_a_part_of_imagenet(evaluate, dogs):
    """A folder without splits is evaluated whole, its classes found by name; a damaged image is not counted."""
    folder, weights = dogs
    (folder / TENCH / 'b.png').write_bytes(b'no image')
    flags = ('--model', 'test_resnet', '--checkpoint', weights, '--data', f'folder:{folder}', '--image-size', 32)
    code, out, _ = evaluate(*flags, '--batch-size', 4, '--max-unreadable', 0.5)
    assert code == 0
    assert '4 images; not counted: 1 unreadable image\n' in out
    assert 'top-1     75.000 %' in out and 'top-5     100.000 %' in out
    code, out, err = evaluate(*flags, '--batch-size', 4)
    assert (code, out) == (2, '') and err.startswith('error: ') and 'b.png' in err and err.count('\n') == 1


@pytest.mark.parametrize('labels', [(), ('--task', 'multilabel')])
def test_unreadable_images_of_all_processes(evaluate, dogs, monkeypatch, labels):
    """Each process counts its own images; together they must keep to the share too."""
    folder, weights = dogs
    (folder / TENCH / 'b.png').write_bytes(b'no image')
    table = folder / 'table.csv'
    rows = [f'{path.parent.name}/{path.name},{path.parent.name}\n' for path in folder.glob('*/*')]
    table.write_text(''.join(['path,label\n', *rows]))
    monkeypatch.setattr(Unreadable, '_record', lambda self, new: None)  # as if other processes had read it
    flags = ('--model', 'test_resnet', '--checkpoint', weights, '--image-size', 32, '--batch-size', 4, *labels)
    code, out, err = evaluate(*flags, '--data', f'csv:{table}')
    assert (code, out) == (2, '') and '1 of 5 images cannot be read, more than the allowed share of 0.01' in err
    assert evaluate(*flags, '--data', f'csv:{table}', '--max-unreadable', 0.2)[0] == 0


@pytest.fixture
def real(dogs) -> tuple[str, ...]:
    """Name the images as in ImageNet's validation split; return the flags that evaluate them with ReaL labels."""
    folder, weights = dogs
    for number, image in enumerate(sorted(folder.rglob('*.png')), 1):
        image.rename(image.with_name(f'ILSVRC2012_val_{number:08}.JPEG'))
    path = folder.parent / 'real.json'
    path.write_text('[[217], [0, 5], [], [9]]')
    data = ('--data', f'folder:{folder}', '--image-size', 32, '--batch-size', 4)
    return ('--model', 'test_resnet', '--checkpoint', weights, *data, '--real-labels', path)


def test_real_labels_and_results(evaluate, real, tmp_path):
    """Predicted is 217, then 5, 6, 7 and 0: one image right, one among the top 5, one without a label, one wrong."""
    results = tmp_path / 'results.csv'
    code, out, err = evaluate(*real, '--results', results)
    assert (code, err) == (0, '')
    assert '3 images; not counted: 1 image without a label\n' in out
    assert 'top-1     33.333 %' in out and 'top-5     66.667 %' in out
    row = 'test_resnet,33.3333,66.6667,66.6667,33.3333,0.47,32,0.95,bilinear'
    header = 'model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation'
    assert results.read_text() == f'{header}\n{row}\n'
    write_result(results, read_results(results)[0])
    assert results.read_text() == f'{header}\n{row}\n{row}\n'
    assert [read['crop_pct'] for read in read_results(results)] == ['0.95', '0.95']


@pytest.mark.parametrize(
    ('labels', 'flags', 'message'),
    [
        ('[[1]]', (), 'ReaL labels belong to file names such as ILSVRC2012_val_00000001.JPEG, up to number 1; got '),
        ('[1]', (), 'real.json: expected a list of lists of class indices from 0 to 999; number 1 is 1'),
        ('[[], [1000]]', (), 'number 2 is [1000]'),
        ('[[true]]', (), 'number 1 is [True]'),
        ('["a\\n"]', (), r'number 1 is a\n'),
        ('{}', (), 'expected a list of lists of class indices from 0 to 999, got dict'),
        ('[', (), 'real.json: cannot be read as JSON'),
        ('[[1]]', ('--valid-labels',), '--real-labels are of all classes; leave out --valid-labels'),
        ('[[1], [], [], []]', ('--published', 'imagenet-v2'), 'imagenet-real, and no other test set, needs'),
        ('[[1], [], [], []]', ('--published', 'imagenet-real'), '--published imagenet-real: has 1000 classes; folder:'),
        ('[[1], [], [], []]', ('--results', '/none/a.csv'), '/none/a.csv: the folder /none does not exist'),
        ('[[1], [], [], []]', ('--results', __file__), 'test_evaluate.py: expected the columns model,top1,'),
    ],
)
def test_wrong_real_labels_and_results(evaluate, real, monkeypatch, labels, flags, message):
    monkeypatch.setattr(evaluate_command, 'measure', lambda *_: pytest.fail('evaluated in vain'))
    real[-1].write_text(labels)
    code, out, err = evaluate(*real, *flags)
    assert (code, out) == (2, '') and message in err and err.count('\n') == 1


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('runs') / 'run'
    config = dataclasses.replace(CONFIG, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
    make_run(folder, config, {3: 0.5})
    # The weights that training started from need not be there any more.
    save_config(dataclasses.replace(config, model='local-dir:gone'), folder)
    return folder


def test_a_run_on_its_own_data(evaluate, run, logits):
    """Its averaged weights, on its own split of its own data, prepared as it was trained."""
    code, out, _ = evaluate('--checkpoint', run, '--json', '--batch-size', 40)
    found = json.loads(out)
    right = logits[:40].argmax(1) == open_source(DATA, 'test[:40]').labels
    assert (code, found['data'], found['count']) == (0, 'embedded:fashion_mnist test[:40]', 40)
    assert found['top1']['value'] == pytest.approx(100 * right.mean()) and found['top1']['published'] is None
    assert (found['data_config']['mean'], found['data_config']['crop_pct']) == ([0.5] * 3, 1.0)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((), 'which model? give --model NAME, or --checkpoint RUN'),
        (('--model', NAME, '--data', DATA), f'which weights of {NAME}? give either --pretrained or --checkpoint'),
        ((*PLAIN, '--checkpoint', 'a.safetensors'), 'give either --pretrained or --checkpoint'),
        (('--model', NAME, '--pretrained'), 'which images? give --data'),
        ((*PLAIN, '--batch-size', 6), '--batch-size 6 must be a multiple of 4 devices'),
        ((*PLAIN, '--image-size', 0), '--image-size must be positive, got 0'),
        ((*PLAIN, '--split', 'extra'), "no split 'extra'"),
        ((*PLAIN, '--multilabel-threshold', 0.3), '--multilabel-threshold: for --task multilabel, not for one class'),
        (('--model', 'resnet50x', *PLAIN[2:]), "unknown architecture 'resnet50x'"),
        (('--model', NAME, '--checkpoint', 'a.safetensors', '--data', DATA), 'a.safetensors: no such file'),
        (('--checkpoint', '.'), '.: not the folder of a training run; which model? give --model NAME'),
        (('--model', NAME, '--checkpoint', '.', '--data', DATA), '.: not a file; give the checkpoint itself'),
        ((*PLAIN, '--num-processes', 2), 'also needs --coordinator, --process-id'),
    ],
)
def test_mistakes_are_one_line(evaluate, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = evaluate(*arguments)
    assert (code, out) == (2, '')
    assert err.startswith('error: ') and message in err and err.count('\n') == 1


def test_other_classes(evaluate, dogs):
    folder, weights = dogs
    (folder / TENCH).rename(folder / 'fish')
    flags = ('--model', 'test_resnet', '--checkpoint', weights, '--data', f'folder:{folder}')
    code, _, err = evaluate(*flags, '--image-size', 32)
    assert code == 2 and 'lacks 1 of 2 classes: fish; expected names such as' in err


@pytest.mark.slow
def test_two_processes(evaluate):
    """Two processes with two devices each: the same figures, said once."""
    command = [sys.executable, 'scripts/evaluate.py', *PLAIN, '--devices', '2', '--batch-size', '48', '--json']
    hosts = ['--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', '2', '--process-id']
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    processes = [subprocess.Popen([*command, *hosts, str(i)], cwd=ROOT, **pipes) for i in range(2)]
    (first, _), (second, _) = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    document = json.loads(first[first.index('{') :])  # gloo prints a line of its own
    alone = json.loads(evaluate(*PLAIN, '--batch-size', 48, '--json')[1])
    assert '{' not in second
    assert document.pop('loss') == pytest.approx(alone.pop('loss'), rel=1e-6)
    assert document == alone
