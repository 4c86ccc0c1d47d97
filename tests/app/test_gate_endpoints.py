"""The endpoints about gates, called as a program calls them."""

from __future__ import annotations

import json
import math
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from safetensors.numpy import load_file

ADAPTERS = Path(__file__).parents[2] / "assets" / "text" / "adapters"
SOURCES = ["past-tense", "sentiment"]
SHORT = {"steps": 2, "batch": 2, "calibration": 2, "lr": 0.001}
PROMPTS = ["What is the past tense of 'go'? Answer with one word.", "Is this good or bad?\nI loved every minute of it."]


@pytest.fixture(scope="module")
def steps(client: Client) -> list[dict]:
    """A short training, as it streams."""
    job = client.submit(
        SOURCES, {"past-tense": 2, "sentiment": 1}, {"granularity": "layer"}, SHORT, name="two", api_name="/train_gate"
    )
    return list(job)


def parts() -> set[str]:
    """The attentions and feed-forwards that the LoRAs adapt, from their files: base_model.model.model.layers.3.self_attn.…"""
    files = [ADAPTERS / name / "adapter_model.safetensors" for name in SOURCES]
    return {".".join(key.split(".")[2:6]) for file in files for key in load_file(file)}


def test_a_training_streams_its_steps_and_ends_with_a_key(steps: list[dict]) -> None:
    *streamed, last = steps
    assert [step["step"] for step in streamed] == [1, 2]
    first = streamed[0]
    assert first["balance"] == pytest.approx(2 * math.log(2), rel=1e-5)  # N log N: new gates trust all alike
    assert first["entropy"] == pytest.approx(math.log(2), rel=1e-5)
    np.testing.assert_allclose(first["shares"], 0.5, atol=1e-6)
    np.testing.assert_allclose(np.sum(streamed[1]["shares"], axis=1), 1, rtol=1e-5)
    assert len(first["shares"]) == last["gates"] == len(parts())
    assert last["stopped"] is None
    with zipfile.ZipFile(last["file"]) as archive:
        config = json.loads(archive.read("two/gate_config.json"))
    assert config["steps"] == 2
    assert [data["share"] for data in config["recipe"]["data"]] == [2, 1]


def test_rows_of_ones_own_train_gates(client: Client) -> None:
    rows = [{"prompt": f"Say {word}.", "answer": word} for word in ("red", "blue", "green")]
    settings = {"granularity": "network", "base_expert": True}
    *streamed, last = client.submit(SOURCES[:1], None, settings, {**SHORT, "steps": 1}, rows, api_name="/train_gate")
    assert len(streamed) == last["gates"] == 1
    found = client.predict(last["key"], PROMPTS[0], api_name="/gates")
    assert found["experts"] == ["past-tense", "base"]


def test_gates_tell_what_they_choose(client: Client, steps: list[dict]) -> None:
    key = steps[-1]["key"]
    found = client.predict(key, PROMPTS[0], api_name="/gates")
    weights = np.array(found["weights"])
    assert found["experts"] == SOURCES
    assert weights.shape == (len(found["places"]), 2)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert found["largest"] == pytest.approx(weights.max(axis=1).mean(), rel=1e-5)
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    assert found["entropy"] == pytest.approx(-(weights * logs).sum(axis=1).mean(), rel=1e-4)
    other = np.array(client.predict(key, PROMPTS[1], api_name="/gates")["weights"])
    assert np.abs(other - weights).max() > 1e-4
    masked = client.predict(key, PROMPTS[0], ["sentiment"], api_name="/gates")
    np.testing.assert_allclose(masked["weights"], [[1, 0]] * len(weights), atol=1e-6)


def test_gates_that_ship_are_asked_by_name(client: Client) -> None:
    whole = client.predict("three-tasks", PROMPTS[0], api_name="/gates")
    masked = client.predict("three-tasks", PROMPTS[0], ["language"], api_name="/gates")
    assert whole["experts"] == ["past-tense", "sentiment", "language"]
    first = np.array(whole["weights"])[0, :2]  # later gates read what the masked model makes of the prompt
    np.testing.assert_allclose(np.array(masked["weights"])[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(np.array(masked["weights"])[0, :2], first / first.sum(), rtol=1e-3)


def test_gated_variants_are_compared_beside_the_others(client: Client, steps: list[dict]) -> None:
    key = steps[-1]["key"]
    variants = [
        {"name": "base"},
        {"name": "sentiment", "adapters": {"sentiment": 1}},
        {"name": "average", "adapters": {"past-tense": 0.5, "sentiment": 0.5}},
        {"name": "gates", "gates": key},
        {"name": "only sentiment", "gates": key, "masked": ["past-tense"]},
    ]
    found = client.predict(variants, PROMPTS, length=8, api_name="/compare")
    told = {variant["name"]: variant for variant in found["variants"]}
    assert found["finished"]
    assert told["only sentiment"]["texts"] == told["sentiment"]["texts"] != told["base"]["texts"]
    assert told["gates"]["gates"] == key
    past_tense = client.predict("past-tense", api_name="/inspect")["key"]
    assert told["only sentiment"]["masked"] == [past_tense]
    assert "gates" not in told["average"]


BAD = [
    ("/gates", ["no-such", "hello"], "there are no gates 'no-such'"),
    ("/gates", ["0123456789ab", "hello"], "no gates with this key"),
    ("/gates", ["three-tasks", ""], "there is no prompt"),
    ("/gates", ["three-tasks", "hello", ["plural"]], "is not among the gates' experts"),
    ("/gates", ["three-tasks", "hello", "plural"], "masked must be a list"),
    ("/gates", ["three-tasks", "hello", ["past-tense", "sentiment", "language"]], "everything is masked"),
    ("/compare", [[{"name": "x", "gates": "three-tasks", "adapters": {"plural": 1}}], ["hello"]], "not both"),
    ("/compare", [[{"name": "x", "gates": "three-tasks", "masked": ["kind"]}], ["hello"]], "not among the gates'"),
    ("/train_gate", [["sentiment"]], "one LoRA leaves nothing to choose"),
    ("/train_gate", [[]], "adapters must be a list"),
    ("/train_gate", [SOURCES, {"/etc/passwd": 1}], "there is no task '/etc/passwd'"),
    ("/train_gate", [SOURCES, {"sentiment": 0}], "data[0].share"),
    ("/train_gate", [SOURCES, {}], "nothing to train on"),
    ("/train_gate", [SOURCES, None, {"granularity": "head"}], "gates.granularity"),
    ("/train_gate", [SOURCES, None, {"colour": 1}], "no field 'colour'"),
    ("/train_gate", [SOURCES, None, None, {"steps": 0}], "training.steps"),
    ("/train_gate", [SOURCES, None, None, None, [{"prompt": "x"}]], "rows.jsonl, line 1: is not a row"),
    ("/train_gate", [SOURCES, None, None, None, "rows"], "rows must be a list"),
]


@pytest.mark.parametrize(("endpoint", "arguments", "message"), BAD)
def test_bad_input_is_answered_with_its_reason(client: Client, endpoint: str, arguments: list, message: str) -> None:
    with pytest.raises(AppError, match="(?s)" + re.escape(message)):
        client.predict(*arguments, api_name=endpoint)
