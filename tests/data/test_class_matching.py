"""Classes of a data set among those of a model: by name, by synset, by number, or refused."""

import pytest

from tresnet_jax.data.class_matching import match_classes, match_names, other_order
from tresnet_jax.errors import DataError
from tresnet_jax.labels import FASHION_MNIST, class_names, class_synsets


def match(names, model_names=FASHION_MNIST, synsets=None, num_classes=None):
    return match_classes(names, model_names, synsets, num_classes or len(model_names), 'folder:a val', 'model')


def refuse(*arguments, **options) -> str:
    with pytest.raises(DataError) as caught:
        match(*arguments, **options)
    message = str(caught.value)
    assert message.startswith('folder:a val: ') and '\n' not in message
    return message


@pytest.mark.parametrize(
    ('names', 'places'),
    [
        (FASHION_MNIST, [*range(10)]),
        (sorted(FASHION_MNIST), [9, 8, 4, 3, 2, 5, 6, 7, 0, 1]),  # in another order
        (('Bag', 'Coat'), [8, 4]),  # fewer
        (('t-shirt_TOP', 'ankle boot', 'SNEAKER'), [0, 9, 7]),
        (('TShirt top', 'Ankle-Boot', 'dress'), [0, 9, 3]),
    ],
)
def test_by_name(names, places):
    found = match(names)
    assert found.places.tolist() == places and found.by == 'name' and found.places.dtype == 'int32'


def test_what_was_matched_is_told():
    assert match(FASHION_MNIST).text == 'all 10 classes, matched by name'
    assert match(('Bag', 'ankle_boot')).text == '2 of 10 classes, matched by name: ankle_boot is Ankle boot'
    assert match(('2', '0')).text == '2 of 10 classes, matched by index: 2 is Pullover, 0 is T-shirt/top'
    assert match(tuple('abc'), None, num_classes=3).text == (
        'all 3 classes, matched by order, because the model has no class names'
    )


def test_the_same_name_wins_over_a_similar_one():
    assert match(('a b', 'A_B'), ('A_B', 'a b', 'c')).places.tolist() == [1, 0]
    assert 'the class AB may be one of several of model: A_B (0) and a b (1)' in refuse(('AB',), ('A_B', 'a b', 'c'))


def test_both_unicode_forms_are_one_name():
    assert match(('cafe\u0301', 'STRASSE'), ('tea', 'caf\u00e9', 'stra\u00dfe')).places.tolist() == [1, 2]


def test_by_synset():
    names, synsets = class_names(1000), class_synsets(1000)
    found = match(('n02102040', 'n01440764'), names, synsets)
    assert found.places.tolist() == [217, 0] and found.by == 'synset'
    mixed = match(('Golden_Retriever', 'n01440764'), names, synsets)
    assert mixed.places.tolist() == [207, 0] and mixed.by == 'synset and name'
    assert 'lacks 1 of 2 classes: n99999999' in refuse(('n99999999', 'n01440764'), names, synsets)
    # The trained names of a run may be synsets.
    assert match(('n3', 'n1'), ('n1', 'n2', 'n3'), ('n1', 'n2', 'n3')).places.tolist() == [2, 0]


def test_repeated_names_of_a_model():
    names = class_names(1000)  # 'crane' is a bird and a machine
    assert match(names, names, class_synsets(1000)).places.tolist() == [*range(1000)]
    assert 'the class crane may be one of several of model: crane (134) and crane (517)' in refuse(('crane',), names)


def test_by_index():
    assert match(('10', '2', '007'), None, num_classes=11).places.tolist() == [10, 2, 7]
    assert match(('1', '0'), class_names(1000)).by == 'index'
    assert 'numbers up to 10, but the indices of the classes of model go from 0 to 9' in refuse(('1', '10'))
    assert 'the classes 1 and 01 are the same class of model, number 1' in refuse(('1', '01'))


def test_numbers_that_are_names():
    """A model trained on folders 1 to 5: class 0 is '1'."""
    model = ('1', '2', '3', '4', '5')
    assert match(('5', '1'), model).places.tolist() == [4, 0]
    assert 'Are they names, or class indices?' in refuse(('0', '1'), model)
    assert match(('01', '00'), ('0', '1', '2')).places.tolist() == [1, 0]


def test_a_name_that_matches_nothing():
    message = refuse(('Bag', 'Hat', '3'))
    assert 'model lacks 2 of 3 classes: Hat, 3; expected names such as T-shirt/top, Trouser' in message
    assert 'class indices from 0 to 9' in message
    assert 'has 2 classes, but model has 3 without names' in refuse(('a', 'b'), None, num_classes=3)


def test_two_classes_that_are_one():
    assert 'the classes Bag and bag are the same class of model, number 8' in refuse(('Bag', 'bag'))


def test_missing_names_are_listed():
    assert match_names(('b', 'x', 'A'), ('a', 'b'), 'here', 'there') == ([1, -1, 0], ['x'])


@pytest.mark.parametrize(
    ('listed', 'found'),
    [
        (['crane', 'dog', 'crane'], None),
        (['crane', 'dog', 'crane', 'elk'], None),
        (['a', 'b', 'c'], None),
        (None, None),
        (['dog', 'crane', 'crane'], 'crane is class 0 and 2 in photos, 1 and 2 in the file'),
        (['crane', 'dog', 'crane', 'dog'], 'dog is class 1 in photos, 1 and 3 in the file'),
        (['crane', 'dog'], 'crane is class 0 and 2 in photos, 0 in the file'),
    ],
)
def test_the_order_of_a_file(listed, found):
    """A name may repeat; names that the file lacks are of another kind."""
    assert other_order(('crane', 'dog', 'crane'), listed, 'photos') == found
