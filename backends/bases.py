"""The base models: what there is, and loading each once per process."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from backends import builtin, device, hub
from backends.builtin import ID as BUILTIN
from backends.builtin import home
from backends.errors import BaseError
from backends.packed import Packed, pack
from lego.errors import AdapterError

__all__ = ["BUILTIN", "BaseError", "BaseInfo", "TextBase", "catalogue", "home", "load_base", "module_shapes", "warm"]

Progress = Callable[[str, float | None], None]
Shapes = dict[str, tuple[int, int]]

KEPT = 2
"""Bases kept in memory when nobody uses them: the latest."""

TOKENIZER_FILES = (".json", ".txt", ".model", ".jinja", ".tiktoken")


@dataclass(frozen=True)
class BaseInfo:
    """One base model in the catalogue.

    Attributes:
        id: `BUILTIN`, a hub id or the path of a folder.
        title: for people.
        source: ``built-in``, ``hub`` or ``folder``.
        kind: ``text``.
        ready: whether loading needs no download and no conversion.
    """

    id: str
    title: str
    source: str
    kind: str = "text"
    ready: bool = False


@dataclass(eq=False)
class TextBase:
    """A loaded language model, shared by everyone in the process; nothing may change its weights.

    Attributes:
        lock: to be held around every forward pass.
        folder: where its files lie.
        commit: of the hub's repository.
        packed: speeds small batches up on the CPU, where it can.
    """

    model: Any
    tokenizer: Any
    info: BaseInfo
    device: torch.device
    dtype: torch.dtype
    folder: Path
    commit: str | None = None
    packed: Packed | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts can be put into the chat form the model was trained on."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The arguments that the model's forward pass knows."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of config and weights: equal for equal models wherever they came from."""
        digest = hashlib.sha256()
        for file in [self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))]:
            digest.update(builtin.sha256(file).encode())
        return digest.hexdigest()


_loaded: OrderedDict[str, TextBase] = OrderedDict()
_locks: dict[str, threading.Lock] = {}
_guard = threading.Lock()


def catalogue() -> list[BaseInfo]:
    """The built-in base, and those loaded in this process."""
    first = BaseInfo(BUILTIN, f"{builtin.TITLE} (built in)", "built-in", ready=builtin.ready())
    with _guard:
        return [first, *(base.info for name, base in _loaded.items() if name != BUILTIN)]


def load_base(id: str, progress: Progress | None = None) -> TextBase:
    """A base model, loaded at the first call and shared afterwards.

    Args:
        id: `BUILTIN`, a hub id (owner/name) or the path of a local folder.
        progress: is told what happens, and the fraction done or None; the terminal is told as well.

    Raises:
        BaseError: when it cannot be fetched or loaded, with what to do instead.
    """
    id = normalise(id)
    with _guard:
        lock = _locks.setdefault(id, threading.Lock())
    with lock:
        with _guard:
            if id in _loaded:
                _loaded.move_to_end(id)
                return _loaded[id]
        try:
            base = _load(id, Teller(id, progress))
        except AdapterError as error:
            if isinstance(error, BaseError):
                raise
            raise BaseError(error.what, error.where, error.fix) from error
        with _guard:
            _loaded[id] = base
            while len(_loaded) > KEPT:
                _loaded.popitem(last=False)
        return base


def warm(id: str = BUILTIN, progress: Progress | None = None) -> threading.Thread:
    """Load a base in the background; who needs it meanwhile waits in `load_base`, which also raises what went wrong."""

    def work() -> None:
        try:
            load_base(id, progress)
        except BaseError as error:
            print(f"brickyard: {error}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=work, name=f"load {id}", daemon=True)
    thread.start()
    return thread


def module_shapes(base: TextBase | str) -> Shapes:
    """(d_in, d_out) of every linear layer of a base.

    Args:
        base: a loaded one, or the id of one: the built-in needs no file for this, others need their config.json.

    Raises:
        AdapterError: when the config cannot be had.
    """
    model = base.model if isinstance(base, TextBase) else _skeleton(normalise(base))
    return {name: (m.in_features, m.out_features) for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def normalise(id: str) -> str:
    """The one form of a base's id: the built-in's, a resolved path, or owner/name with ``@revision`` where one was given.

    Raises:
        BaseError: when it is none of them.
    """
    text = id.strip()
    if text == BUILTIN:
        return text
    path = Path(text).expanduser()
    if path.is_absolute() or text.startswith(".") or path.is_dir():
        if not path.is_dir():
            raise BaseError("is not a folder", path)
        return str(path.resolve())
    try:
        name, at, revision = text.partition("@")
        repo, from_address = hub.parse_id(name)
    except AdapterError as error:
        raise BaseError(
            f"{text[:80]!r} is neither a hub id nor a folder", None, "Write owner/name or a path."
        ) from error
    revision = revision if at else from_address or ""
    return f"{repo}@{revision}" if revision else repo


class Teller:
    """Passes progress on, and prints it where it says something new."""

    def __init__(self, id: str, progress: Progress | None) -> None:
        self.id, self.progress, self.printed = id, progress, ("", -1)

    def __call__(self, text: str, fraction: float | None) -> None:
        if self.progress:
            self.progress(text, fraction)
        stage = re.sub(r"[\d,. ]+of.*", "", text), -1 if fraction is None else int(fraction * 10)
        if stage != self.printed:
            self.printed = stage
            print(f"brickyard: {self.id}: {text}", file=sys.stderr, flush=True)


def _load(id: str, tell: Teller) -> TextBase:
    folder, info, commit = _fetch(id, tell)
    tell("Loading the tokenizer and the weights", None)
    where, dtype = device.pick()
    if id == BUILTIN:
        dtype = torch.float32  # small enough everywhere, and exact: a row's text does not depend on its batch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local = {"trust_remote_code": False, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **local)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        told = str(error).strip().splitlines()
        raise BaseError(f"cannot be loaded: {told[0] if told else type(error).__name__}", id) from error
    model = model.to(where).eval().requires_grad_(False)
    packed = pack(model, where, dtype)
    tell("Ready", 1.0)
    return TextBase(model, tokenizer, replace(info, ready=True), where, dtype, folder, commit, packed)


def _fetch(id: str, tell: Teller) -> tuple[Path, BaseInfo, str | None]:
    """The local folder of a base's files, downloaded first where need be."""
    if id == BUILTIN:
        return builtin.ensure(tell), BaseInfo(id, f"{builtin.TITLE} (built in)", "built-in"), None
    path = Path(id)
    if path.is_absolute():
        names = {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}
        if "config.json" not in names:
            raise BaseError("has no config.json", path, "Give the folder that save_pretrained wrote.")
        weight_files(names, path)
        refuse_config(json.loads((path / "config.json").read_text(encoding="utf-8")), path)
        return path, BaseInfo(id, path.name, "folder"), None
    return _fetch_hub(id, tell)


def _fetch_hub(id: str, tell: Teller) -> tuple[Path, BaseInfo, str | None]:
    name, _, revision = id.partition("@")
    info = BaseInfo(id, name, "hub")
    tell(f"Asking the hub for {name}", None)
    try:
        repo = hub.look(name, revision or None)
    except BaseError:
        # No network: what was downloaded before will do.
        if (folder := hub.cached(name, revision or None, "config.json")) and list(folder.glob("*.safetensors")):
            return folder, info, folder.name
        raise
    if "config.json" not in repo.sizes:
        adapter = "adapter_config.json" in repo.sizes
        fix = "It is an adapter: add it to the library instead." if adapter else "It holds no model for transformers."
        raise BaseError("has no config.json", name, fix)
    weights = weight_files(repo.sizes, name)
    refuse_config(hub.read_json(repo, "config.json"), name)
    rest = [file for file in repo.sizes if "/" not in file and file.endswith(TOKENIZER_FILES)]
    return hub.download(repo, [*rest, *weights], tell), info, repo.commit


def weight_files(names: dict[str, int], where: object) -> list[str]:
    """The safetensors files that hold the model.

    Raises:
        BaseError: when there are none, as where only pickles are given, which are never loaded.
    """
    if "model.safetensors" in names:
        return ["model.safetensors"]
    shards = [name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    if shards and "model.safetensors.index.json" in names:
        return shards
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        why = "holds its weights only as pickles, which can run code and are never loaded"
        raise BaseError(why, where, "Ask its owner for safetensors, or look for a converted copy.")
    raise BaseError("has no model.safetensors", where, "Give a model in the transformers layout.")


def refuse_config(config: dict[str, Any], where: object) -> None:
    """Refuse, before weights are fetched, what is not a causal language model that transformers itself knows.

    Raises:
        BaseError: with the reason.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = config.get("model_type")
    if kind in CAUSAL and not config.get("is_encoder_decoder"):
        return
    if config.get("auto_map"):
        raise BaseError("needs program code from its repository, which is never run", where, "Choose another base.")
    raise BaseError(f"is a model of type {kind!r}, not a causal language model", where, "Choose another base.")


def _skeleton(id: str) -> nn.Module:
    """The model without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

    with _guard:
        if id in _loaded:
            return _loaded[id].model
    if id == BUILTIN:
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
        config: Any = LlamaConfig(num_attention_heads=9, num_key_value_heads=3, **sizes)
    else:
        name, _, revision = id.partition("@")
        repo_or_path = Path(id) if Path(id).is_absolute() else None
        folder = repo_or_path or hub.download(hub.look(name, revision or None), ["config.json"])
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise BaseError(f"its config cannot be read: {error}", id) from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def main() -> int:
    """``python -m backends.bases``: fetch and convert the built-in base, if that has not been done; 0 when it is there."""
    try:
        print(builtin.ensure(Teller(BUILTIN, None)))
    except BaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
