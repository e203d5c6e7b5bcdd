"""Settings: fields of configuration dataclasses that carry their help text and their bounds.

One declaration serves three readers: the dataclass gives a field its type and default, `check`
validates every field the same way, and the command line makes an option of it.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class ServerConfig:
        calls_max: int = field(default=64, metadata=setting("Maximum number of concurrent calls."))

        def __post_init__(self) -> None:
            check(self)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinrow.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "Setting",
    "built",
    "check",
    "in_unit",
    "option_of",
    "require_bounds",
    "setting",
    "settings_of",
    "unit_ms",
]

_KEY = "thinrow"
_DURATION_UNITS_MS = {"_ms": 1, "_s": 1000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The metadata of a configuration field, besides its type and default."""

    help: str
    """One sentence for docs and the command line."""
    minimum: float | None
    """Least number that is allowed; None: numbers must be above 0."""
    maximum: float | None
    """Greatest number that is allowed."""
    option: str | None
    """Name of the command-line option; "" derives it from the field's name, None makes none."""
    argument: str
    """Name of the positional argument that it is, "EVENTS..." for one or more; "": an option."""
    metavar: str
    """Name of the value in the command's help; "" derives it from the type."""
    default_text: str
    """Description of a default of None."""


def setting(
    help: str,  # noqa: A002 - the word that command-line libraries use
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    option: str | None = "",
    argument: str = "",
    metavar: str = "",
    default_text: str = "",
) -> Mapping[str, Setting]:
    """Returns the metadata of a dataclass field. Arguments are the fields of `Setting`."""
    return {
        _KEY: Setting(
            help=help,
            minimum=minimum,
            maximum=maximum,
            option=option,
            argument=argument,
            metavar=metavar,
            default_text=default_text,
        )
    }


def settings_of(config: type) -> dict[str, Setting]:
    """Returns the settings of a dataclass by field, without fields that have none.

    A subclass that changes only a field's default inherits its setting.
    """
    found: dict[str, Setting] = {}
    for base in reversed(config.__mro__):
        for name, field in getattr(base, "__dataclass_fields__", {}).items():
            if _KEY in field.metadata:
                found[name] = field.metadata[_KEY]
    return found


def unit_ms(name: str) -> int | None:
    """Returns the unit of a field that holds a duration, in ms; None for other fields."""
    return next((ms for end, ms in _DURATION_UNITS_MS.items() if name.endswith(end)), None)


def in_unit(name: str, span_ms: int) -> float:
    """Returns a duration as a field has it: an integer of ms, or a fraction of seconds."""
    unit = unit_ms(name)
    assert unit is not None
    return span_ms if unit == 1 else span_ms / unit


def option_of(name: str, found: Setting) -> str:
    """Returns the command-line option of a field, which leaves out its unit."""
    if found.option:
        return found.option
    units = (*_DURATION_UNITS_MS, "_ts")
    stem = next((name.removesuffix(end) for end in units if name.endswith(end)), name)
    return f"--{stem.replace('_', '-')}"


def built(
    config: Any,  # noqa: ANN401 - any dataclass
    values: Mapping[str, object],
    shown: Callable[[str, Setting], str] = option_of,
) -> Any:  # noqa: ANN401
    """Returns a configuration.

    Args:
        config: Its class.
        values: Its fields.
        shown: Returns the name that a user gives a field by.

    Raises:
        UsageError: A value is wrong; names what the user gave instead of the field.
    """
    try:
        return config(**values)
    except UsageError as error:
        name, _, rest = str(error).partition(" ")
        if name not in values:
            raise
        raise UsageError(f"{shown(name, settings_of(config)[name])} {rest}") from error


def check(config: Any) -> None:  # noqa: ANN401 - any dataclass
    """Validates the numbers of a configuration.

    Args:
        config: A dataclass whose fields have metadata of `setting`.

    Raises:
        UsageError: A number lies outside its bounds; names the field, the value and the bound.
    """
    for name, found in settings_of(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if found.minimum is None:
            require_bounds(config, name)
        else:
            require_bounds(config, **{name: found.minimum})
        if found.maximum is not None and not value <= found.maximum:
            raise UsageError(f"{name} is {value}; it must be at most {found.maximum:g}.")


def require_bounds(config: Any, *positive: str, **least: float) -> None:  # noqa: ANN401
    """Validates numbers of a configuration whose fields have no metadata; None is not one.

    Args:
        config: The configuration.
        positive: Names of numbers that must be above 0.
        least: Minimum of other numbers, by name.

    Raises:
        UsageError: A number lies outside its bounds; names the field, the value and the bound.
    """
    for name in positive:
        if (value := getattr(config, name)) is not None and not value > 0:
            raise UsageError(f"{name} is {value}; it must be above 0.")
    for name, minimum in least.items():
        if (value := getattr(config, name)) is not None and not value >= minimum:
            raise UsageError(f"{name} is {value}; it must be at least {minimum:g}.")
