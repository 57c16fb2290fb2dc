"""The model card of a repository on the hub: README.md with the fields that timm's `push_to_hf_hub` writes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tresnet_jax.models.base import ImageModel
from tresnet_jax.profiling import profile
from tresnet_jax.variants import RESNETD, TRESNET

LIBRARY = 'tresnet_jax'
# Bibliographic entries by the family of the network.
CITATIONS = {
    TRESNET.name: """@misc{ridnik2020tresnet,
  title={TResNet: High Performance GPU-Dedicated Architecture},
  author={Tal Ridnik and Hussam Lawen and Asaf Noy and Emanuel Ben Baruch and Gilad Sharir and Itamar Friedman},
  year={2020}, eprint={2003.13630}, archivePrefix={arXiv}, primaryClass={cs.CV}
}""",
    RESNETD.name: """@article{he2018bag,
  title={Bag of Tricks for Image Classification with Convolutional Neural Networks},
  author={Tong He and Zhi Zhang and Hang Zhang and Zhongyue Zhang and Junyuan Xie and Mu Li},
  journal={arXiv preprint arXiv:1812.01187}, year={2018}
}""",
}
TIMM = """@misc{rw2019timm,
  author={Ross Wightman}, title={PyTorch Image Models}, year={2019}, doi={10.5281/zenodo.4414861},
  howpublished={\\url{https://github.com/huggingface/pytorch-image-models}}
}"""
USAGE = """```python
import jax, tresnet_jax
from PIL import Image

model = tresnet_jax.create_model({name!r}, pretrained=True)
transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config(model))
image = transform(Image.open('image.jpg'))                      # (height, width, 3), normalised
logits = jax.jit(lambda model, images: model(images))(model, image[None])
print({shown})
```"""


def describe(model: ImageModel, repository: str, *, pretrained: bool = False) -> dict[str, Any]:
    """Return the fields of a model's card: description, details, usage, citation, license.

    Args:
        model: the model.
        repository: 'org/name', for the example.
        pretrained: whether its weights are those of the tag in its `pretrained_cfg`, unchanged: the card then has the
            tag, its published accuracies and its license. A model does not tell; it can be new, or trained on.
    """
    row, family = model.pretrained_cfg, model.config.family
    cost = profile(model)
    details: dict[str, Any] = {
        'Model type': 'image classification, feature backbone',
        'Architecture': model.architecture,
        'Classes': model.num_classes,
        'Parameters': f'{cost.parameters:,}',
        'Multiply-accumulates': f'{cost.macs:,} for an image of {" x ".join(map(str, cost.image_size))} pixels',
    }
    if pretrained and row is not None and row.tag:
        details['Weights'] = row.name
        for accuracy in row.accuracies:
            top5 = '' if accuracy.top5 is None else f', top-5 {accuracy.top5:g} %'
            details[f'Published accuracy, {accuracy.size} pixels'] = f'top-1 {accuracy.top1:g} %{top5}'
    if row is not None and row.label_names:
        details['Class names'] = ', '.join(row.label_names[:20]) + ', ...' * (len(row.label_names) > 20)
    several = row is not None and row.task == 'multilabel'
    chosen = 'jax.nn.sigmoid(logits)' if several else 'logits.argmax(-1)'
    license = row.license if pretrained and row is not None and row.license else None
    return {
        'description': f'A {model.architecture} for [{LIBRARY}](https://pypi.org/project/{LIBRARY}/), which has '
        'TResNet and ResNet-D in JAX and Flax, with the models, names and numbers of timm.',
        'details': details,
        'usage': USAGE.format(name=f'hf-hub:{repository}', shown=chosen),
        'citation': [CITATIONS[family.name], TIMM],
        **({'license': license} if license else {}),
    }


def render(card: Mapping[str, Any], name: str, task_name: str = 'image-classification') -> str:
    """Return the text of a README.md.

    Args:
        card: the fields, as timm's `push_to_hf_hub` takes them: description, details, usage, comparison, citation,
            tags, license, license_name, license_link, library_name.
        name: the title.
        task_name: the pipeline of the hub, and the first tag.
    """
    # JSON is YAML, and quotes every text, so that no field can end the header.
    header = {'pipeline_tag': task_name, 'library_name': card.get('library_name', LIBRARY)}
    header['tags'] = list(card.get('tags') or [task_name, 'jax', 'flax', 'timm'])
    header |= {key: card[key] for key in ('license', 'license_name', 'license_link') if key in card}
    parts = ['---', *(f'{key}: {json.dumps(value, ensure_ascii=False)}' for key, value in header.items()), '---', '']
    parts += [f'# Model card for {_line(name)}', '']
    if 'description' in card:
        parts += [str(card['description']), '']
    if 'details' in card:
        parts += ['## Model details', '', *_details(card['details']), '']
    for key, title in (('usage', 'Model usage'), ('comparison', 'Model comparison')):
        if key in card:
            parts += [f'## {title}', '', str(card[key]), '']
    if 'citation' in card:
        entries = [card['citation']] if isinstance(card['citation'], str) else card['citation']
        parts += ['## Citation', '', *(f'```bibtex\n{entry}\n```' for entry in entries), '']
    return '\n'.join(parts)


def _details(details: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in details.items():
        if isinstance(value, str) or not isinstance(value, Sequence | Mapping):
            lines.append(f'- **{_line(key)}:** {_line(value)}')
            continue
        pairs = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
        lines.append(f'- **{_line(key)}:**')
        lines += [f'  - {_line(item) if name is None else f"{_line(name)}: {_line(item)}"}' for name, item in pairs]
    return lines


def _line(value: Any) -> str:
    return ' '.join(str(value).split())
