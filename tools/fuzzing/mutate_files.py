"""Mutations of configurations, arrays and checkpoints."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 9, 2**40, 1.5, 1e308, "", "x", "min_max", "{re}(", "(", "\x1b[31m", "[/red]"),
    *([], {}, [[]], [{}], {"name": "x"}, {"self": 1}, [1, 2], [10**9] * 4, "é" * 1000),
]


def mutated_json(source: Path, target: Path, chance: random.Random) -> str:
    """Writes a configuration with values or keys exchanged, or text that JSON readers choke on."""
    values = json.loads(source.read_text())
    done = []
    for _ in range(chance.choice([1, 1, 2, 3])):
        done.append(_in_json(values, chance))
    text = json.dumps(values)
    if chance.random() < 0.25:
        how = chance.choice(["digits", "depth", "infinity", "cut", "bytes", "mark", "keys"])
        number = {"digits": "9" * 5000, "depth": "[" * 20_000 + "]" * 20_000, "infinity": "1e999"}.get(how)
        text = text.replace("8", number, 1) if number else text
        text = text[: chance.randrange(len(text))] if how == "cut" else text
        text = text.replace("{", '{"self": 1, "cls": 2, ', 1) if how == "keys" else text
        done.append(how)
        if how in ("bytes", "mark"):
            target.write_bytes({"bytes": b"\xff\xfe\x00", "mark": b"\xef\xbb\xbf"}[how] + text.encode())
            return ", ".join(done)
    target.write_text(text)
    return ", ".join(done)


def _in_json(values: Any, chance: random.Random) -> str:
    """Exchanges, adds or removes one thing somewhere in the tree."""
    while True:
        if not isinstance(values, dict | list) or not values:
            return "nothing"
        key = chance.choice(list(values)) if isinstance(values, dict) else chance.randrange(len(values))
        if isinstance(values[key], dict | list) and values[key] and chance.random() < 0.7:
            values = values[key]
            continue
        how = chance.choice(["exchange", "exchange", "add", "remove"])
        if how == "remove":
            del values[key]
        elif how == "add" and isinstance(values, dict):
            values[chance.choice(["self", "cls", "", "model_config", "__init__", "x" * 1000, "[/red]"])] = (
                copy.deepcopy(chance.choice(VALUES))
            )
        else:
            values[key] = copy.deepcopy(chance.choice(VALUES))
        return f"{key!r} {how}"


def mutated_arrays(source: Path, target: Path, chance: random.Random) -> str:
    """Writes an `.npz` file with an array exchanged, or its archive damaged."""
    with np.load(source) as archive:
        arrays = dict(archive)
    name = chance.choice(list(arrays))
    how = chance.choice(["dtype", "shape", "value", "name", "none", "more", "rows", "object"])
    with np.errstate(all="ignore"):
        arrays[name] = _changed(arrays[name], how, chance)
    if how == "name":
        arrays[chance.choice(["label", "X", "a/b", "../x", "[/red]", "\x1b[31m"])] = arrays.pop(name)
    elif how == "more":
        arrays["more"] = arrays[name]
    np.savez(target, **arrays)
    if chance.random() < 0.4:
        how += f", {_damaged_archive(target, chance)}"
    return f"{name!r} {how}"


def _changed(array: np.ndarray, how: str, chance: random.Random) -> np.ndarray:
    if how == "dtype":
        kinds: list[Any] = [np.float64, np.float16, np.int64, np.uint8, np.bool_, np.complex64, "U4", "S4", ">f4"]
        return array.astype(chance.choice(kinds))
    if how == "shape":
        return chance.choice(
            [array.reshape(-1), array[None], array[..., None], array[:0], np.asarray(array.flat[0]), array.T]
        )
    if how == "value" and array.dtype.kind == "f":
        array.flat[0] = chance.choice([np.nan, np.inf, 3e38, -3e38, 1e-45])
    elif how == "value":
        array.flat[0] = chance.choice([-1, 2, 99, 2**31, 2**62])
    elif how == "rows":
        return array[:1]
    elif how == "object":
        return np.array([{"a": 1}] * len(array), dtype=object)
    return array


def _damaged_archive(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    how = chance.choice(["cut", "flip", "encrypted", "packed oddly", "bomb", "header", "empty"])
    position = chance.randrange(len(content))
    if how == "cut":
        del content[position:]
    elif how == "flip":
        content[position] ^= 1 << chance.randrange(8)
    elif how == "empty":
        content.clear()
    elif how in ("encrypted", "packed oddly"):
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = content.find(mark) + offset
            content[start : start + 4] = b"\x01\x00\x00\x00" if how == "encrypted" else b"\x00\x00\x63\x00"
    elif how == "bomb":  # the size that the archive says its first array unpacks to
        start = content.find(b"PK\x01\x02") + 24
        content[start : start + 4] = struct.pack("<I", 4_000_000_000)
    path.write_bytes(content)
    if how == "header":
        _write_header(path)
    return how


def _write_header(path: Path) -> None:
    """An archive whose array claims to be far larger than the file."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 8), }".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(100))


def mutated_checkpoint(source: Path, target: Path, chance: random.Random) -> str:
    """Writes a checkpoint with damaged bytes, or with other facts and tensors under a checksum that fits them."""
    content = bytearray(source.read_bytes())
    how = chance.choice(["flip", "cut", "fact", "fact", "tensor", "type"])
    if how == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del content[chance.randrange(len(content)) :]
    elif how == "type":
        content = bytearray(content.replace(b'"F32"', b'"F8_E4M3"', 1))
    else:
        return _resealed(source, target, how, chance)
    target.write_bytes(content)
    return how


def _resealed(source: Path, target: Path, how: str, chance: random.Random) -> str:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(source, framework="np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    facts = json.loads(metadata["facts"])
    what = _in_json(facts, chance) if how == "fact" else _in_tensors(tensors, chance)
    text = json.dumps(facts, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    save_file(tensors, target, {"facts": text, "sha256": digest.hexdigest()})
    return f"{how} {what}"


def _in_tensors(tensors: dict[str, np.ndarray], chance: random.Random) -> str:
    name = chance.choice(list(tensors))
    how = chance.choice(["drop", "shorten", "cast", "fill"])
    array = tensors.pop(name)
    if how == "shorten":
        tensors[name] = array[: len(array) // 2]
    elif how == "cast":
        tensors[name] = array.astype(np.float64)
    elif how == "fill":
        tensors[name] = np.full_like(array, np.nan if array.dtype.kind == "f" else 255)
    return f"{name!r} {how}"
