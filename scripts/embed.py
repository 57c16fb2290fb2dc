"""Write pooled features of all images of a data set to a folder; stopped, the same command goes on.

    python scripts/embed.py --model resnet50d --pretrained --data folder:photos --out FEATURES
    python scripts/embed.py --checkpoint RUN --data tfds:imagenet2012 --split validation --out FEATURES

What comes before the classifier, in float32: ``forward_head(forward_features(x), pre_logits=True)``. Without --split
it is the training images, of a folder without splits all; class folders are not needed. To load:

    import glob, json, numpy as np, safetensors.numpy
    shards = [safetensors.numpy.load_file(path) for path in sorted(glob.glob('FEATURES/features-*.safetensors'))]
    features, labels, indices = (np.concatenate([s[k] for s in shards]) for k in ('features', 'labels', 'indices'))
    names = json.load(open('FEATURES/names.json'))          # features[i] is of the image names[indices[i]]

Images that cannot be read have no features and are named in FEATURES/unreadable.log. Several hosts: as for train.py,
with a folder that all of them see.
"""

import sys

from tresnet_jax.cli.start import embed

if __name__ == '__main__':
    sys.exit(embed())
