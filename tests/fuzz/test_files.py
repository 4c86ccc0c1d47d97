"""Adapter files damaged in thousands of ways: each is refused in a clear error, at once, or read as an independent reader reads it."""

from __future__ import annotations

import gc
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers.loaders.lora_conversion_utils  # noqa: F401 - what reading a kohya file imports, which is not a file's fault
import numpy as np
import pytest

import lego
from lego import Adapter, AdapterError
from tests.fuzz.damage import DAMAGES, SLOW, build
from tests.fuzz.seeds import Truth, halves, peft, seeds, truth

CASES = 6000
WARM = 200  # cases after which memory must not grow any more
SECONDS = 1.0  # of the processor, so that a machine with other work to do fails nothing
HANG = 30.0  # by the clock: what waits uses no processor
MEGABYTES = 50


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt what hangs, which then fails as too slow."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def resident() -> float:
    """Megabytes of this process in memory."""
    gc.collect()
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def read(path: Path) -> dict[str, Truth] | AdapterError:
    """The adapter with all its tensors, or the error that refuses it."""
    try:
        return held(lego.read_adapter(path))
    except AdapterError as error:
        return error


def held(adapter: Adapter) -> dict[str, Truth]:
    """All modules of an adapter, dense."""
    found = {}
    for module in adapter.modules:
        factors = adapter[module]
        delta = factors.scale * (factors.up.double() @ factors.down.double()).numpy()
        found[module] = Truth(delta, None if factors.bias is None else factors.scale * factors.bias.double().numpy())
    return found


def verdict(path: Path) -> str:
    """Why preflight refuses it; "" where it does not."""
    try:
        return "; ".join(lego.preflight(path).reasons)
    except AdapterError as error:
        return str(error)


def check_equal(ours: dict[str, Truth], theirs: dict[str, Truth], named: bool) -> None:
    """The same modules with the same updates; in files of other names than ours, the same updates in some order."""

    def signed(values: dict[str, Truth]) -> list[tuple[str, Truth]]:
        key = (
            (lambda item: item[0])
            if named
            else (lambda item: (item[1].delta.shape, *item[1].delta.ravel()[:3].round(5)))
        )
        return sorted(values.items(), key=key)

    assert len(ours) == len(theirs), f"{len(ours)} modules of {len(theirs)}"
    for (name, one), (other_name, other) in zip(signed(ours), signed(theirs), strict=True):
        assert not named or name == other_name
        assert one.delta.shape == other.delta.shape, name
        assert np.isfinite(other.delta).all(), f"{name}: accepted what is not finite"
        size = max(np.abs(other.delta).max(), 1e-30)
        assert np.abs(one.delta - other.delta).max() <= 1e-5 * size, f"{name}: a wrong update"
        assert (one.bias is None) == (other.bias is None), name
        if one.bias is not None:
            np.testing.assert_allclose(one.bias, other.bias, rtol=1e-5)


def check(path: Path) -> str:
    """One case; what became of it."""
    start = time.process_time()
    refused = verdict(path)
    middle = time.process_time()
    found = read(path)
    seconds = time.process_time() - middle, middle - start
    assert max(seconds) < SECONDS, f"took {seconds[1]:.2f} s to look at and {seconds[0]:.2f} s to read"
    if isinstance(found, AdapterError):
        text = str(found)
        assert text.isprintable(), f"an error that is no clean line: {text!r}"
        assert len(text) < 3000, f"an error of {len(text)} characters"
        if refused:
            return "refused"
        assert "holds NaN or infinite values" in text, f"read_adapter alone refuses it: {text}"
        return "not finite"
    assert not refused, f"preflight alone refuses it: {refused}"
    check_equal(found, truth(path), lego.preflight(path).format == "peft")
    return "read"


@pytest.mark.parametrize("name", seeds())
def test_sound_files_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    assert check(seeds()[name].write(tmp_path / "a")) == "read"


# Headers that are costly to read for what they hold.
COSTLY: dict[str, Callable[[], bytes]] = {
    "names repeated": lambda: b"{" + b",".join(b'"%07d":1' % i for i in range(60_000)) + b',"0059999":2}',
    "names": lambda: b"{" + b",".join(b'"%07d":1' % i for i in range(340_000)) + b"}",
    "more names": lambda: b"{" + b",".join(b'"%07d":1' % i for i in range(1_000_000)) + b"}",
    "numbers": lambda: b'{"a":[' + b"1," * 5_000_000 + b"1]}",
    "lists": lambda: b'{"a":[' + b"[]," * 3_000_000 + b"1]}",
    "lists inside each other": lambda: b'{"a":' + b"[" * 10_000_000,
    "a long name": lambda: b'{"' + b"a" * 24_000_000 + b'":1}',
    "dots": lambda: b'{"' + b"." * 10_000_000 + b'":1}',
    "backslashes": lambda: b'{"' + b"\\\\" * 5_000_000 + b'":1}',
    "spaces": lambda: b"{" + b" " * 24_000_000 + b"}",
    "a long text": lambda: b'{"__metadata__":{"a":"' + b"a" * 24_000_000 + b'"}}',
    "a long number": lambda: b'{"a":' + b"9" * 20_000_000 + b"}",
}


@pytest.mark.parametrize("name", COSTLY)
def test_headers_that_are_costly_to_read(tmp_path: Path, name: str) -> None:
    path, text = tmp_path / "a.safetensors", COSTLY[name]()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    assert check(path) == "refused"


def test_a_header_of_more_than_100_MB(tmp_path: Path) -> None:
    path, before = tmp_path / "a.safetensors", resident()
    path.write_bytes((100_000_001).to_bytes(8, "little") + b'{"' + bytes(100_000_000))
    assert check(path) == "refused"
    assert resident() - before < 1


@pytest.mark.parametrize("pattern", [*SLOW, r"(.*\.)?(.*\.)?(.*\.)?x", ".*.*x", ".*a.*a.*x", "[a-z.]*[a-z.]*x"])
def test_patterns_that_may_take_for_ever(tmp_path: Path, pattern: str) -> None:
    """Against 100 modules of long names, as they would have to be tried."""
    names = ["a" * 60, "a" * 900, "x" * 200, "ab" * 100, "a." * 90, "(" * 90]
    tensors = {}
    for number in range(100):
        tensors |= halves(f"base_model.model.{number}.{names[number % len(names)]}", 0, 4, 1, 1)
    for name, config in (("rank", {"rank_pattern": {pattern: 4}}), ("alpha", {"alpha_pattern": {pattern: 8}})):
        assert check(peft(tensors, **config).write(tmp_path / name)) in ("refused", "read")


def test_ordinary_patterns_are_matched(tmp_path: Path) -> None:
    """Those that people write, on 700 modules."""
    patterns = [
        r".*\.(0|1|2|3|1[0-9])\.self_attn\.(q|k)_proj",
        "^model.*layers.*v_proj",
        r"layers\.\d+\.mlp\.(gate|up)_proj",
        "self_attn.o_proj",
    ]
    kinds = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    tensors = {}
    for layer in range(100):
        for kind in kinds:
            tensors |= halves(f"base_model.model.model.layers.{layer}.{kind}", 0, 2, 2, 2)
    alphas = {pattern: number + 1 for number, pattern in enumerate(patterns)}
    assert check(peft(tensors, r=2, alpha_pattern=alphas).write(tmp_path / "a")) == "read"


def test_every_damaged_file_is_refused_or_read_right(tmp_path: Path) -> None:
    failures, outcomes, slowest, before = [], Counter(), (0.0, ""), 0.0
    for number in range(CASES):
        what, path = build(number, tmp_path / str(number))
        start = time.process_time()
        try:
            with at_most(HANG):
                outcomes[check(path)] += 1
        except Exception as error:  # noqa: BLE001 - any other exception is the find
            failures.append(f"case {number} ({what}): {type(error).__name__}: {str(error)[:300]}")
        slowest = max(slowest, (time.process_time() - start, what))
        if number == WARM:
            before = resident()
    grown = resident() - before
    print(f"{CASES} cases of {len(DAMAGES)} kinds: {dict(outcomes)}; slowest {slowest}; {grown:+.1f} MB")
    told = "\n".join(failures[:20])
    assert not failures, f"{len(failures)} cases; tests.fuzz.damage.build(NUMBER, FOLDER) makes one again\n{told}"
    assert outcomes["read"] > CASES // 20, "too few damaged files are still adapters: values are hardly compared"
    assert grown < MEGABYTES, f"memory grew by {grown:.0f} MB"
