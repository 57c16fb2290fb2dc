"""Write pooled features of all images of a data set to a folder. Run the same command again to resume.

    python scripts/embed.py --model resnet50d --pretrained --data folder:photos --out FEATURES
    python scripts/embed.py --checkpoint RUN --data tfds:imagenet2012 --split validation --out FEATURES

Features are the float32 inputs of the classifier: ``forward_head(forward_features(x), pre_logits=True)``. By default
the training images are embedded, or all images of a folder without splits; class folders are not needed. To load them:

    import glob, json, numpy as np, safetensors.numpy
    shards = [safetensors.numpy.load_file(path) for path in sorted(glob.glob('FEATURES/features-*.safetensors'))]
    features, labels, indices = (np.concatenate([s[k] for s in shards]) for k in ('features', 'labels', 'indices'))
    names = json.load(open('FEATURES/names.json'))          # features[i] belongs to the image names[indices[i]]

``--sheet FILE.png`` also shows images beside their nearest neighbours: some of the data, or those of ``--query``.

Unreadable images have no features and are listed in FEATURES/unreadable.log. Several hosts: as for train.py, with a
folder that all of them see.
"""

import sys

from tresnet_jax.cli.start import embed

if __name__ == '__main__':
    sys.exit(embed())
