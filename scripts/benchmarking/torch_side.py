"""timm in PyTorch under the clock: eager, in torch's own layout or in channels_last."""

import contextlib
import copy
import itertools

import numpy as np
import timm  # noqa: F401  loading imports it, and imports are not timed
import torch
from safetensors.torch import load_file

from benchmarking.sides import LEARNING_RATE, MOMENTUM, Call, Subject
from convert.golden import timm_model


def wake(threads: int) -> str:
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        return 'cpu'
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision('high')  # TF32, which JAX uses as well
    torch.zeros(1, device='cuda')
    return torch.cuda.get_device_name()


class TorchSide:
    """timm's model. In half precision inference has the weights in it, and training runs under autocast."""

    def __init__(self, subject: Subject, *, channels_last: bool = False):
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        self.dtype: torch.dtype = getattr(torch, subject.dtype)
        self.is_half = self.dtype in (torch.bfloat16, torch.float16)
        model = timm_model(subject.architecture)
        model.load_state_dict(load_file(subject.weights), strict=True)
        self.model = self.put(model, torch.float32 if self.is_half else self.dtype)
        self.wait()

    def put(self, model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
        return model.to(self.device, dtype).to(memory_format=self.layout)

    def images(self, batch: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """(B, H, W, 3) to torch's order of axes."""
        x = torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))
        return x.to(self.device, dtype).contiguous(memory_format=self.layout)

    def numpy(self, logits: torch.Tensor) -> np.ndarray:
        logits = logits.detach().cpu()
        return (logits.float() if self.is_half else logits).numpy()

    def wait(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def inference(self, images: np.ndarray) -> Call:
        model = self.put(copy.deepcopy(self.model), self.dtype) if self.is_half else self.model
        model.eval()
        batches = itertools.cycle([self.images(batch, self.dtype) for batch in images])

        def call() -> np.ndarray:
            with torch.inference_mode():
                logits = model(next(batches))
                self.wait()
                return self.numpy(logits)

        return call

    def training(self, images: np.ndarray, labels: np.ndarray) -> Call:
        model = copy.deepcopy(self.model).train()
        optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM)
        dtype = torch.float32 if self.is_half else self.dtype
        batches = itertools.cycle(
            [
                (self.images(x, dtype), torch.from_numpy(y).long().to(self.device))
                for x, y in zip(images, labels, strict=True)
            ]
        )

        def call() -> np.ndarray:
            x, y = next(batches)
            with torch.autocast(self.device.type, self.dtype) if self.is_half else contextlib.nullcontext():
                logits = model(x)
            loss = torch.nn.functional.cross_entropy(logits.float() if self.is_half else logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.wait()
            loss.item()
            return self.numpy(logits)

        return call

    def peak_bytes(self) -> int | None:
        return None if self.device.type == 'cpu' else torch.cuda.max_memory_allocated()
