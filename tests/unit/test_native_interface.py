"""The native code's numbers are those of the protos, and its stub is that of the built module."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from thinrow.v1 import event_topic_pb2, materialization_pb2, online_pb2

ROOT = Path(__file__).parents[2]
FIELDS = (ROOT / "native" / "fields.h").read_text(encoding="utf-8")
CONSTANT = re.compile(r"(\w+) = (\d+)")


def camel(name: str) -> str:
    return name.title().replace("_", "")


def blocks(pattern: str) -> dict[str, dict[str, int]]:
    """Return the constants of each block that a pattern of its head finds, by the block's name."""
    return {
        match[1]: {name.rstrip("_"): int(number) for name, number in CONSTANT.findall(match[2])}
        for match in re.finditer(pattern + r" \{([^{}]*=[^{}]*)\}", FIELDS)
    }


FILES = (event_topic_pb2.DESCRIPTOR, materialization_pb2.DESCRIPTOR, online_pb2.DESCRIPTOR)
MESSAGES: dict[str, Any] = {k: v for file in FILES for k, v in file.message_types_by_name.items()}
MESSAGES["TraitsEntry"] = event_topic_pb2.Event.TraitsEntry.DESCRIPTOR
ENUMERATIONS = {k: v for file in FILES for k, v in file.enum_types_by_name.items()}


def test_field_numbers_are_those_of_the_protos() -> None:
    messages = blocks(r"namespace (\w+)")
    assert len(messages) >= 5
    for name, numbers in messages.items():
        fields = MESSAGES[camel(name)].fields_by_name
        assert numbers == {field: fields[field].number for field in numbers}, name


def test_enumeration_values_are_those_of_the_protos() -> None:
    enumerations = blocks(r"enum class (\w+) : \w+")
    assert len(enumerations) == 3
    for name, numbers in enumerations.items():
        values = ENUMERATIONS[name].values_by_name
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
        expected = {value: values[f"{prefix}_{value.upper()}"].number for value in numbers}
        assert numbers == expected, name


def test_no_other_native_file_numbers_fields() -> None:
    for path in (ROOT / "native").glob("*.*"):
        if path.name == "fields.h":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"_field = \d|out\.\w+\(\d", text), path.name


def test_the_stub_is_that_of_the_built_module() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "native_stub.py")]
    generated = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kept = (ROOT / "client" / "thinrow" / "_native.pyi").read_text(encoding="utf-8")
    assert kept == generated, "run `make native-stub` and commit what it writes"
