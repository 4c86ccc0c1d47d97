"""``python -m benchmarks.merging``: what merging costs, against the least it could cost and against PEFT, in one run.

Whole commands on four adapters of Llama-2-7B's real size (80 MB each, rank 16, fp16) and of SDXL's, files to files: the floor is a
command that merely reads the inputs and writes an output of that size with safetensors. Peak memory is counted above the imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import nn

import lego
from benchmarks import adapters
from benchmarks.clock import seconds
from benchmarks.report import ROOT, finish, machine, parser_for, table

FLOOR = """
import sys
from safetensors.torch import load_file, save_file
*sources, out = sys.argv[1:]
read = [load_file(path) for path in sources]
save_file(read[0], out)
"""

# Runs the command in a process whose peak is set back once everything is imported.
MEASURED = """
import re, sys
import torch, lego.__main__
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
code = lego.__main__.main(sys.argv[1:])
print("PEAK", (status("VmHWM") - before) // 1024)
sys.exit(code)
"""

LIMITS = {"LEGO, k = r": 2.0, "svd, rank r": 4.0}
COMMANDS = {"LEGO, k = r": ["-m", "lego", "-p", "k=r"], "svd, rank r": ["-m", "svd", "-p", "rank=r"]}
MEMORY_MB = 300
PREFLIGHT_SECONDS = 0.1


def of_command(command: list[str]) -> tuple[float, str]:
    """Wall time of a command and what it printed. Python keeps what it compiles, as installed packages have it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True, text=True, env=kept)
    return time.perf_counter() - start, done.stdout


def commands(name: str, sources: list[Path], folder: Path, rounds: int) -> tuple[list[list[str]], list[str]]:
    """Rows of the table for one set of adapters, and the claims that do not hold."""
    files = [str(path if path.is_file() else path / "adapter_model.safetensors") for path in sources]
    places = list(map(str, sources))
    times: dict[str, list[float]] = {label: [] for label in ("floor", *COMMANDS)}
    peaks: dict[str, int] = {}
    for turn in range(rounds + 1):  # the first one warms the page cache and is not counted
        runs = {"floor": ["-c", FLOOR, *files, str(folder / "floor.safetensors")]}
        for label, options in COMMANDS.items():
            out = str(folder / f"{name}-{options[1]}-{turn}")
            runs[label] = ["-m", "lego", "merge", *options, "-o", out, *places]
        for label, command in runs.items():
            took, _ = of_command(command)
            times[label] += [took] if turn else []
    for label, options in COMMANDS.items():
        _, printed = of_command(
            ["-c", MEASURED, "merge", *options, "-o", str(folder / f"{name}-peak-{options[1]}"), *places]
        )
        peaks[label] = int(printed.split("PEAK")[1])
    floor, rows, missed = median(times["floor"]), [], []
    for label in COMMANDS:
        took = median(times[label])
        rows.append(
            [
                f"{name}: {label} vs. reading and writing",
                f"{took:.2f} s, {peaks[label]} MB",
                f"{floor:.2f} s",
                f"{took / floor:.2f} × the floor",
            ]
        )
        missed += [f"{name}, {label}: {took / floor:.2f} times the floor"] if took > LIMITS[label] * floor else []
        missed += [f"{name}, {label}: {peaks[label]} MB"] if peaks[label] > MEMORY_MB else []
    return rows, missed


class One(nn.Module):
    """A single linear layer, as large as asked for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size, bias=False)


def against_peft(method: str, size: int, rank: int, faster: float, **parameters: object) -> tuple[list[str], list[str]]:
    """One module: PEFT's `add_weighted_adapter` against ours, the merged matrix compared."""
    configs = [LoraConfig(r=16, lora_alpha=32, target_modules=["layer"]) for _ in range(4)]
    model = get_peft_model(One(size), configs[0], adapter_name="a0")
    for i, config in enumerate(configs[1:], 1):
        model.add_adapter(f"a{i}", config)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) / size**0.5
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        sources = [lego.read_adapter(Path(folder) / f"a{i}") for i in range(4)]
        weights, names = [1.0, 0.5, -0.7, 1.2], [f"a{i}" for i in range(4)]
        theirs = seconds(
            lambda: model.add_weighted_adapter(
                names, weights, "merged", combination_type=method, svd_rank=rank, **parameters
            )
        )
        took = [
            seconds(lambda: lego.merge(sources, method=method, weights=weights, rank=rank, **parameters))
            for _ in range(3)
        ]
        merged = lego.merge(sources, method=method, weights=weights, rank=rank, **parameters)
    expected = model.get_submodule("base_model.model.layer").get_delta_weight("merged")
    label = f"{method}, {size} × {size}, rank {rank} vs. PEFT"
    return compared(label, median(took), theirs, merged["layer"].delta(), expected, faster, same=1e-4)


def compared(
    label: str, ours: float, theirs: float, found: torch.Tensor, expected: torch.Tensor, faster: float, same: float
) -> tuple[list[str], list[str]]:
    """A row of the table from two times and two matrices, and the claims that do not hold: how much faster, how much the same."""
    error, ratio = float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected)), theirs / ours
    row = [
        f"{label} (same to {error:.0e})",
        f"{1000 * ours:.0f} ms",
        f"{1000 * theirs:.0f} ms",
        f"{ratio:.0f} × faster",
    ]
    missed = [f"{label}: {ratio:.1f} times faster, not {faster:g}"] if ratio < faster else []
    return row, missed + ([f"{label}: differs by {error:.1e}"] if error > same else [])


def knots_reference(sources: list[lego.Adapter], module: str, density: float) -> torch.Tensor:
    """KnOTS by its definition: the SVD of the dense updates side by side, TIES on the parts of Σ V (arXiv 2410.19735)."""
    deltas = [source[module].delta() for source in sources]
    left, values, right = torch.linalg.svd(torch.cat(deltas, dim=1), full_matrices=False)
    kept = values > 1e-5 * values[0]
    parts = (values[kept, None] * right[kept]).chunk(len(sources), dim=1)
    trimmed = []
    for part in parts:
        least = part.abs().flatten().kthvalue(part.numel() - int(density * part.numel()) + 1).values
        trimmed.append(torch.where(part.abs() >= least, part, 0))
    stacked = torch.stack(trimmed)
    agrees = stacked.sign() == torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    return left[:, kept] @ ((stacked * agrees).sum(0) / agrees.sum(0).clamp_min(1))


def against_knots(size: int) -> tuple[list[str], list[str]]:
    """`knots_ties` against its dense definition on one module."""
    generator = torch.Generator().manual_seed(0)
    sources = []
    for i in range(4):
        down, up = (torch.randn(shape, generator=generator) / size**0.5 for shape in ((16, size), (size, 16)))
        sources.append(lego.Adapter.from_factors(f"a{i}", {"layer": lego.Factors(down, up, 2.0)}))
    references, merges = [], []
    theirs = seconds(lambda: references.append(knots_reference(sources, "layer", 0.5)))
    took = median(
        seconds(lambda: merges.append(lego.merge(sources, method="knots_ties", density=0.5))) for _ in range(3)
    )
    label = f"knots_ties, {size} × {size} vs. its dense definition"
    # Entries next to the limit fall on either side of it by rounding.
    return compared(label, took, theirs, merges[0]["layer"].delta(), references[0], faster=1, same=1e-2)


def against_safetensors(source: Path) -> tuple[list[str], list[str]]:
    """`preflight` of a folder of the real size against safetensors merely listing its shapes; a claim in milliseconds."""

    def listed() -> None:
        with safe_open(source / "adapter_model.safetensors", "pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                file.get_slice(key).get_shape()

    took, theirs = (min(seconds(work) for _ in range(20)) for work in (lambda: lego.preflight(source), listed))
    label = f"preflight, {len(lego.preflight(source).modules)} modules vs. listing shapes with safetensors"
    row = [label, f"{1000 * took:.1f} ms", f"{1000 * theirs:.1f} ms", f"{took / theirs:.1f} × its time"]
    return row, [f"{label}: {1000 * took:.0f} ms"] if took > PREFLIGHT_SECONDS else []


def main() -> int:
    """Measures, prints, and returns 1 where a claim does not hold."""
    parser = parser_for("merging", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the adapters lie or are made; a temporary one unless given")
    options = parser.parse_args()
    rows, missed = [], []
    with tempfile.TemporaryDirectory() as scratch:
        place = options.folder or Path(scratch)
        llama, sdxl = adapters.make_llama(place), adapters.make_sdxl(place)
        parts: list[tuple[list[list[str]], list[str]]] = [commands("Llama-2-7B", llama, Path(scratch), options.rounds)]
        parts.append(commands("SDXL", sdxl, Path(scratch), options.rounds))
        row, wrong = against_safetensors(llama[0])
        parts.append(([row], wrong))
    for row, wrong in (
        against_peft("svd", 4096, 16, faster=100),
        against_peft("ties_svd", 2048, 16, faster=2, density=0.5),
        against_knots(1024),
    ):
        parts.append(([row], wrong))
    for more, wrong in parts:
        rows += more
        missed += wrong
    text = table(["measured in one run, medians", "Brickyard", "peer", "ratio"], rows) + f"\n\n{machine()}"
    return finish("merging", text, missed, options.write)


if __name__ == "__main__":
    sys.exit(main())
