"""Class names and synsets: the right table for each source, and the right row for each class."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tresnet_jax import labels, variants


def model(num_classes: int, name: str | None) -> SimpleNamespace:
    config = variants.PRETRAINED[name] if name else None
    return SimpleNamespace(num_classes=num_classes, pretrained_cfg=config)


def test_imagenets_names_are_the_model_cards():
    names = labels.class_names('tresnet_m')
    assert names is not None and len(names) == 1000
    assert (names[0], names[999]) == ('tench', 'toilet tissue')
    # "prints class names and probabilities like: [('Samoyed', ...), ('Pomeranian', ...), ...]"
    assert names[258:262] == ('Samoyed', 'Pomeranian', 'chow', 'keeshond')
    assert (names[248], names[270]) == ('Eskimo dog', 'white wolf')


def test_the_names_and_synsets_of_miils_imagenet21k():
    names, synsets = labels.class_names('tresnet_m.miil_in21k'), labels.class_synsets('tresnet_m.miil_in21k')
    assert names is not None and synsets is not None and len(names) == len(synsets) == 11221
    assert (synsets[0], names[0]) == ('n00005787', 'benthos')
    assert names[2] == 'person, individual, someone, somebody, mortal, soul'
    assert names[synsets.index('n02111889')] == 'Samoyed, Samoyede'


@pytest.mark.parametrize(('count', 'first'), [(1000, 'n01440764'), (11221, 'n00005787')])
def test_synsets_are_distinct_and_in_order(count, first):
    synsets = labels.class_synsets(count)
    assert synsets is not None and len(set(synsets)) == count
    assert list(synsets) == sorted(synsets) and synsets[0] == first


def test_every_pretrained_tag_has_a_name_for_each_class():
    for name, row in variants.PRETRAINED.items():
        names = labels.class_names(name)
        assert names is not None and len(names) == row.num_classes, name
        assert all(n and n == n.strip() and '\t' not in n for n in names), name
        assert labels.class_names(row) == names


def test_the_names_of_fashion_mnist():
    for source in ('test_resnet.fashion_mnist', model(10, 'test_tresnet.fashion_mnist')):
        assert labels.class_names(source) == labels.FASHION_MNIST
        assert labels.class_synsets(source) is None


def test_a_model_with_another_classifier_is_identified_by_its_number_of_classes():
    assert labels.class_names(model(10, 'test_resnet.r160_in1k')) is None
    assert labels.class_synsets(model(10, 'test_resnet.r160_in1k')) is None
    assert labels.class_names(model(7, 'test_resnet.fashion_mnist')) is None
    assert labels.class_names(model(1000, 'tresnet_m.miil_in21k')) == labels.class_names(1000)
    assert labels.class_names(model(11221, None)) == labels.class_names(11221)


@pytest.mark.parametrize('source', [0, 10, 999, 21843])
def test_an_unknown_number_of_classes_has_no_names(source):
    assert labels.class_names(source) is None
    assert labels.class_synsets(source) is None


def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(ValueError, match='resnet50d'):
        labels.class_names('resnet50x')


def test_tables_are_read_only_when_needed():
    code = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: event == 'open' and opened.append(str(arguments[0])))
import tresnet_jax.labels
assert not any(path.endswith('.tsv') for path in opened), 'the import reads a table'
tresnet_jax.labels.class_names(1000)
assert [path[-14:] for path in opened if path.endswith('.tsv')] == ['imagenet1k.tsv']
"""
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('value', ['["cat"]', '[]', '["", "cat"]'])
def test_a_list_of_names_is_accepted(value):
    assert labels.are_names(json.loads(value))


@pytest.mark.parametrize('value', ['"cat"', '{"0": "cat"}', '["cat", 1]', '[["cat"]]', 'null'])
def test_other_values_are_not_lists_of_names(value):
    assert not labels.are_names(json.loads(value))
