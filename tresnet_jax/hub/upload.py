"""Upload a model to the Hugging Face hub: `push_to_hub`, with the arguments of timm's `push_to_hf_hub`."""

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tresnet_jax.checkpoints import config_file
from tresnet_jax.checkpoints.config_file import CONFIG
from tresnet_jax.checkpoints.match import to_torch
from tresnet_jax.checkpoints.shards import FOLDER_FILES
from tresnet_jax.checkpoints.write import save_torch
from tresnet_jax.errors import ConversionError, HubError
from tresnet_jax.files import save_text
from tresnet_jax.hub.client import explain
from tresnet_jax.hub.config import to_config
from tresnet_jax.hub.model_card import describe, render
from tresnet_jax.models.base import ImageModel

CARD = 'README.md'


def push_to_hub(
    model: ImageModel,
    repo_id: str,
    commit_message: str = 'Add model',
    token: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    model_config: Mapping[str, Any] | None = None,
    model_card: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    task_name: str = 'image-classification',
    safe_serialization: bool | Literal['both'] = True,
    data_config: Mapping[str, Any] | None = None,
) -> str:
    """Upload a model, its configuration and a model card; timm and this package load the repository.

    Args:
        model: a model that `save_pretrained` can write.
        repo_id: 'org/name'; the repository is created if it is missing.
        commit_message: the message of the commit.
        token: the token for the hub. None: HF_TOKEN, or that of ``hf auth login``.
        revision: branch. None: 'main'.
        private: whether a repository that is created is private.
        create_pr: open a pull request instead of a commit to the branch.
        model_config: fields of ``config.json`` to add or replace, such as label_names.
        model_card: fields of the model card to replace, see `model_card.render`. None: those of `describe`.
        model_args: arguments for timm's create_model to add or replace.
        task_name: the task on the model card.
        safe_serialization: True: model.safetensors; False: pytorch_model.bin, which needs torch; 'both'. timm's default
            is 'both'.
        data_config: how images are prepared, to replace what the model states: mean, std, input_size, ...

    Returns:
        The address of the commit or of the pull request.

    Raises:
        ValueError: timm cannot build the model, or the configuration would describe another model.
        HubError: (a ValueError) the repository cannot be created or written, or the hub cannot be reached.
        convert.ConversionError: (a ValueError) torch is not installed and pytorch_model.bin is requested.

    Example:
        >>> import tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
        >>> address = tresnet_jax.push_to_hub(model, 'org/name', private=True)  # doctest: +SKIP
    """
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo_id):
        raise HubError(f"{repo_id!r}: expected 'org/name'")
    import huggingface_hub as client

    config = _config(model, repo_id, model_config, model_args, data_config)
    card = {**describe(model, repo_id), **(model_card or {})}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_text(folder / CONFIG, json.dumps(config, indent=2) + '\n')
        save_text(folder / CARD, render(card, repo_id.partition('/')[2], task_name))
        tensors = to_torch(model)
        if safe_serialization:
            save_torch(folder / FOLDER_FILES[0], tensors)
        if not safe_serialization or safe_serialization == 'both':
            save_torch(folder / 'pytorch_model.bin', tensors)
        try:
            hub = client.HfApi(token=token, library_name='tresnet_jax')
            repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = hub.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )
        except Exception as error:  # from the client, its HTTP library or the system
            raise HubError(f'{repo_id}: could not be uploaded: {explain(error)}') from None
    return commit.pr_url or commit.commit_url


def _config(
    model: ImageModel,
    repo_id: str,
    model_config: Mapping[str, Any] | None,
    model_args: Mapping[str, Any] | None,
    data_config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        ValueError: timm cannot build the model; or the configuration cannot be read, or describes another model.
    """
    config = to_config(model)
    config['model_args'] |= model_args or {}
    config['pretrained_cfg'] |= data_config or {}
    config |= model_config or {}
    config = json.loads(json.dumps(config))
    try:
        saved = config_file.parse(config, Path(CONFIG), repo_id)
    except ConversionError as error:
        raise ValueError(f'{repo_id}: the configuration cannot be used: {error}') from None
    for what, found, expected in (
        ('architecture', saved.architecture, model.architecture),
        ('num_classes', saved.num_classes, model.num_classes),
        ('in_chans', saved.input_size[0], model.in_chans),
    ):
        if found != expected:
            raise ValueError(f'{repo_id}: the configuration says {what} {found!r}, and the model has {expected!r}')
    return config
