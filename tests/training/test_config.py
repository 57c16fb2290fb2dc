"""Wrong values of a configuration, in config.json and as flags: one line that says where, what and what instead."""

import json

import pytest

from tresnet_jax.checkpoints.run import CHECKPOINTS
from tresnet_jax.cli import evaluate, train
from tresnet_jax.errors import TrainingError
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.run_config import CONFIG_FILE, load_config

# Field, value as JSON, and the message after the name of the field.
WRONG = [
    ('epochs', '0', 'must be positive, got 0'),
    ('epochs', 'NaN', 'must be a number, got NaN'),
    ('epochs', '"many"', 'must be a number, got "many"'),
    ('steps', 'true', 'must be a whole number of at most 2147483647, got true'),
    ('steps', '0', 'must be positive, got 0'),
    ('batch_size', '-8', 'must be positive, got -8'),
    ('batch_size', '1e3', 'must be a whole number of at most 2147483647, got 1000.0'),
    ('val_batch_size', '0', 'must be positive, got 0'),
    ('seed', '-1', 'must be at least 0, got -1'),
    ('num_classes', '0', 'must be positive, got 0'),
    ('pct_start', '1.5', 'must be between 0 and 1, got 1.5'),
    ('div_factor', '0', 'must be positive, got 0'),
    ('final_div_factor', '0', 'must be positive, got 0'),
    ('decay_epochs', '0', 'must be positive, got 0'),
    ('decay_rate', '-0.1', 'must be positive, got -0.1'),
    ('warmup_epochs', '-1', 'must be at least 0, got -1'),
    ('min_lr', '-1', 'must be at least 0, got -1'),
    ('momentum', '1', 'must be at least 0 and less than 1, got 1'),
    ('lr', 'Infinity', 'must be a number, got Infinity'),
    ('std', '[0.5, 0, 0.5]', 'must be positive, got [0.5, 0, 0.5]'),
    ('color_jitter', '-1', 'must be at least 0, got -1'),
    ('drop_path', '1', 'must be at least 0 and less than 1, got 1'),
    ('freeze', '["layer9"]', 'must be one of backbone, stem, layer1, layer2, layer3, layer4, head, got ["layer9"]'),
]
# What a command line cannot say, or its parser refuses by itself.
ONLY_JSON = [
    ('model', 'null', 'must be a text, got null'),
    ('lr', '[1]', 'must be a number, got [1]'),
    ('in_chans', '[1, 2]', 'must be a whole number of at most 2147483647, got [1, 2]'),
    ('mean', '{"r": 1}', 'must be a list of numbers, got {"r": 1}'),
    ('image_size', '[1, 2, 3]', 'must be a whole number of at most 2147483647 or 2 whole numbers, got [1, 2, 3]'),
    ('remat', '1', 'must be true or false, got 1'),
    ('sched', '"cosin"', 'must be one of cosine, one_cycle, step, multistep, poly, wsd, constant, got "cosin"'),
    ('data_dir', '3', 'must be a path, got 3'),
    ('batch_size', '4294967296', 'must be a whole number of at most 2147483647, got 4294967296'),
]


def flags_of(field: str, text: str) -> list[str]:
    value = json.loads(text)
    return [f'--{field.replace("_", "-")}', *map(str, value if isinstance(value, list) else [value])]


@pytest.mark.parametrize('field, text, message', WRONG + ONLY_JSON)
def test_config_file(field, text, message, tmp_path, capsys):
    """Before anything starts, and nothing is written."""
    file = tmp_path / CONFIG_FILE
    file.write_text(f'{{"{field}": {text}}}')
    assert train.main(['--workdir', str(tmp_path)]) == 2
    assert capsys.readouterr().err == f'error: {file}: {field} {message}\n'
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize('field, text, message', [row for row in WRONG if row[1] not in ('"many"', 'true', '1e3')])
def test_command_line(field, text, message, tmp_path, capsys):
    workdir = tmp_path / 'run'
    assert train.main(['--workdir', str(workdir), *flags_of(field, text)]) == 2
    error = capsys.readouterr().err
    flag, said = f'--{field.replace("_", "-")}', message.partition(', got ')[0]
    assert error.startswith(f'error: {flag} {said}, got ') and error.count('\n') == 1
    assert not workdir.exists()


@pytest.mark.parametrize('freeze', [('backbone', 'head'), ('stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head')])
def test_everything_frozen(freeze):
    with pytest.raises(TrainingError, match=f'--freeze {" ".join(freeze)}: nothing is left to train'):
        TrainConfig(freeze=freeze).check()
    TrainConfig(freeze=freeze[:-1]).check()
    TrainConfig(freeze=freeze, kd_model_name='resnet18d', kd_distill_type='feature').check()  # the projection is left


@pytest.mark.parametrize(
    'text, message',
    [
        ('{', 'not the configuration of a run'),
        ('[' * 100000, 'not the configuration of a run'),
        ('[]', 'expected a JSON object, got list'),
        ('{"speed": 3, "Lr": 1}', "unknown keys 'Lr', 'speed'"),
        ('\udcff', 'not the configuration of a run'),
        ('{"warmup_epochs": "\\u009b31m"}', r'warmup_epochs must be a number, got "\x9b31m"'),
    ],
)
def test_not_a_configuration(text, message, tmp_path):
    (tmp_path / CONFIG_FILE).write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(TrainingError) as error:
        load_config(tmp_path)
    assert str(error.value).startswith(f'{tmp_path / CONFIG_FILE}: ') and message in str(error.value)
    assert '\n' not in str(error.value)


def test_other_flags_than_the_run_has(tmp_path, capsys):
    """The flags of the run are shown as flags: no 'None', no 'True'."""
    (tmp_path / CONFIG_FILE).write_text('{"remat": true, "freeze": ["stem", "layer1"]}')
    (tmp_path / CHECKPOINTS / '3').mkdir(parents=True)
    flags = ['--clip-grad', '1', '--no-remat', '--freeze', 'stem', '--no-sync-bn']
    assert train.main(['--workdir', str(tmp_path), *flags]) == 2
    expected = f'error: {tmp_path} holds a run with --sync-bn, --remat, no --clip-grad, --freeze stem layer1; to resume'
    assert capsys.readouterr().err.startswith(expected)


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--amp'], "--amp is a flag of timm's: give --dtype bfloat16"),
        (['--lr', '0.1', '--img_size=224'], "--img-size is a flag of timm's: give --image-size"),
        (['-b', '64'], "-b is a flag of timm's: give --batch-size, which is the total over all devices"),
        (['--recount', '2'], "--recount is a flag of timm's: has no counterpart here; leave it out"),
        (['/data'], '/data: for a folder of images, give --data folder:/data'),
    ],
)
@pytest.mark.parametrize('program', [train, evaluate])
def test_flags_of_timm(program, flags, message, tmp_path, capsys):
    if flags[0] == '--recount' and program is evaluate:
        flags, message = ['--metrics-avg', 'macro'], message.replace('--recount', '--metrics-avg')
    assert program.main([*flags, '--workdir' if program is train else '--checkpoint', str(tmp_path / 'run')]) == 2
    assert capsys.readouterr().err == f'error: {message}\n'


def test_a_folder_without_data(tmp_path, capsys):
    """timm's --data-dir is the data; here the run would train on the images of the package."""
    assert train.main(['--workdir', str(tmp_path / 'run'), '--data-dir', str(tmp_path)]) == 2
    expected = f'error: --data-dir {tmp_path}: for a --data with files, not for --data embedded:fashion_mnist\n'
    assert capsys.readouterr().err == expected


def test_hosts(capsys, tmp_path):
    assert train.main(['--workdir', str(tmp_path / 'run'), '--num-processes', '0']) == 2
    assert capsys.readouterr().err == 'error: --num-processes must be positive, got 0\n'


def test_defaults_are_options():
    TrainConfig().check()
