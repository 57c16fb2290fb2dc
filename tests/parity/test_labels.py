"""Our class names against those in timm's package."""

from timm.data.imagenet_info import ImageNetInfo

from tresnet_jax import labels


def test_the_names_of_imagenet1k():
    info = ImageNetInfo('imagenet-1k')
    assert labels.class_synsets(1000) == tuple(info.label_names())
    # The model cards use the first of WordNet's names.
    assert labels.class_names(1000) == tuple(d.split(', ')[0] for d in info.label_descriptions())


def test_the_names_of_imagenet21k_miil():
    info = ImageNetInfo('imagenet-21k-miil')
    assert labels.class_synsets(11221) == tuple(info.label_names())
    assert labels.class_names(11221) == tuple(info.label_descriptions())
