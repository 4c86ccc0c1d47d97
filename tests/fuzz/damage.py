"""What can be wrong with an adapter's files: one function a kind of damage, which changes `Files` by a seeded generator.

`build(number, folder)` makes case number so-and-so, the same one every time.
"""

from __future__ import annotations

import copy
import json
import math
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.seeds import CONFIG, PEFT, Files, seeds

Damage = Callable[[Random, Files], None]
DAMAGES: dict[str, Damage] = {}
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e300, math.nan, math.inf, -math.inf, 2**31, 2**60, 2**63, 2**64, 10**400, "",
    "8", "abc",
    "\x00", "\x1b[2J", "\ud800", "a/../b", [], [1], ["a", None], [[]], {}, {"a": 1}, {"": None},
]  # fmt: skip
SLOW = [
    "(a+)+$", "(a|a)*b", "((a*)*)*b", "(.*a){12}x", "a*a*a*a*a*a*a*b", ".*.*.*.*.*x", "(a|a)" * 40 + "b", "(a?){30}a{30}", "[",
    "(", "*", "(?P<a>",
    r"\1", "(?<=a+)b", "a{99999999999}", "(?R)", "(?i:a+)+b", "(" * 500 + ")" * 500, "(" * 90 + ")" * 90, "a" * 100_000,
    "[a-z]+" * 12 + "x",
    "(a+|b)?" * 6 + "$x", r"(.*)\2\2x", "(x+x+)y?" * 3, ".*(.*(.*(.*x)))", "a??a??a??a??a??b", "(?:a|aa){2,50}x",
    "(?:(?:a|aa)(?:a|aa))x" * 9,
]  # fmt: skip
NAMES = [
    "", ".", "..", "/", "../../etc/passwd", "a\nb", "\x1b[31mred", "\x00", "\ud800", "a" * 3000, "." * 5000, "é", "\u202etxt",
    "__metadata__",
    "lora_A.weight", ".lora_A.weight", "base_model.model..lora_A.weight", "base_model.model.lora_A.weight", "lora_unet_",
    "unet.", "x.alpha",
    "base_model.model.a\rb.lora_A.weight", "unet.a.lora_A.bias", "lora_unet_down_blocks_99_to_q.lora_down.weight",
    "unet..lora_A.weight",
]  # fmt: skip
FIELDS = [
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules", "modules_to_save",
    "peft_type", "bias",
    "init_lora_weights", "fan_in_fan_out", "task_type", "base_model_name_or_path", "layer_replication", "lora_bias",
    "layers_to_transform",
    "trainable_token_indices", "something_new", "inference_mode", "lora_dropout", "eva_config", "target_parameters", "auto_mapping",
]  # fmt: skip


def damage(function: Damage) -> Damage:
    """Register a kind of damage under its name."""
    DAMAGES[function.__name__] = function
    return function


def build(number: int, folder: Path) -> tuple[str, Path]:
    """Make a case: what it is, in words, and the path to give to the reader."""
    random, sound, kinds = Random(number), seeds(), list(DAMAGES)
    kind, seed = kinds[number % len(kinds)], random.choice(list(sound))
    files = copy.deepcopy(sound[seed])
    DAMAGES[kind](random, files)
    return f"{kind} of {seed}", files.write(folder)


def take(files: Files) -> tuple[dict[str, Any], bytes]:
    """The header and the tensors of the weights file."""
    data = files.content[files.weights]
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def give(files: Files, header: dict[str, Any] | str | bytes, data: bytes) -> None:
    """Put them back."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    files.content[files.weights] = struct.pack("<Q", len(text)) + text + data


def entries(header: dict[str, Any]) -> list[str]:
    return [key for key in header if key != "__metadata__"]


def settings(files: Files) -> tuple[dict[str, Any], Callable[[dict[str, Any] | str], None]]:
    """The LoRA config wherever the format has it, and how to put it back."""
    if CONFIG in files.content:

        def put(config: dict[str, Any] | str) -> None:
            files.content[CONFIG] = (config if isinstance(config, str) else json.dumps(config)).encode()

        return json.loads(files.content[CONFIG]), put
    header, data = take(files)
    told = json.loads(header["__metadata__"].get("lora_adapter_metadata", '{"unet.lora_alpha": 2}'))

    def put_into_header(config: dict[str, Any] | str) -> None:
        named = config if isinstance(config, str) else json.dumps({f"unet.{k}": v for k, v in config.items()})
        header["__metadata__"]["lora_adapter_metadata"] = named
        give(files, header, data)

    return {name.removeprefix("unet."): value for name, value in told.items()}, put_into_header


@damage
def truncated(random: Random, files: Files) -> None:
    name = random.choice(list(files.content))
    files.content[name] = files.content[name][: random.randrange(len(files.content[name]))]


@damage
def flipped_anywhere(random: Random, files: Files) -> None:
    name = random.choice(list(files.content))
    flip(random, files, name, 0, len(files.content[name]))


@damage
def flipped_length(random: Random, files: Files) -> None:
    flip(random, files, files.weights, 0, 8)


@damage
def flipped_header(random: Random, files: Files) -> None:
    name = files.weights
    flip(random, files, name, 8, 8 + struct.unpack("<Q", files.content[name][:8])[0])


@damage
def flipped_data(random: Random, files: Files) -> None:
    name = files.weights
    flip(random, files, name, 8 + struct.unpack("<Q", files.content[name][:8])[0], len(files.content[name]))


def flip(random: Random, files: Files, name: str, start: int, stop: int) -> None:
    """Flip one to three bits of a range."""
    data = bytearray(files.content[name])
    for _ in range(random.randint(1, 3)):
        data[random.randrange(start, stop)] ^= 1 << random.randrange(8)
    files.content[name] = bytes(data)


@damage
def spliced(random: Random, files: Files) -> None:
    """Bytes removed, repeated, zeroed or put in somewhere."""
    name = random.choice(list(files.content))
    data = files.content[name]
    start = random.randrange(len(data))
    stop = min(len(data), start + random.choice([1, 2, 7, 8, 64, 300]))
    middle = random.choice([b"", data[start:stop] * 2, bytes(stop - start), random.randbytes(stop - start), b"\xff"])
    files.content[name] = data[:start] + middle + data[stop:]


@damage
def replaced(random: Random, files: Files) -> None:
    """A whole file of something else."""
    texts = [
        b"",
        b"\x00",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"a"',
        b"\xff\xfe{}",
        bytes(8),
        b"\x80\x04K\x01.",
        random.randbytes(200),
    ]
    texts += [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        "{}".encode("utf-16"),
        b"{}" + bytes(5000),
        b"version https://git-lfs",
    ]
    texts += [struct.pack("<Q", size) + b"{" for size in (1, 2, 2**20, 10**8, 10**8 + 1, 2**60, 2**63, 2**64 - 1)]
    files.content[random.choice(list(files.content))] = random.choice(texts)


@damage
def another_type(random: Random, files: Files) -> None:
    header, data = take(files)
    types = [
        "I64",
        "BOOL",
        "F8_E4M3",
        "F8_E5M2",
        "F4",
        "U8",
        "F16",
        "BF16",
        "F32",
        "F64",
        "C64",
        "float32",
        "",
        None,
        5,
        ["F32"],
    ]
    header[random.choice(entries(header))]["dtype"] = random.choice(types)
    give(files, header, data)


@damage
def another_type_that_fits(random: Random, files: Files) -> None:
    """The same bytes as another type of the same width."""
    header, data = take(files)
    same = {
        "F32": ["I32", "U32"],
        "F16": ["BF16", "I16"],
        "BF16": ["F16", "U16"],
        "F64": ["I64", "C64"],
        "I64": ["F64"],
    }
    for key in random.sample(entries(header), random.randint(1, len(entries(header)))):
        header[key]["dtype"] = random.choice(same[header[key]["dtype"]])
    give(files, header, data)


@damage
def another_shape(random: Random, files: Files) -> None:
    header, data = take(files)
    entry = header[random.choice(entries(header))]
    shape = entry["shape"] or [1]
    count = math.prod(shape)
    found = [
        shape[::-1], [count], [1, count], [count, 1], [*shape, 1], [1, *shape], [], [0], [0, 5], [2**60], [2**32, 2**32], [-1,
        -count],
        [float(side) for side in shape], [str(side) for side in shape], [True] * len(shape), [shape], [*shape, *[1] * 90],
        None, count, {"a": 1},
        [2**63, 0], [10**30, 0], [shape[0] // 2, *shape[1:], 2],
    ]  # fmt: skip
    entry["shape"] = random.choice(found)
    give(files, header, data)


@damage
def other_offsets(random: Random, files: Files) -> None:
    header, data = take(files)
    entry = header[random.choice(entries(header))]
    start, stop = entry["data_offsets"]
    by = random.choice([1, 2, 4, 8, -1, -4, 10_000, 2**60, 2**63, -(2**63)])
    found = [
        [start + by, stop + by], [start, stop + by], [start - by, stop], [stop, start], [0, stop - start], [start], [start,
        stop, stop], [],
        [-stop, -start], None, "0", [str(start), str(stop)], [float(start), float(stop)], [None, None], [2**60,
        2**60 + stop - start],
    ]  # fmt: skip
    entry["data_offsets"] = random.choice(found)
    give(files, header, data)


@damage
def swapped(random: Random, files: Files) -> None:
    """What is said of two tensors exchanged: the whole of it, the shape or the place."""
    header, data = take(files)
    one, other = random.sample(entries(header), 2)
    part = random.choice(["", "shape", "data_offsets", "dtype"])
    if part:
        header[one][part], header[other][part] = header[other][part], header[one][part]
    else:
        header[one], header[other] = header[other], header[one]
    give(files, header, data)


@damage
def renamed(random: Random, files: Files) -> None:
    """A tensor of another name: odd, misspelt, of another module, or that of one that is there."""
    header, data = take(files)
    old = random.choice(entries(header))
    place = random.randrange(len(old))
    misspelt = [old[:place] + letter + old[place + 1 :] for letter in "._0aA\x07"]
    other = [
        old.replace("0", "1"), old.replace("lora_A", "lora_B"), old.replace("down.weight", "up.weight"), old.upper(),
        old + ".weight",
        old.replace("self_attn", "a" * random.choice([10, 100, 900])), old.replace("_te_", "_te1_"), old.replace(".processor", ""),
        old.replace("unet.", ""), old.replace("lora_A", "lora_down"), old.replace(".lora_down", ".down"), old.replace("to_q",
        "to_k"),
    ]  # fmt: skip
    new = random.choice([*misspelt, *other, random.choice(NAMES)])
    give(files, {new if key == old else key: value for key, value in header.items()}, data)


@damage
def twice(random: Random, files: Files) -> None:
    """A name repeated in a JSON object, in the header or in the config."""
    if CONFIG in files.content and random.random() < 0.5:
        config = json.loads(files.content[CONFIG])
        field = random.choice(list(config))
        text = json.dumps({field: random.choice(ODD[:6])})[:-1] + ", " + json.dumps(config)[1:]
        files.content[CONFIG] = text.encode()
        return
    header, data = take(files)
    key = random.choice(list(header))
    give(files, json.dumps(header)[:-1] + ", " + json.dumps({key: header[random.choice(entries(header))]})[1:], data)


@damage
def another_tensor(random: Random, files: Files) -> None:
    """One more tensor, sound in itself: unknown, of another method, a second half or a second alpha of a module."""
    header, data = take(files)
    key = random.choice(entries(header))
    stem = key.rsplit(".", 3 if ".lora" in key else 1)[0]
    names = [
        f"{stem}.dora_scale", f"{stem}.lora_magnitude_vector", f"{stem}.hada_w1_a", f"{stem}.alpha", f"{stem}.lora_B.bias",
        f"{stem}.diff",
        key.replace("unet.", "unet.x."), key.replace("unet.", ""), key.replace("attn1.", "attn1.processor."),
        key.replace(".lora_down", ".down"),
        key.replace("lora_te_", "lora_te1_"), key.replace(".alpha", ".processor.alpha"), key.replace("lora_A.weight",
        "lora_embedding_A"),
        key.replace("lora_A.", "lora_down."), key.replace(".lora_A.", "_lora.down."), key.replace("input_blocks_4_1",
        "down_blocks_1_attentions_0"),
        key.replace("unet.", "").replace("to_q", "to_q.processor"), *NAMES,
    ]  # fmt: skip
    like = random.choice([header[key], {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}])
    size = like["data_offsets"][1] - like["data_offsets"][0]
    added = {random.choice(names): {**like, "data_offsets": [len(data), len(data) + size]}}
    order = [header, added] if random.random() < 0.5 else [added, header]
    give(files, {**order[0], **{k: v for k, v in order[1].items() if k not in order[0]}}, data + random.randbytes(size))


@damage
def a_tensor_less(random: Random, files: Files) -> None:
    """A tensor left out, and the rest moved together."""
    header, data = take(files)
    gone = header.pop(random.choice(entries(header)))["data_offsets"]
    for key in entries(header):
        start, stop = header[key]["data_offsets"]
        header[key]["data_offsets"] = (
            [start - gone[1] + gone[0], stop - gone[1] + gone[0]] if start >= gone[1] else [start, stop]
        )
    give(files, header, data[: gone[0]] + data[gone[1] :])


@damage
def not_finite(random: Random, files: Files) -> None:
    header, data = take(files)
    entry = header[random.choice(entries(header))]
    start, stop = entry["data_offsets"]
    value = random.choice([math.nan, math.inf, -math.inf, 0.0, 1e38, -1e-45, 65504.0])
    width = {"F64": "<d", "F32": "<f", "F16": "<e", "BF16": "<f", "I64": "<q"}[entry["dtype"]]
    try:
        packed = struct.pack(width, int(value) if width == "<q" else value)
    except (OverflowError, ValueError):
        packed = b"\xff" * struct.calcsize(width)
    packed = packed[2:] if entry["dtype"] == "BF16" else packed
    place = start + len(packed) * random.randrange((stop - start) // len(packed))
    give(files, header, data[:place] + packed + data[place + len(packed) :])


@damage
def odd_metadata(random: Random, files: Files) -> None:
    header, data = take(files)
    name = random.choice(["format", "lora_adapter_metadata", "ss_sd_model_name", "modelspec.architecture", "a"])
    header["__metadata__"] = random.choice(
        [*ODD, {name: random.choice(ODD)}, {name: "[" * 100_000}, {name: '{"a":' * 9999}]
    )
    give(files, header, data)


@damage
def header_text(random: Random, files: Files) -> None:
    """The same header as other text: padded, in another encoding, with a comment, with bytes that are no UTF-8."""
    header, data = take(files)
    text = json.dumps(header)
    odd: list[str | bytes] = [
        text + " " * random.randrange(2000), " " + text, "\n" + text, text + "\x00", text + "}", text + text,
        text.replace('"', "'"), text[:-1] + ",}",
        text.encode("utf-16-le"), text.encode("utf-32"), b"\xef\xbb\xbf" + text.encode(), text.encode().replace(b"lora",
        b"lor\xff", 1),
        text.encode().replace(b"lora", b"\xed\xa0\x80", 1), text.replace("lora", "lor\\ud800", 1), text.replace("[", "[\n// \n", 1),
        text.replace(": [", ": [[", 1), text.replace("0", "00", 1), text.replace("]", ",]", 1), text.replace("0", "0.0", 1),
        text.replace("0", "0e0", 1), text.replace("l", "\\u006c"), "[" + text + "]",
    ]  # fmt: skip
    give(files, random.choice(odd), data)


@damage
def odd_setting(random: Random, files: Files) -> None:
    """A field of the config that says something else, or nothing."""
    config, put = settings(files)
    name = random.choice([*FIELDS[:6], random.choice(FIELDS)])
    if random.random() < 0.15:
        config.pop(name, None)
    elif name.endswith("_pattern") and random.random() < 0.8:
        key = random.choice(
            ["q_proj", "layers.0.self_attn.q_proj", ".*", "", "^", r".*\.q_proj", "to_q", "k_proj", r"\d+", *NAMES[:10]]
        )
        config[name] = {key: random.choice([*ODD, 2, 4])}
    else:
        config[name] = random.choice(ODD)
    put(config)


@damage
def slow_pattern(random: Random, files: Files) -> None:
    """A pattern that takes for ever against a long name, or is none."""
    header, data = take(files)
    key = random.choice(entries(header))
    name = random.choice(["a" * 60, "a" * 400, "x" * 200, "ab" * 100, "a." * 90])
    long = key.replace("self_attn", name).replace("attn1", name)
    give(files, {long if k == key else k: v for k, v in header.items()}, data)
    config, put = settings(files)
    config[random.choice(["rank_pattern", "alpha_pattern"])] = {random.choice(SLOW): 4}
    put(config)


@damage
def config_text(random: Random, files: Files) -> None:
    """The config as other text."""
    config, put = settings(files)
    text = json.dumps(config)
    odd = [
        f"[{text}]",
        text[:-1],
        text + text,
        "",
        "null",
        "[]",
        "NaN",
        f'"{len(text)}"',
        "[" * 50_000,
        text.replace('"', "'"),
        "﻿" + text,
    ]
    odd += [
        text[:-1] + ',"r":' + "9" * 5000 + "}",
        text[:-1] + ',"x":' + "[" * 900 + "]" * 900 + "}",
        text[:-1] + ',"\\ud800":"\\ud800"}',
    ]
    put(random.choice(odd))


@damage
def odd_card(random: Random, files: Files) -> None:
    """A README whose front matter is odd or made to explode."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10)
    )
    texts = [
        "license: [", "license: mit", "base_model: [a]", "base_model: someone/base", f"{bomb}license: *a9",
        f"{merges}license: *a9", "[" * 5000,
        "!!python/object/apply:os.system [ls]", "!!timestamp foo", "!!int ''", "!!float x", "!!bool x", "!!binary é",
        "? [a]\n: b", "a: 2020-99-99",
        "license: 2020-01-01", "- a\n- b", "a: &x [*x]\nlicense: *x", "\x00", "license: \"\\ud800\"", "a: 1\na: 2", "{" * 300,
        "license: !!set {a}",
        "<<: 1", "<<: [1]", "license: &l [*l]", "a: " + "9" * 5000, "a: 0b", "a: 1:99:99", "license: .inf",
        "x: |" + "\n  y" * 20_000,
        "a: 0x", "a: 1_", "a: -", "!!omap [a]", "!!pairs [a]", "a: !!null b", "=: =", "license: {<<: *x}", "a: 190:20:30.15",
        ("[]: " * 2000),
    ]  # fmt: skip
    files.content["README.md"] = f"---\n{random.choice(texts)}\n---\n".encode(errors="surrogatepass")
    files.opened = ""


@damage
def not_a_file(random: Random, files: Files) -> None:
    """A directory, a pipe, a socket, a link or nothing where a file should be."""
    name = random.choice([*files.content, "README.md"])
    files.content.pop(name, None)
    files.actions.append(
        random.choice([as_folder, as_pipe, as_socket, as_loop, as_link_out, as_dead_link, as_device, as_nothing])(name)
    )


def as_folder(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).mkdir()


def as_pipe(name: str) -> Callable[[Path], None]:
    return lambda folder: os.mkfifo(folder / name)


def as_socket(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        here = os.open(folder, os.O_RDONLY)  # the path of a socket may not be long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{here}/{name}")
        os.close(here)

    return make


def as_loop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(folder / name)


def as_link_out(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to("/etc/passwd")


def as_dead_link(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(folder / "nothing")


def as_device(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to("/dev/zero")


def as_nothing(name: str) -> Callable[[Path], None]:
    return lambda folder: None


@damage
def elsewhere(random: Random, files: Files) -> None:
    """The right file, but reached through a link out of the folder; or two weights files; or only a pickle."""
    name = random.choice(list(files.content))
    data = files.content[name]
    choice = random.randrange(4)
    if choice == 0:
        del files.content[name]

        def link(folder: Path) -> None:
            outside = folder.parent / f"{folder.name}-outside"
            outside.mkdir()
            (outside / name).write_bytes(data)
            (folder / name).symlink_to(Path("..") / outside.name / name)

        files.actions.append(link)
    elif choice == 1:
        files.content["other.safetensors"] = files.content[files.weights]
    elif choice == 2:
        files.content[random.choice(["adapter_model.bin", "a.pt", "a.ckpt"])] = b"\x80\x04K\x01."
        if random.random() < 0.5:
            del files.content[files.weights]
    else:
        files.opened = random.choice([CONFIG, PEFT, "nothing", "a" * 300, "\x00", "..", "style.safetensors"])


@damage
def sparse(random: Random, files: Files) -> None:
    """A header or a tensor as large as it says it is, made of nothing."""
    header, data = take(files)
    size = random.choice([10**8 + 1, 2**32, 2**42])
    name = files.weights
    if random.random() < 0.5:
        start = struct.pack("<Q", size) + b'{"a":'
        files.content[name] = start
        files.actions.append(lambda folder: os.truncate(folder / name, 8 + size + len(data)))
        return
    key = random.choice(entries(header))
    wide = [2**33, 64] if random.random() < 0.5 else [4, 2**33]
    whole = math.prod(wide) * 4
    give(files, {key: {"dtype": "F32", "shape": wide, "data_offsets": [0, whole]}}, b"")
    end = len(files.content[name]) + whole
    files.actions.append(lambda folder: os.truncate(folder / name, end))


@damage
def several(random: Random, files: Files) -> None:
    """Two or three of the above that change bytes."""
    for _ in range(random.randint(2, 3)):
        try:
            random.choice(
                [odd_setting, renamed, another_shape, a_tensor_less, not_finite, flipped_data, flipped_header]
            )(random, files)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, struct.error):
            return  # what came before left nothing that this one could change
