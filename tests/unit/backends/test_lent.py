"""Where GPUs are lent: a fake of the module that lends them runs each call in another process, older than what the call needs."""

from __future__ import annotations

import importlib
import multiprocessing
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backends import bases, device, gated, gates, image, lent, library, score, text, training_lent
from backends.drawing import Drawing
from backends.sampling import Sampling
from backends.variants import Variant
from lego import AdapterError
from mole.pool import Weighting
from tests.conftest import write_peft
from tests.tiny import tiny_model, tiny_tensors, tiny_tokenizer

MODULES = (text, image, score, gated, training_lent)


class Lender:
    """Runs functions in a forked process, everything that crosses pickled, as ZeroGPU does; the process knows no adapters."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.crossed = 0

    def GPU(self, duration: Any) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            import inspect

            def run(*args: Any) -> Iterator[Any]:
                self.asked.append(duration(*args))
                return self.away(function, pickle.dumps(args), inspect.isgeneratorfunction(function))

            if inspect.isgeneratorfunction(function):
                return run
            return lambda *args: list(run(*args))[-1]

        return decorate

    def away(self, function: Any, args: bytes, streams: bool) -> Iterator[Any]:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe(duplex=False)

        def work() -> None:
            library._kept.clear()
            gates._entries.clear()
            try:
                found = function(*pickle.loads(args))
                for item in found if streams else [found]:
                    there.send_bytes(pickle.dumps(("item", item)))
                there.send_bytes(pickle.dumps(("end", None)))
            except BaseException as error:  # noqa: BLE001
                there.send_bytes(pickle.dumps(("error", error)))

        process = context.Process(target=work, daemon=True)
        process.start()
        there.close()
        try:
            while True:
                kind, value = pickle.loads(here.recv_bytes())
                if kind == "end":
                    return
                if kind == "error":
                    raise value
                self.crossed += 1
                yield value
        finally:
            while process.is_alive() and here.poll(30):
                try:
                    here.recv_bytes()
                except EOFError:
                    break
            process.join(30)
            assert process.exitcode == 0, "the work went on after nobody wanted it"


@pytest.fixture
def lender(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lender]:
    """The backend as a ZeroGPU Space imports it; afterwards as it was."""
    made = Lender()
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=made.GPU))
    with monkeypatch.context() as there:
        there.setenv("SPACES_ZERO_GPU", "true")
        for module in MODULES:
            importlib.reload(module)
        yield made
    for module in MODULES:
        importlib.reload(module)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bases.TextBase:
    torch.set_num_threads(1)  # threads do not survive a fork
    monkeypatch.setenv("BRICKYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRICKYARD_DEVICE", "cpu")
    monkeypatch.setattr(bases, "_loaded", type(bases._loaded)())
    place = tmp_path / "tiny"
    tiny_model().save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return bases.load_base(str(place))


@pytest.fixture
def variants(tmp_path: Path) -> list[Variant]:
    keys = [library.add_folder(write_peft(tmp_path / f"lora{i}", tiny_tensors(i), r=4)).key for i in (1, 2)]
    return [Variant("base"), *(Variant(key, Weighting(((key, 3.0),))) for key in keys)]


SAMPLING = Sampling(max_new_tokens=6, chat=False)


def test_texts_are_the_same_wherever_they_are_made(base: Any, variants: list[Variant], lender: Lender) -> None:
    away = list(text.generate(base, variants, ["1 2", "3"], SAMPLING))
    assert lender.crossed == len(away) > 1
    importlib.reload(text)
    here = list(text.generate.__wrapped__(base, variants, ["1 2", "3"], SAMPLING))
    assert away[-1].texts == here[-1].texts
    assert len(set(away[-1].texts)) == 3, "the adapters arrived"
    assert not any(module._forward_hooks for module in base.model.modules())


def test_the_time_asked_for_follows_the_work(base: Any, variants: list[Variant], lender: Lender) -> None:
    for prompts, tokens in ((1, 4), (1, 500), (100, 500)):
        next(text.generate(base, variants, ["1"] * prompts, Sampling(max_new_tokens=tokens, chat=False)))
    assert lender.asked == sorted(lender.asked)
    assert len(set(lender.asked)) == 3
    assert all(lent.LEAST <= seconds <= lent.MOST for seconds in lender.asked)
    assert image.expected(variants, ["a"], Drawing(steps=50)) > image.expected(variants, ["a"], Drawing(steps=10))


def test_errors_come_back_whole(base: Any, lender: Lender) -> None:
    with pytest.raises(AdapterError, match=r"nothing to generate\. Give at least") as caught:
        next(text.generate(base, [], ["1"], SAMPLING))
    assert caught.value.fix == "Give at least one variant and one prompt."


def test_closing_ends_the_work_there(base: Any, variants: list[Variant], lender: Lender) -> None:
    running = text.generate(base, variants, ["1"], Sampling(max_new_tokens=500, chat=False))
    next(running)
    running.close()  # the fake looks whether the process has ended
    stop = threading.Event()
    stop.set()
    assert len(list(text.generate(base, variants, ["1"], Sampling(max_new_tokens=500, chat=False), stop))) < 50


def test_scores_are_the_same(base: Any, variants: list[Variant], lender: Lender) -> None:
    rows = [{"prompt": "1", "answer": "2"}, {"prompt": "3", "answer": "4"}]
    *_, away = score.score(base, variants, rows, chat=False)
    *_, here = score.score.__wrapped__(base, variants, rows, chat=False)
    assert away.nll == here.nll
    assert lender.asked


def test_gates_are_trained_there_and_learned_here(
    base: Any, variants: list[Variant], lender: Lender, tmp_path: Path
) -> None:
    from mole.recipe import GateRecipe

    keys = [variant.weighting.adapters[0][0] for variant in variants[1:]]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1", "answer": "2"}\n{"prompt": "3", "answer": "4"}\n' * 4)
    recipe = GateRecipe.check(
        {
            "sources": [{"path": key} for key in keys],
            "data": [{"rows": str(rows)}],
            "training": {"steps": 3, "batch": 2, "calibration": 2},
        },
        "here",
    )
    training = training_lent.begin(base, keys, recipe)
    assert isinstance(training, training_lent.LentTraining)
    before = {name: value.clone() for name, value in training.gates.state_dict().items()}
    assert [progress.step for progress in training.run()][-1] == 3
    after = training.gates.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    entry = training.add("there")
    gates._entries.pop(entry.key)
    assert gates.entry(entry.key).experts == tuple(keys)
    assert len(lender.asked) == 1
    trace = gated.choices(base, entry, ["1"], chat=False)
    assert torch.equal(trace.choices, gated.choices.__wrapped__(base, entry, ["1"], chat=False).choices)


def test_elsewhere_nothing_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)

    def work() -> None: ...

    assert lent.lent(lambda: 1)(work) is work
    assert not hasattr(text.generate, "__wrapped__")
    assert device.own() == device.pick()


def test_the_lent_gpu_is_not_touched_before_it_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **asked: pytest.fail("asked the GPU"))
    assert device.has_bf16()
    assert device.own()[0].type == "cpu"
