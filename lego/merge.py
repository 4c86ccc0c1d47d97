"""Merge adapters: group the modules, run the method on each group's pool, and report what was done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from numbers import Integral
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from lego.adapter import Adapter, Factors, ModuleSpec, finite, largest
from lego.errors import AdapterError
from lego.fidelity import Fidelity, compare
from lego.recipe import Edits, Output, Recipe, Source
from lego.registry import method as find_method
from lego.report import MergeReport, SourceReport, licence_of, module_reports, source_norms, warnings_of
from lego.threads import one_thread
from lego.units import Pool, Whole, groups, module_names, pool, signature
from lego.weights import Weight, check_weights, weighs, weight_at

VERSION = "0.1.0"

# Told (modules done, modules in all) after each group; may raise to stop the merge.
Progress = Callable[[int, int], None]


def merge(
    adapters: Sequence[Adapter],
    *,
    method: str = "lego",
    weights: Sequence[Weight] | None = None,
    seed: int = 0,
    name: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    **parameters: Any,
) -> Adapter:
    """Merge adapters into one, in memory. `merge_into` does the same from files to files without holding more than a few modules.

    Args:
        adapters: the sources; any mix of ranks, scales and target modules, of one base. The first names it.
        method: one of `lego.methods()`.
        weights: w_j, a number or numbers by patterns on module names (see `lego.weights`), negative ones too; 1 each unless given.
        seed: of everything random.
        name: of the merged adapter.
        device: where it is computed.
        progress: called with (modules done, modules in all) after each group; may raise to stop the merge.
        **parameters: of the method; see ``lego.methods()[method].parameters``.

    Returns:
        The merged adapter, with its `MergeReport` and its `Recipe`.

    Raises:
        AdapterError: for parameters, weights or adapters that cannot be used together.
    """
    merging = Merging(adapters, method, weights, seed, name, device, parameters)
    factors: dict[str, Factors] = dict(merging.run(progress))
    result = merging.adapter(Adapter.from_factors(merging.name, factors).modules, factors)
    result.recipe, result.report = merging.recipe(), merging.report()
    return result


Made = TypeVar("Made")


def itself(module: str, factors: Factors) -> Any:
    """The factors as they are."""
    return factors


class Group(NamedTuple, Generic[Made]):
    """A group of merged modules, and what the report needs of it."""

    made: dict[str, Made]
    ranks: list[int]
    units: int
    fidelity: Fidelity
    norms: torch.Tensor


class Merging:
    """A merge under way: `run` gives the merged factors module by module; the report is there when it has ended.

    Args:
        as `merge`.

    Raises:
        AdapterError: for parameters, weights or adapters that cannot be used together.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        method: str,
        weights: Sequence[Weight] | None,
        seed: int,
        name: str | None,
        device: torch.device | str,
        parameters: Mapping[str, Any],
    ) -> None:
        self.start = time.perf_counter()
        self.method, self.seed = find_method(method), check_seed(seed)
        self.parameters = self.method.validate(parameters)
        self.adapters, self.weights = list(adapters), check_weights(adapters, weights)
        self.device = check_device(device)
        self.workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        self.modules = module_names(adapters, self.weights)
        self.name = name or f"{method}-" + "-".join(adapter.name for adapter in adapters)
        used = [a for a, weight in zip(self.adapters, self.weights, strict=True) if weighs(a, weight)]
        self.base_model = next((a.base_model for a in used if a.base_model), None)
        self.config = shared_config(used)
        self.fidelity: list[Fidelity] = []
        self.lines: list[tuple[str, int, int]] = []  # module, units, merged rank
        self.norms = torch.zeros(len(self.adapters), dtype=torch.float64)

    def largest(self) -> dict[str, ModuleSpec]:
        """What the merged modules will be at most: their ranks may come out lower."""
        found = {}
        for module in self.modules:
            form, ranks = signature(self.adapters, self.weights, module)
            bias = any(a.modules[module].bias for a in self.adapters if module in a.modules)
            found[module] = ModuleSpec(sum(ranks), form[0], form[1], 1.0, "F32", bias, *form[2:])
        return found

    def run(
        self, progress: Progress | None = None, then: Callable[[str, Factors], Made] = itself
    ) -> Iterator[tuple[str, Made]]:
        """The merged modules, group by group.

        As many groups at a time as there are cores, each on one: a merge is made of small steps, and cores that had to meet after
        each of them would mostly wait.

        Args:
            progress: told after each group.
            then: done to each module beside the others.

        Raises:
            AdapterError: when a source's or the merge's values are not finite.
        """
        plan = groups(self.adapters, self.weights)
        whole = Whole(lambda: (self.pool(names, whole) for names in plan))
        waiting: deque[Future[Group[Made]]] = deque()
        with ThreadPoolExecutor(self.workers) as workers:
            try:
                for names in plan:
                    waiting.append(workers.submit(self.merged, names, whole, then))
                    if len(waiting) > self.workers:
                        yield from self.take(waiting.popleft().result(), progress)
                while waiting:
                    yield from self.take(waiting.popleft().result(), progress)
            finally:
                workers.shutdown(cancel_futures=True)

    def pool(self, names: Sequence[str], whole: Whole) -> Pool:
        """The units of a group of modules."""
        return pool(self.adapters, names, self.weights, self.seed, self.device, whole)

    def merged(self, names: Sequence[str], whole: Whole, then: Callable[[str, Factors], Made]) -> Group[Made]:
        """One group, merged and measured."""
        with one_thread():
            pool = self.pool(names, whole)
            check_pool(pool, self.adapters)
            down, up = self.method(pool, **self.parameters)
            fidelity = compare(down, up, pool.down, pool.up, (pool.gram_down, pool.gram_up))
            norms = source_norms(pool, len(self.adapters))
            made = {m: self.factors(m, a, b) for m, a, b in zip(pool.modules, down.cpu(), up.cpu(), strict=True)}
            ranks = [factors.rank for factors in made.values()]
            return Group({m: then(m, factors) for m, factors in made.items()}, ranks, pool.units, fidelity, norms)

    def take(self, group: Group[Made], progress: Progress | None) -> Iterator[tuple[str, Made]]:
        """Hand out a group's modules and note what the report needs."""
        self.fidelity.append(group.fidelity)
        self.norms += group.norms
        for (module, made), rank in zip(group.made.items(), group.ranks, strict=True):
            self.lines.append((module, group.units, rank))
            yield module, made
        if progress:
            progress(len(self.lines), len(self.modules))

    def factors(self, module: str, down: torch.Tensor, up: torch.Tensor) -> Factors:
        """One merged module without the units that are exactly zero (at least one is kept), with its form and bias."""
        peaks = torch.stack([largest(down, 1), largest(up, 0)])
        if not bool(torch.isfinite(peaks).all()):
            raise AdapterError(
                "the merge is not finite", f"{self.name}, {module}", "Use a smaller strength or weights."
            )
        kept = (peaks > 0).all(0)
        if not bool(kept.all()):
            kept[0] |= not bool(kept.any())
            down, up = down[kept], up[:, kept]
        kernel, embedding = next(a.modules[module].form[2:] for a in self.adapters if module in a.modules)
        return Factors(down, up, 1.0, self.bias(module), kernel, embedding)

    def bias(self, module: str) -> torch.Tensor | None:
        """Σ_j w_j s_j b_j whatever the method: a bias has no rank to reduce. With the strength; normalised where the method is."""
        found, total = None, 0.0
        for adapter, weight in zip(self.adapters, self.weights, strict=True):
            w = weight_at(weight, module)
            total += abs(w)
            if w and module in adapter.modules and adapter.modules[module].bias:
                factors = adapter[module]
                assert factors.bias is not None
                own = w * factors.scale * finite(factors.bias, f"{adapter.path or adapter.name}, {module}")
                found = own if found is None else found + own
        if found is None:
            return None
        return found * self.parameters["strength"] / (total if self.method.normalised else 1)

    def adapter(self, modules: Mapping[str, ModuleSpec], factors: Mapping[str, Factors] | None = None) -> Adapter:
        """The merged adapter with these modules; without factors it can be looked at, not read."""
        facts: dict[str, Any] = {
            "base_model": self.base_model,
            "config": self.config,
            "format": self.adapters[0].format,
        }
        return Adapter(self.name, modules, (factors or {}).__getitem__, **facts)

    def recipe(self, output: Output | None = None) -> Recipe:
        """The merge as data."""
        sources = [
            Source(name=a.name, **place_of(a), sha256=a.sha256, weight=w, edits=edits_of(a))
            for a, w in zip(self.adapters, self.weights, strict=True)
        ]
        return Recipe(
            brickyard=VERSION,
            base_model=self.base_model,
            sources=sources,
            method=self.method.name,
            parameters=self.parameters,
            seed=self.seed,
            output=output or Output(),
        )

    def report(self) -> MergeReport:
        """What was done, once all modules are."""
        fidelity = Fidelity.joined(self.fidelity)
        every = fidelity.total()
        norms = self.norms.sqrt().tolist()
        ranks = [rank for _, _, rank in self.lines]
        return MergeReport(
            name=self.name,
            method=self.method.name,
            parameters=self.parameters,
            seed=self.seed,
            sources=[
                SourceReport(
                    name=a.name,
                    origin=a.origin,
                    license=licence_of(a),
                    sha256=a.sha256,
                    weight=w,
                    ranks=list(a.ranks),
                    modules=len(a.modules),
                    norm=n,
                )
                for a, w, n in zip(self.adapters, self.weights, norms, strict=True)
            ],
            modules=len(self.lines),
            rank_min=min(ranks),
            rank_max=max(ranks),
            norm_before=float(every.target.sqrt()),
            norm_after=float(every.merged.sqrt()),
            relative_error=float(every.relative_error),
            norm_ratio=float(every.norm_ratio),
            cosine=float(every.cosine),
            seconds=time.perf_counter() - self.start,
            warnings=warnings_of(self.adapters, self.weights, every, self.method, self.lines),
            per_module=module_reports(self.lines, fidelity),
        )


def edits_of(adapter: Adapter) -> list[Edits] | None:
    """What was done to a source's units, as a recipe says it."""
    return [
        Edits(factor=edit.factor, units={m: list(rows) for m, rows in edit.units.items()}) for edit in adapter.edits
    ] or None


def place_of(adapter: Adapter) -> dict[str, str]:
    """Where a source is to be found again: a hub id at a commit, or a path."""
    if adapter.origin:
        hub, _, commit = adapter.origin.partition("@")
        return {"hub": hub, "revision": commit}
    return {"path": str(adapter.path)} if adapter.path else {}


def check_device(device: torch.device | str) -> torch.device:
    """A device that is there and knows fp64, which Apple's does not.

    Raises:
        AdapterError: when torch does not know it, the machine has none, or it computes in fp32 only.
    """
    try:
        found = torch.device(device)
        float(torch.zeros(1, dtype=torch.float64, device=found))
    except (RuntimeError, AssertionError, TypeError) as error:
        raise AdapterError(
            f"there is no device {str(device)!r} here that computes in fp64",
            None,
            "Use cpu, or cuda on a machine with a GPU.",
        ) from error
    return found


def check_seed(seed: int) -> int:
    """A whole number.

    Raises:
        AdapterError: for anything else.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise AdapterError(f"the seed must be a whole number, not {seed!r}")
    return int(seed)


def check_pool(pool: Pool, adapters: Sequence[Adapter]) -> None:
    """Look at the units' norms, which are not finite where a value is not.

    Raises:
        AdapterError: naming the source and the module.
    """
    norms = pool.gram.diagonal(dim1=1, dim2=2)
    for row, unit in (~torch.isfinite(norms)).nonzero()[:1].tolist():
        adapter, module = adapters[int(pool.owner[unit])], pool.modules[row]
        where = f"{adapter.path or adapter.name}, {module}"
        finite(adapter[module].down, where)
        finite(adapter[module].up, where)
        raise AdapterError("holds values too large to merge", where)


def shared_config(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The facts of the sources' format that the merged adapter keeps.

    Raises:
        AdapterError: when they contradict each other.
    """
    shared: dict[str, Any] = {}
    for adapter in adapters:
        for key, value in adapter.config.items():
            if shared.setdefault(key, value) != value:
                raise AdapterError(f"has {key}={value!r}, another source {shared[key]!r}", adapter.name)
    return shared
