"""Slow, plain definitions that the code under test is held against: loops, dense matrices, no sharing of code."""

from __future__ import annotations

import numpy as np

from lego import Adapter


def dense_sum(adapters: list[Adapter], weights: list[float], module: str) -> np.ndarray:
    """D = Σ_j w_j s_j B_j A_j, dense."""
    total = 0.0
    for adapter, weight in zip(adapters, weights, strict=True):
        if module in adapter.modules:
            factors = adapter[module]
            total = total + weight * factors.scale * (factors.up.double().numpy() @ factors.down.double().numpy())
    return np.asarray(total)


def units_of(adapters: list[Adapter], weights: list[float], module: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every unit (a, b) with sqrt(|w s|) on both halves and the sign on b."""
    found = []
    for adapter, weight in zip(adapters, weights, strict=True):
        if weight == 0 or module not in adapter.modules:
            continue
        factors = adapter[module]
        c = weight * factors.scale
        for i in range(factors.rank):
            a = factors.down[i].double().numpy() * abs(c) ** 0.5
            b = factors.up[:, i].double().numpy() * abs(c) ** 0.5 * np.sign(c)
            found.append((a, b))
    return found


def lego_merge(
    units: list[tuple[np.ndarray, np.ndarray]],
    labels: list[int],
    rank: float,
    parameter_reweighting: bool = True,
    output_reweighting: bool = True,
) -> np.ndarray:
    """LoRA-LEGO's ΔW from a given partition, one unit at a time (arXiv 2409.16167, Algorithm 1 and section 3.3)."""
    delta, clusters = 0.0, sorted(set(labels))
    for cluster in clusters:
        members = [np.concatenate(unit) for unit, label in zip(units, labels, strict=True) if label == cluster]
        centroid = sum(members) / len(members)
        if parameter_reweighting:
            centroid = centroid * np.mean([np.abs(member).max() for member in members]) / np.abs(centroid).max()
        a, b = centroid[: len(units[0][0])], centroid[len(units[0][0]) :]
        delta = delta + np.outer(b, a)
    return np.asarray(delta) * ((rank / len(clusters)) ** 0.5 if output_reweighting else 1.0)


def kmeans_inertia(points: np.ndarray, labels: np.ndarray) -> float:
    """Σ_i ‖x_i − μ_c(i)‖²."""
    return float(sum(((points[labels == c] - points[labels == c].mean(0)) ** 2).sum() for c in set(labels.tolist())))


def ties_entries(
    tensors: list[np.ndarray], weights: list[float], density: float, frequency: bool = False
) -> np.ndarray:
    """TIES on dense tensors, entry by entry (arXiv 2306.01708, Algorithm 1)."""
    trimmed = []
    for tensor in tensors:
        kept = int(density * tensor.size)
        order = np.argsort(-np.abs(tensor).ravel(), kind="stable")[:kept]
        mask = np.zeros(tensor.size)
        mask[order] = 1
        trimmed.append(tensor * mask.reshape(tensor.shape))
    merged = np.zeros_like(tensors[0])
    for entry in np.ndindex(merged.shape):
        values = [tensor[entry] for tensor in trimmed]
        votes = sum(np.sign(value) if frequency else value for value in values)
        elected = 1.0 if votes >= 0 else -1.0
        agreeing = [w * v for w, v in zip(weights, values, strict=True) if np.sign(v) == elected]
        merged[entry] = sum(agreeing) / max(len(agreeing), 1)
    return merged
