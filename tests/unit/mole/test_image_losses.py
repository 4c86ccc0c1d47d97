"""L_D for images, entry by entry with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mole.losses import denoising_loss, directional_loss, global_loss


def some(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def unit(e: torch.Tensor) -> np.ndarray:
    found = e.double().numpy()
    return found / np.sqrt((found**2).sum(-1, keepdims=True))


def test_denoising() -> None:
    """The mean over samples of each sample's mean, so a batch in parts has the same loss; in half precision too."""
    prediction, target = some(0, 3, 4, 2, 2), some(1, 3, 4, 2, 2)
    rows = [((p - t) ** 2).mean() for p, t in zip(prediction.numpy(), target.numpy(), strict=True)]
    assert float(denoising_loss(prediction, target)) == pytest.approx(sum(rows) / 3, rel=1e-5)
    assert denoising_loss(prediction.bfloat16(), target).dtype == torch.float32


def test_global_guidance() -> None:
    images, texts = some(0, 3, 5) * 7, some(1, 3, 5)
    wanted = np.mean([1 - cosine(i, t) for i, t in zip(unit(images), unit(texts), strict=True)])
    assert float(global_loss(images, texts)) == pytest.approx(wanted, abs=1e-6)
    assert float(global_loss(texts * 3, texts)) == pytest.approx(0, abs=1e-6)
    assert float(global_loss(-texts, texts)) == pytest.approx(2, abs=1e-6)


def test_directional_guidance() -> None:
    given = [some(seed, 3, 5) * (seed + 1) for seed in range(4)]
    image, source, text, plain = map(unit, given)
    wanted = np.mean([1 - cosine(image[row] - source[row], text[row] - plain[row]) for row in range(3)])
    assert float(directional_loss(*given)) == pytest.approx(wanted, abs=1e-6)
    assert float(directional_loss(given[0], given[1], given[0], given[1])) == pytest.approx(0, abs=1e-6)


def test_equal_pictures_have_no_direction() -> None:
    image = some(0, 2, 5).requires_grad_()
    loss = directional_loss(image, image.detach(), some(1, 2, 5), some(2, 2, 5))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1)
    assert image.grad is not None
    assert float(image.grad.norm()) < 1e3
