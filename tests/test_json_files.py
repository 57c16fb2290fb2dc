"""JSON that comes with weights can be anything: a device, a pipe, endless, deep."""

import os
from pathlib import Path

import pytest

import convert
import tresnet_jax
from tresnet_jax import files
from tresnet_jax.data.real_labels import read_real_labels
from tresnet_jax.errors import ConversionError, DataError, HubError, TrainingError
from tresnet_jax.training.class_weights import read_class_stats


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'cannot be read as JSON: Expecting value'),
        (b'\xff\xfe', 'cannot be read as JSON: '),
        (b'[' * 100_000, 'cannot be read as JSON: '),
        (b'1' * 5000, 'cannot be read as JSON: '),
        (b'"' + b'a' * 2**10 + b'"', 'too large; expected at most'),
    ],
)
def test_content(tmp_path, monkeypatch, content, message):
    if message.startswith('too large'):
        monkeypatch.setattr(files, 'LARGEST_JSON', 2**10)
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(ConversionError, match=f'a.json: {message}'):
        files.read_json(tmp_path / 'a.json')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no pipes in folders')
def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'device').symlink_to('/dev/zero')
    for name in ('pipe', 'device', '.'):
        with pytest.raises(ConversionError, match='not a regular file; expected JSON'):
            files.read_json(tmp_path / name)
    with pytest.raises(ConversionError, match='cannot be read as JSON: No such file'):
        files.read_json(tmp_path / 'missing')


@pytest.mark.parametrize(
    'read, error', [(read_class_stats, TrainingError), (lambda path: read_real_labels(path, 3), DataError)]
)
def test_every_reader_refuses_it_in_its_own_words(tmp_path, read, error):
    (tmp_path / 'a\n.json').write_text('{')
    (tmp_path / 'device').symlink_to('/dev/zero')
    for name, message in (
        ('a\n.json', r'/a\\n.json: cannot be read as JSON: Expecting'),
        ('device', 'not a regular file'),
    ):
        with pytest.raises(error, match=message) as caught:
            read(tmp_path / name)
        assert type(caught.value) is error and '\n' not in str(caught.value)


def test_names_that_are_too_long_are_missing_files(tmp_path):
    long = 'a' * 5000
    with pytest.raises(ConversionError, match='a: no such file'):
        convert.read(Path(long))
    with pytest.raises(HubError, match='a: no such folder'):
        tresnet_jax.create_model(f'local-dir:{long}')
    index = tmp_path / 'model.safetensors.index.json'
    for name, message in (
        (long, 'expected the name of a file'),
        ('\u4e00' * 199, 'is missing'),
    ):
        index.write_text(f'{{"weight_map": {{"a": "{name}"}}}}', encoding='utf-8')
        with pytest.raises(ConversionError, match=message):
            convert.read(index)
