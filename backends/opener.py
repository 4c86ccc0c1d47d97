"""Adapters from the hub: looked at by their headers, then fetched, always at a commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends import hub
from lego import Adapter, AdapterError, read_adapter
from lego.formats import diffusers, peft
from lego.formats.opening import read_card
from lego.preflight import Preflight, preflight_header

MOST_BYTES = 4 * 2**30
"""Larger adapters are not fetched."""


def fetch(
    hub_id: str,
    revision: str | None = None,
    refuse: Callable[[Preflight], str | None] | None = None,
    token: str | None = None,
    progress: hub.Progress | None = None,
) -> Adapter:
    """An adapter of the hub, refused from its headers where it must be, then downloaded or found in the cache.

    Args:
        hub_id: owner/name, or the address of its page.
        revision: branch, tag or commit; a commit that was downloaded before needs no network, if its weights have PEFT's or
            diffusers' own name.
        refuse: gives a further reason not to download what it is shown.
        token: of an account that may read it, where not everyone may.
        progress: is told what happens, and the fraction of bytes.

    Returns:
        The adapter, its ``origin`` owner/name@commit.

    Raises:
        AdapterError: when it does not exist, may not be read, is not a usable LoRA, or the hub cannot be reached.
    """
    hub_id, from_address = hub.parse_id(hub_id)
    revision = revision or from_address
    commit, place = revision, downloaded(hub_id, revision) if revision else None
    if place is None:
        tell = progress or (lambda text, fraction: None)
        tell(f"Asking the hub for {hub_id}", None)
        repo = hub.look(hub_id, revision, token)
        names, commit = files(repo), repo.commit
        tell(f"Reading the header of {names[-1]}", None)
        found = judge(repo, names)
        if reason := next(iter(found.reasons), None) or (refuse and refuse(found)):
            raise AdapterError(reason, hub_id)
        place = (hub.download(repo, names, progress) / names[-1]).parent
    return replace(read_adapter(place), name=hub_id.split("/")[1], origin=f"{hub_id}@{commit}")


def downloaded(hub_id: str, commit: str) -> Path | None:
    """The folder of an adapter that was downloaded at this commit; None where there is none, or its file has a name of its own."""
    found = (hub.cached(hub_id, commit, name) for name in (peft.WEIGHTS, diffusers.WEIGHTS))
    return next(filter(None, found), None)


def preflight(hub_id: str, revision: str | None = None) -> Preflight:
    """What the headers of an adapter on the hub tell, by range requests.

    Raises:
        AdapterError: when it does not exist, may not be read, holds no adapter, or the hub cannot be reached.
    """
    hub_id, from_address = hub.parse_id(hub_id)
    repo = hub.look(hub_id, revision or from_address)
    return judge(repo, files(repo))


def files(repo: hub.Repo) -> list[str]:
    """The names of the files that make the adapter, the weights last: PEFT's, diffusers' file, or the only safetensors file.

    Raises:
        AdapterError: when there is none or no telling which, or it is too large.
    """
    if peft.CONFIG in repo.sizes:
        names = [name for name in (peft.CONFIG, peft.CARD, peft.WEIGHTS) if name in repo.sizes]
        if peft.WEIGHTS not in names:
            pickled = "adapter_model.bin" in repo.sizes
            why = "holds its weights only as a pickle, which is never loaded" if pickled else f"has no {peft.WEIGHTS}"
            raise AdapterError(why, repo.id, "Ask its owner for safetensors.")
    elif "config.json" in repo.sizes or "model_index.json" in repo.sizes:
        raise AdapterError(f"has no {peft.CONFIG}", repo.id, "It is a whole model: load it as the base.")
    else:
        names = [name for name in repo.sizes if name.endswith(".safetensors")]
        names = [diffusers.WEIGHTS] if diffusers.WEIGHTS in names else names
        if len(names) != 1:
            what = (
                f"holds {len(names)} safetensors files and no {peft.CONFIG}" if names else "holds no safetensors file"
            )
            raise AdapterError(what, repo.id, "Download the file that you mean and give its path.")
        if peft.CARD in repo.sizes and "/" not in names[0]:
            names.insert(0, peft.CARD)
    if (size := repo.sizes[names[-1]]) > MOST_BYTES:
        raise AdapterError(
            f"has {size / 1e9:.1f} GB of weights, more than the {MOST_BYTES / 2**30:.0f} GB allowed", repo.id
        )
    return names


def judge(repo: hub.Repo, names: Sequence[str]) -> Preflight:
    """The preflight of a repository's adapter."""
    config = hub.read_json(repo, peft.CONFIG) if peft.CONFIG in names else None
    card = read_card(hub.download(repo, [peft.CARD]) / peft.CARD) if peft.CARD in names else None
    return preflight_header(header(repo, names[-1]), config, repo.id, card)


def header(repo: hub.Repo, name: str) -> dict[str, Any]:
    """The header of a safetensors file, without the rest of it.

    Raises:
        AdapterError: when the file is damaged or cannot be had.
    """
    from huggingface_hub.errors import SafetensorsParsingError

    with hub.hub_errors(repo.id, repo.commit):
        try:
            found = hub.api(repo.token).parse_safetensors_file_metadata(repo.id, name, revision=repo.commit)
        except SafetensorsParsingError as error:
            raise AdapterError(f"its {name} is not a readable safetensors file", repo.id) from error
    tensors = {
        key: {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": list(info.data_offsets)}
        for key, info in found.tensors.items()
    }
    return {"__metadata__": found.metadata, **tensors} if found.metadata else tensors
