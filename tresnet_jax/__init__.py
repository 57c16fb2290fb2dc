"""TResNet and ResNet-D in JAX: timm's models, names and numbers.

Usage::

    model = tresnet_jax.create_model('resnet50d.a1_in1k', pretrained=True)
    transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config(model))
    logits = model(transform(image)[None])
"""

from tresnet_jax.data.transforms import create_transform as create_transform
from tresnet_jax.data.transforms import resolve_data_config as resolve_data_config
from tresnet_jax.errors import HubError as HubError
from tresnet_jax.explaining import grad_cam as grad_cam
from tresnet_jax.exporting import export as export
from tresnet_jax.exporting import load_exported as load_exported
from tresnet_jax.factory import create_model as create_model
from tresnet_jax.folding import fold_batchnorm as fold_batchnorm
from tresnet_jax.hub.config import save_pretrained as save_pretrained
from tresnet_jax.hub.upload import push_to_hub as push_to_hub
from tresnet_jax.labels import class_names as class_names
from tresnet_jax.listing import is_model as is_model
from tresnet_jax.listing import list_models as list_models
from tresnet_jax.listing import list_pretrained as list_pretrained
from tresnet_jax.models.build import add_ml_decoder_head as add_ml_decoder_head
from tresnet_jax.models.functional import functional as functional
from tresnet_jax.profiling import card_image_size as card_image_size
from tresnet_jax.profiling import profile as profile
from tresnet_jax.program_cache import cached_jit as cached_jit
from tresnet_jax.version import __version__ as __version__
