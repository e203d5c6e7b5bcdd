"""Fuzzers: a million inputs each, and no crash, no hang, no growth, and no answer that is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.fuzz_targets import TARGETS
from support.paths import ROOT, SUPPORT
from support.tried import FULL, SEED, Tried

FUZZ = SUPPORT / "fuzz.py"
AT_ONCE = 2
FAULTS = {
    "stripes": "Arbitrary bytes in the place of stored directories and stripes",
    "pointers": "Arbitrary fields of pointers and of the examples that carry them",
    "requests": "Arbitrary bytes as a request of Materialize, MaterializeStream or Inspect",
    "responses": "Arbitrary bytes as an answer that a client reads",
    "online": "Arbitrary bytes as a request of the online service",
    "messages": "Arbitrary bytes, sizes and offsets as an Arrow message of thin rows",
    "native": "Arbitrary arguments of the native functions, in any order",
    "events": "Arbitrary bytes as a message of a topic of events",
}
PROMISED = {
    "stripes": "an error that names the store, or an answer that holds together and has nothing "
    "from a pointer's future",
    "pointers": "status and events as the oracle has them",
    "requests": "an answer about each example, or a status that says why not",
    "responses": "an error, or a batch that holds together",
    "online": "an answer or a status; what was refused leaves nothing, what was acknowledged is "
    "there",
    "messages": "an error, or rows that hold together; memory within the message and its limit",
    "native": "an error or a result; nothing read or written out of bounds",
    "events": "events as protobuf reads them, or the message refused by itself",
}
INPUTS = {
    **dict.fromkeys(TARGETS, 1_000_000),
    "online": 200_000,
    "messages": 200_000,
    "events": 200_000,
}
SANITIZED_INPUTS = {
    "stripes": 40_000,
    "pointers": 20_000,
    "responses": 40_000,
    "native": 200_000,
    "events": 40_000,
}
SANITIZERS = "-fsanitize=address,undefined"


def kept(target: str, how: str, result: dict[str, Any]) -> None:
    seen = ", ".join(f"{count:,} {what}" for what, count in result["seen"].items())
    Tried(FAULTS[target], result["inputs"], PROMISED[target], f"{how}: {seen}; 0 broken").keep()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the store that all of them read."""
    return tmp_path_factory.mktemp("fuzzed")


@pytest.mark.skipif(FULL, reason="the full version follows")
@pytest.mark.parametrize("target", TARGETS)
def test_some_inputs(target: str, folder: Path) -> None:
    aim, rng, count = TARGETS[target](folder), random.Random(SEED), 300
    for number in range(count):
        data = aim.altered(rng)
        try:
            aim(data)
        except BaseException as error:
            raise AssertionError(f"input {number}, --input {data.hex()}") from error
    aim.close()
    kept(
        target, "by altering valid ones", {"inputs": count, "seen": dict(sorted(aim.seen.items()))}
    )


def fuzzed(target: str, inputs: int, *options: str, **environment: str) -> dict[str, Any]:
    """Runs one fuzzer as a process, and what it reported at its end."""
    command = [sys.executable, str(FUZZ), target, "--inputs", str(inputs), "--seed", str(SEED)]
    ended = subprocess.run(
        [*command, *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 0, f"{target}: {ended.stderr[-4000:]}"
    assert "runtime error" not in ended.stderr, ended.stderr[:4000]
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert result["inputs"] == inputs
    return result


@pytest.mark.skipif(not FULL, reason="part of `make faults`")
@pytest.mark.timeout(3600)
def test_a_million_inputs() -> None:
    """Half of them valid ones altered; the other half by coverage, where atheris is there."""
    is_there = importlib.util.find_spec("atheris") is not None
    options, how = (
        (["--guided"], "half of them by atheris") if is_there else (["--seed", "7"], "altered")
    )
    halves = [(target, *option) for target in TARGETS for option in ([], options)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ended = pool.map(lambda half: fuzzed(half[0], INPUTS[half[0]] // 2, *half[1:]), halves)
        for target in TARGETS:
            one, other = next(ended), next(ended)
            seen = Counter(one["seen"]) + Counter(other["seen"])
            kept(target, how, {"inputs": one["inputs"] + other["inputs"], "seen": seen})


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native module, built with the compiler's sanitizers."""
    if not FULL:
        pytest.skip("part of `make faults`")
    if importlib.util.find_spec("nanobind") is None or not shutil.which("cmake"):
        pytest.skip("needs cmake and nanobind, to build the native module")
    import nanobind

    folder = tmp_path_factory.mktemp("sanitized")
    options = {
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "CMAKE_CXX_FLAGS": f"{SANITIZERS} -fno-omit-frame-pointer",
        "Python_EXECUTABLE": sys.executable,
        "nanobind_DIR": nanobind.cmake_dir(),
    }
    flags = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        ["cmake", "-S", str(ROOT / "native"), "-B", str(folder), *flags],
        ["cmake", "--build", str(folder), "--parallel", str(AT_ONCE)],
    ):
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if re.search("sanitizer|libasan|libubsan", built.stderr) and built.returncode:
            pytest.skip("the compiler has no sanitizers here")
        assert built.returncode == 0, built.stderr[-4000:]
    return next(folder.glob("_native*.so"))


@pytest.mark.timeout(1800)
def test_native_code_under_sanitizers(sanitized: Path) -> None:
    """Out of bounds, after free, undefined: the process would end, or say so."""
    libraries = [
        subprocess.run(
            ["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    environment = {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",
    }

    def run(target: str) -> dict[str, Any]:
        inputs = SANITIZED_INPUTS[target]
        return fuzzed(target, inputs, "--native", str(sanitized), **environment)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        count = sum(result["inputs"] for result in pool.map(run, SANITIZED_INPUTS))
    Tried(
        "The same stripes, pointers, answers and arguments, native code with AddressSanitizer and "
        "UBSan",
        count,
        "no access out of bounds or after free, nothing undefined",
        f"{count:,} inputs, 0 reports",
    ).keep()
