"""Timing timm in PyTorch: eager or compiled, in the default memory format or in channels_last."""

import contextlib
import copy
import itertools
from typing import Any

import numpy as np
import timm  # loading imports it, and imports are not timed
import timm.optim
import torch
from loop_step import CONFIG
from safetensors.torch import load_file

from benchmarking.sides import MEAN, STD, Call, Training, Workload
from convert.golden import timm_model


def wake(threads: int) -> str:
    """Set the number of threads, start the device and return its name."""
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        return 'cpu'
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision('high')  # TF32, which JAX uses as well
    torch.zeros(1, device='cuda')
    return torch.cuda.get_device_name()


class TorchSide:
    """timm's model. In half precision, inference casts the weights, and training runs under autocast.

    Args:
        workload: the model and its weights.
        channels_last: PyTorch's memory format of that name.
        compiled: use ``torch.compile``.
    """

    def __init__(self, workload: Workload, *, channels_last: bool = False, compiled: bool = False):
        self.compiled = compiled
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        self.dtype: torch.dtype = getattr(torch, workload.dtype)
        self.is_half = self.dtype in (torch.bfloat16, torch.float16)
        self.train_dtype = torch.float32 if self.is_half else self.dtype  # of parameters and images
        model = timm_model(workload.architecture)
        model.load_state_dict(load_file(workload.weights), strict=True)
        self.model = self.put(model, self.train_dtype)
        self.wait()

    def put(self, model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
        return model.to(self.device, dtype).to(memory_format=self.layout)  # pyright: ignore[reportCallIssue]

    def ready(self, model: torch.nn.Module) -> Any:
        return torch.compile(model) if self.compiled else model

    def to_device(self, batch: np.ndarray) -> torch.Tensor:
        """(B, H, W, 3) -> (B, 3, H, W) on the device, in this side's memory format."""
        x = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
        return x.to(self.device).contiguous(memory_format=self.layout)

    def to_numpy(self, logits: torch.Tensor) -> np.ndarray:
        logits = logits.detach().cpu()
        return (logits.float() if self.is_half else logits).numpy()

    def wait(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self.dtype) if self.is_half else contextlib.nullcontext()

    def inference(self, images: np.ndarray) -> Call:
        model = self.put(copy.deepcopy(self.model), self.dtype) if self.is_half else self.model
        model = self.ready(model.eval())
        batches = itertools.cycle([self.to_device(batch).to(self.dtype) for batch in images])

        def call() -> np.ndarray:
            with torch.inference_mode():
                logits = model(next(batches))
                self.wait()
                return self.to_numpy(logits)

        return call

    def training(self, images: np.ndarray, labels: np.ndarray) -> Training:
        return TorchTraining(self, images, labels)

    def peak_bytes(self) -> int | None:
        return None if self.device.type == 'cpu' else torch.cuda.max_memory_allocated()


class TorchTraining:
    """The same step as `JaxTraining`, from timm's parts; images are normalised on the device, as timm's loader does.

    It computes neither the gradient's norm nor whether the step is finite, because timm's train.py does not.
    """

    def __init__(self, side: TorchSide, images: np.ndarray, labels: np.ndarray):
        self.side = side
        self.model = copy.deepcopy(side.model).train()
        self.network = side.ready(self.model)
        self.optimizer = timm.optim.create_optimizer_v2(  # pyright: ignore[reportPrivateImportUsage]
            self.model, opt=CONFIG.opt, lr=CONFIG.peak_lr, weight_decay=CONFIG.weight_decay, momentum=CONFIG.momentum
        )
        self.mean, self.std = (
            torch.tensor([255 * value for value in values], device=side.device, dtype=side.train_dtype).view(1, 3, 1, 1)
            for values in (MEAN, STD)
        )
        self.batches = itertools.cycle(
            [
                (side.to_device(x), torch.from_numpy(y).long().to(side.device))
                for x, y in zip(images, labels, strict=True)
            ]
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of (B, 3, H, W) uint8 images."""
        x = images.to(self.side.train_dtype).sub_(self.mean).div_(self.std)
        with self.side.autocast():
            return self.network(x)

    def step(self) -> float:
        images, labels = next(self.batches)
        logits = self.forward(images)
        logits = logits.float() if self.side.is_half else logits
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=CONFIG.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.side.wait()
        return loss.item()

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.side.to_numpy(self.forward(self.side.to_device(images)))
