"""Published accuracies on test sets of ImageNet other than its validation split.

The top-1 accuracies are those of timm's result files (https://github.com/huggingface/pytorch-image-models/tree/main/results).
"""

from typing import NamedTuple


class PublishedAccuracy(NamedTuple):
    """Published top-1 and top-5 accuracy in percent, on square images of `size` pixels; None if only one is known."""

    size: int
    top1: float
    top5: float | None = None


class TestSet(NamedTuple):
    """A test set for classifiers of ImageNet's 1,000 classes.

    Attributes:
        title: its name, for people.
        images: the number of images that count.
        classes: the classes it has; if they are fewer than 1,000, only their outputs are compared.
        results: timm's file of results.
        paper: its source.
    """

    title: str
    images: int
    classes: int
    results: str
    paper: str


TEST_SETS = {
    'imagenet-real': TestSet('ImageNet ReaL', 46_837, 1000, 'results-imagenet-real.csv', 'arXiv:2006.07159'),
    'imagenet-v2': TestSet(
        'ImageNet-V2, matched frequency', 10_000, 1000, 'results-imagenetv2-matched-frequency.csv', 'arXiv:1902.10811'
    ),
    'imagenet-sketch': TestSet('ImageNet-Sketch', 50_889, 1000, 'results-sketch.csv', 'arXiv:1905.13549'),
    'imagenet-a': TestSet('ImageNet-A', 7_500, 200, 'results-imagenet-a.csv', 'arXiv:1907.07174'),
    'imagenet-r': TestSet('ImageNet-R', 30_000, 200, 'results-imagenet-r.csv', 'arXiv:2006.16241'),
}

# Tag -> edge of the images in pixels -> top-1 on each of TEST_SETS, in their order.
_TOP1: dict[str, dict[int, tuple[float, float, float, float, float]]] = {
    'tresnet_m.miil_in21k_ft_in1k': {224: (87.736, 72.15, 36.269, 21.387, 47.303)},
    'tresnet_m.miil_in1k': {224: (86.197, 69.68, 31.001, 12.467, 42.700)},
    'tresnet_m.miil_in1k_448': {448: (86.818, 70.78, 25.858, 33.827, 40.507)},
    'tresnet_l.miil_in1k': {224: (86.773, 70.67, 32.547, 16.440, 44.353)},
    'tresnet_l.miil_in1k_448': {448: (87.403, 71.48, 29.183, 40.133, 42.803)},
    'tresnet_xl.miil_in1k': {224: (87.237, 71.46, 33.276, 19.347, 46.307)},
    'tresnet_xl.miil_in1k_448': {448: (87.807, 72.20, 30.633, 43.213, 45.177)},
    'tresnet_v2_l.miil_in21k_ft_in1k': {224: (88.387, 73.45, 39.008, 26.320, 50.120)},
    'resnet18d.ra2_in1k': {
        224: (80.400, 59.91, 23.944, 2.520, 35.143),
        288: (81.673, 61.78, 23.025, 3.760, 34.240),
    },
    'resnet18d.ra4_e3600_r224_in1k': {
        224: (81.660, 62.00, 25.367, 3.493, 35.817),
        288: (83.109, 63.89, 24.828, 5.533, 35.337),
    },
    'resnet26d.bt_in1k': {
        224: (83.052, 64.66, 21.938, 4.040, 34.340),
        288: (83.808, 65.07, 20.277, 6.147, 32.477),
    },
    'resnet34d.ra2_in1k': {
        224: (84.096, 65.85, 29.328, 6.373, 40.860),
        288: (85.279, 67.48, 29.020, 10.707, 40.310),
    },
    'resnet50d.ra2_in1k': {
        224: (86.005, 69.17, 31.038, 11.733, 42.693),
        288: (86.752, 70.39, 30.405, 17.547, 41.797),
    },
    'resnet50d.ra4_e3600_r224_in1k': {
        224: (86.410, 69.72, 31.189, 10.973, 42.900),
        288: (86.998, 70.64, 30.126, 16.587, 42.157),
    },
    'resnet50d.a1_in1k': {
        224: (85.956, 68.91, 29.099, 13.133, 39.737),
        288: (86.675, 69.92, 27.768, 19.040, 38.417),
    },
    'resnet50d.a2_in1k': {
        224: (85.625, 68.31, 28.458, 9.560, 38.770),
        288: (86.327, 69.03, 27.098, 15.320, 37.243),
    },
    'resnet50d.a3_in1k': {
        160: (83.633, 64.82, 27.953, 4.373, 38.187),
        224: (84.931, 66.76, 26.133, 8.773, 36.310),
    },
    'resnet50d.gluon_in1k': {224: (84.826, 67.95, 28.234, 7.813, 41.040)},
    'resnet101d.ra2_in1k': {
        256: (87.358, 71.50, 35.721, 21.693, 47.300),
        320: (87.943, 72.37, 34.874, 28.813, 46.930),
    },
    'resnet101d.gluon_in1k': {224: (85.877, 68.79, 30.515, 12.773, 43.443)},
    'resnet152d.ra2_in1k': {
        256: (87.986, 72.25, 38.672, 26.000, 49.843),
        320: (88.360, 73.25, 37.875, 33.840, 49.273),
    },
    'resnet152d.gluon_in1k': {224: (85.902, 69.81, 32.764, 16.320, 45.443)},
    'resnet200d.ra2_in1k': {
        256: (87.960, 73.07, 38.690, 29.640, 49.757),
        320: (88.516, 73.35, 37.527, 37.893, 49.440),
    },
    'test_resnet.r160_in1k': {160: (47.911, 31.68, 9.265, 2.147, 18.243)},
}


def published_accuracies(tag: str, test_set: str) -> tuple[PublishedAccuracy, ...]:
    """Return the published accuracies of a tag on a test set, one for each size of the images; () if there are none.

    Args:
        tag: the name of the weights, such as 'resnet50d.a1_in1k'.
        test_set: a key of `TEST_SETS`.
    """
    place = list(TEST_SETS).index(test_set)
    return tuple(PublishedAccuracy(size, top1[place]) for size, top1 in _TOP1.get(tag, {}).items())
