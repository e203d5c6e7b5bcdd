"""Settings: bounds of configuration fields, and the command-line options made from them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import typer
from thinrow.cli.app import app
from thinrow.cli.command import command
from thinrow.compaction.config import CompactionConfig
from thinrow.core.settings import check, setting, settings_of
from thinrow.errors import UsageError
from thinrow.jobs.config import BackfillConfig, FatLayoutConfig, SlimConfig
from thinrow.jobs.connecting import Access
from thinrow.materialization.config import ServerConfig
from thinrow.online.config import OnlineConfig
from thinrow.wall.config import GivenFigures, Power
from typer.testing import CliRunner

COMMANDS = {
    "serve": (ServerConfig,),
    "online": (OnlineConfig,),
    "compact": (CompactionConfig,),
    "backfill": (BackfillConfig,),
    "slim": (SlimConfig, FatLayoutConfig),
    "verify": (FatLayoutConfig, Access),
    "wall": (GivenFigures, Power, Access),
}

CONFIGS = list(dict.fromkeys(kind for kinds in COMMANDS.values() for kind in kinds))


@dataclass(frozen=True, kw_only=True)
class Base:
    size: int = field(default=3, metadata=setting("Size.", maximum=9))
    pause_s: float = field(default=0.5, metadata=setting("Pause."))
    delay_ms: int = field(default=0, metadata=setting("Delay.", minimum=0))
    address: str | None = field(default="here", metadata=setting("Address; 'off' for none."))
    hidden: int = field(default=1, metadata=setting("No option.", option=None))
    plain: str = ""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    size: int = 5


def run(*arguments: str) -> tuple[int, str, list[Config]]:
    """Runs a command with the options of `Config`; returns its status, output and configuration."""
    found: list[Config] = []
    small = typer.Typer()

    @command(small, "go")
    def go(config: Config) -> None:
        """Go."""
        found.append(config)

    result = CliRunner().invoke(small, arguments, env={"COLUMNS": "200"})
    return result.exit_code, result.output, found


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"size": 0}, "size is 0; it must be above 0"),
        ({"size": -4}, "size is -4; it must be above 0"),
        ({"size": 10}, "size is 10; it must be at most 9"),
        ({"pause_s": 0.0}, "pause_s is 0.0; it must be above 0"),
        ({"pause_s": float("nan")}, "pause_s is nan"),
        ({"delay_ms": -1}, "delay_ms is -1; it must be at least 0"),
        ({"hidden": 0}, "hidden is 0"),
    ],
)
def test_numbers_out_of_bounds_are_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Config(**values)


def test_a_subclass_that_changes_a_default_keeps_the_setting() -> None:
    assert settings_of(Config) == settings_of(Base)
    assert list(settings_of(Config)) == ["size", "pause_s", "delay_ms", "address", "hidden"]
    assert Config().size == 5


def test_options_become_the_configuration() -> None:
    assert run() == (0, "", [Config()])
    given = ("--size", "7", "--pause", "250ms", "--delay", "2s", "--address", "off")
    assert run(*given) == (
        0,
        "",
        [Config(size=7, pause_s=0.25, delay_ms=2000, address=None)],
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--size", "0"), "Error: --size is 0; it must be above 0."),
        (("--size", "12"), "Error: --size is 12; it must be at most 9."),
        (("--pause", "0s"), "Error: --pause is 0.0; it must be above 0."),
        (("--delay", "soon"), "is no duration"),
        (("--hidden", "2"), "No such option"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], says: str) -> None:
    status, output, found = run(*arguments)
    assert (status, found) == (2, [])
    assert says in output
    assert "Traceback" not in output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_has_an_option_with_its_help(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "400"})
    shown = " ".join(result.output.split())
    for config in COMMANDS[name]:
        for each in settings_of(config).values():
            assert (each.help.removesuffix(".") in shown) == (each.option is not None), each


@pytest.mark.parametrize("config", CONFIGS)
def test_every_number_of_a_configuration_has_a_setting(config: type) -> None:
    numbers = {
        each.name for each in fields(config) if str(each.type).split(" ")[0] in ("int", "float")
    }
    assert numbers <= settings_of(config).keys()
