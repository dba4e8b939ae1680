"""What the trainings of the small networks have in common."""

import itertools
import math
import time
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm


def training_steps(
    optimizer: torch.optim.Optimizer, rate: float, *, steps: int | None = None, minutes: float
) -> Iterator[tuple[int, tqdm]]:
    """Count the steps of a training, until ``steps`` are done or, without these, until the ``minutes`` are over. Yields
    each step's number from 0, and the progress bar. The learning rate of ``optimizer`` falls from ``rate`` to 0 as half
    a cosine."""
    began = time.perf_counter()
    with tqdm(total=steps, unit=" steps", dynamic_ncols=True) as bar:
        for step in itertools.count():
            elapsed = (time.perf_counter() - began) / (60 * minutes)
            progress = elapsed if steps is None else step / steps
            if progress >= 1:
                return
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
            yield step, bar
            bar.update()


def fast_autocast(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where bfloat16 is fast: on GPUs, and on CPUs with AVX-512 BF16, which multiply it twice as
    fast. Elsewhere the context does nothing."""
    fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


def colour_noise(image: Float[Tensor, "b 3 h w"], generator: torch.Generator) -> Float[Tensor, "b 3 h w"]:
    """Change light, tint, contrast and grain of each picture at random, so that networks don't depend on them. Colours
    stay in [0, 1]."""
    count = len(image)
    gain = torch.exp(0.25 * torch.randn(count, 1, 1, 1, generator=generator))
    tint = torch.exp(0.1 * torch.randn(count, 3, 1, 1, generator=generator))
    power = torch.exp(0.25 * torch.randn(count, 1, 1, 1, generator=generator))
    grain = 0.03 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(image.shape, generator=generator)
    gain, power, grain = (gain * tint).to(image), power.to(image), grain.to(image)
    return (image.clamp_min(1e-4) ** power * gain + grain).clamp(0, 1)
