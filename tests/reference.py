"""Slow, plain definitions that the code under test is held against: loops, dense matrices, no sharing of code."""

from __future__ import annotations

from collections.abc import Callable

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


Draw = Callable[[int, tuple[int, ...]], np.ndarray]


def updates(adapters: list[Adapter], weights: list[float], module: str) -> dict[int, np.ndarray]:
    """s_j B_j A_j, dense, of every source of non-zero weight that adapts the module."""
    used = [j for j, adapter in enumerate(adapters) if weights[j] and module in adapter.modules]
    return {j: dense_sum([adapters[j]], [1.0], module) for j in used}


def by_rule(rule: str, tensors: dict[int, np.ndarray], weights: list[float], density: float, draw: Draw) -> np.ndarray:
    """One tensor from one of each source; ``draw(source, shape)`` gives the numbers in [0, 1) that DARE drops by."""
    if rule.startswith("dare"):
        tensors = {j: tensor * (draw(j, tensor.shape) < density) / density for j, tensor in tensors.items()}
        density = 1.0
    own = [weights[j] for j in tensors]
    if rule.endswith("ties"):
        return ties_entries(list(tensors.values()), own, density)
    if rule == "magnitude_prune":
        tensors = {j: ties_entries([tensor], [1.0], density) for j, tensor in tensors.items()}
    if rule == "tsv":
        return tsv_merge(tensors, weights, min(next(iter(tensors.values())).shape))
    return np.sum([weights[j] * tensor for j, tensor in tensors.items()], axis=0)


def tsv_merge(tensors: dict[int, np.ndarray], weights: list[float], count: int, orthogonal: str = "both") -> np.ndarray:
    """Task Singular Vectors on dense updates (arXiv 2412.00081): polar factors by SVD, one direction of each source in turn."""
    directions = []
    for j, tensor in tensors.items():
        left, values, right = np.linalg.svd(tensor)
        for i in range(int((values > 1e-6 * values[0]).sum())):
            directions.append((i, -abs(weights[j]) * values[i], weights[j] * values[i], left[:, i], right[i]))
    directions = sorted(directions, key=lambda direction: direction[:2])[:count]
    left, right = np.stack([d[3] for d in directions], 1), np.stack([d[4] for d in directions], 1)
    sides = []
    for name, columns in (("outputs", left), ("inputs", right)):
        u, s, v = np.linalg.svd(columns, full_matrices=False)
        sides.append(u[:, s > 1e-5] @ v[s > 1e-5] if orthogonal in ("both", name) else columns)
    return sides[0] * np.array([d[2] for d in directions]) @ sides[1].T


def knots_merge(
    rule: str, tensors: dict[int, np.ndarray], weights: list[float], density: float, scaled: bool, draw: Draw
) -> np.ndarray:
    """KnOTS on dense updates (arXiv 2410.19735): the SVD of all of them side by side, a rule on the V parts."""
    left, values, right = np.linalg.svd(np.concatenate(list(tensors.values()), axis=1), full_matrices=False)
    rank = int((values > 1e-6 * values[0]).sum())
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    wide = values[:, None] * right if scaled else right
    parts = dict(zip(tensors, np.split(wide, len(tensors), axis=1), strict=True))
    merged = by_rule(rule, parts, weights, density, draw)
    return left @ merged if scaled else left * values @ merged


def core_merge(
    rule: str, adapters: list[Adapter], weights: list[float], module: str, density: float, draw: Draw
) -> np.ndarray:
    """Core Space on dense updates (arXiv 2509.17786): bases from the stacked factors, a rule on the projected updates."""
    tensors = updates(adapters, weights, module)
    factors = [adapters[j][module] for j in tensors]
    ups = np.concatenate([f.up.double().numpy() * f.scale**0.5 for f in factors], axis=1)
    downs = np.concatenate([f.down.double().numpy() * f.scale**0.5 for f in factors])
    left, right = np.linalg.svd(ups, full_matrices=False)[0], np.linalg.svd(downs, full_matrices=False)[2]
    cores = {j: left.T @ tensor @ right.T for j, tensor in tensors.items()}
    return left @ by_rule(rule, cores, weights, density, draw) @ right


def ctm_merge(
    rule: str, tensors: dict[int, np.ndarray], weights: list[float], rank: int, density: float, beta: float, draw: Draw
) -> np.ndarray:
    """Compress then Merge on dense updates (arXiv 2606.03723): partial Tucker by SVDs of the unfoldings, a rule on the coordinates."""
    norms = {j: np.linalg.norm(tensor) for j, tensor in tensors.items()}
    mean = np.mean(list(norms.values()))
    even = [tensor / norms[j] * (beta * norms[j] + (1 - beta) * mean) for j, tensor in tensors.items()]
    left = np.linalg.svd(np.concatenate(even, axis=1))[0][:, :rank]
    right = np.linalg.svd(np.concatenate([tensor.T for tensor in even], axis=1))[0][:, :rank]
    for _ in range(1000):
        before = left
        left = np.linalg.svd(np.concatenate([tensor @ right for tensor in even], axis=1))[0][:, :rank]
        right = np.linalg.svd(np.concatenate([tensor.T @ left for tensor in even], axis=1))[0][:, :rank]
        if np.linalg.norm(left @ left.T - before @ before.T) < 1e-9:
            break
    coordinates = {j: left.T @ tensor @ right for j, tensor in tensors.items()}
    return left @ by_rule(rule, coordinates, weights, density, draw) @ right.T
