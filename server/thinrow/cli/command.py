"""Commands whose options are generated from the settings of configuration dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Sequence
from functools import wraps
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from thinrow.cli.values import parse_duration, parse_time
from thinrow.core.settings import built, in_unit, option_of, settings_of, unit_ms
from thinrow.errors import UsageError
from thinrow.jobs.console import one_sentence
from thinrow.store.durations import duration_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from thinrow.core.settings import Setting

__all__ = ["BY_NAME", "TIME", "command"]

TIME = "milliseconds since the epoch, or ISO 8601 in UTC, such as 2026-01-31"
OFF = "off"
BY_NAME = "_by_name"
"""End of the name of an option that stands for an argument."""


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds a function to an app as a command; a mistake ends in one sentence, not in a traceback.

    A parameter whose type is a dataclass becomes an option for each of its settings (see
    thinrow.core.settings), and the function receives the dataclass. Other parameters are Typer's.

    Args:
        app: The app that gets the command.
        name: Name of the command.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        configs: dict[str, Any] = {
            each: kind for each, kind in hints.items() if dataclasses.is_dataclass(kind)
        }

        @wraps(function)
        def run(**given: Any) -> None:  # noqa: ANN401 - what the options are
            with one_sentence():
                _join_options(configs.values(), given)
                for each, kind in configs.items():
                    names = [field for field in settings_of(kind) if field in given]
                    values = {field: _to_field(field, given.pop(field)) for field in names}
                    given[each] = built(kind, values)
                function(**given)

        parameters = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name in configs:
                parameters += _options(configs[parameter.name])
            else:
                parameters.append(
                    parameter.replace(
                        kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name]
                    )
                )
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        app.command(name)(run)
        return function

    return decorate


def _options(config: type) -> list[inspect.Parameter]:
    hints = get_type_hints(config)
    fields = {field.name: field for field in dataclasses.fields(config)}
    found = []
    for name, each in settings_of(config).items():
        if each.option is not None:
            found.append(_option(name, hints[name], fields[name].default, each))
        if each.argument and each.option:
            found.append(_second_option(name, each))
    return found


def _second_option(name: str, found: Setting) -> inspect.Parameter:
    """Returns the option that an argument may be given by instead."""
    annotation = Annotated[
        list[str] | None,
        typer.Option(
            found.option,
            metavar=found.argument.rstrip("."),
            help=f"{found.argument}, given by name.",
            show_default=False,
        ),
    ]
    return inspect.Parameter(
        name + BY_NAME, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _join_options(configs: Iterable[type], given: dict[str, Any]) -> None:
    """Joins arguments with the options that stand for them.

    Raises:
        UsageError: Both are given, or none.
    """
    for config in configs:
        for name, found in settings_of(config).items():
            if name + BY_NAME in given:
                by_name = given.pop(name + BY_NAME)
                if bool(by_name) == bool(given[name]):
                    raise UsageError(f"Give {found.argument}, or {found.option} in its place.")
                given[name] = by_name or given[name]


def _option(name: str, hint: Any, default: Any, found: Setting) -> inspect.Parameter:  # noqa: ANN401
    """Returns the parameter that Typer makes an option or an argument of."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    is_optional = NoneType in get_args(hint)
    given: dict[str, Any] = {"help": found.help, "metavar": found.metavar or None}
    unit = unit_ms(name)
    kind: Any = hint
    if get_origin(hint) is not Literal and kinds:
        # A union of a text, a path and several of them is typed as texts, which may be URLs.
        is_many = any(get_origin(each) is Iterable for each in kinds)
        kind = kinds[0] if len(kinds) == 1 else list[str] if is_many else str
    if get_origin(hint) is Sequence:
        kind = list[str]
    if found.argument:
        kind = list[str] if found.argument.endswith("...") else str
        has_option = bool(found.option)
        annotation: Any = Annotated[
            kind | None if has_option else kind,
            typer.Argument(
                metavar=found.argument,
                help=found.help,
                show_default=f"or {found.option}" if has_option else True,
            ),
        ]
        default = None if has_option else inspect.Parameter.empty
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
        )
    if unit is not None:
        kind = int
        given |= {"parser": parse_duration, "metavar": "DURATION"}
        if isinstance(default, int | float):
            default = duration_text(round(default * unit))
    elif name.endswith("_ts"):
        kind = int
        given |= {"parser": parse_time, "metavar": "TIME", "help": f"{found.help[:-1]}: {TIME}."}
    if default is None or default == ():
        given["show_default"] = found.default_text or False
    flag = option_of(name, found)
    if kind is bool and default is True:
        flag = f"{flag}/--no-{flag.removeprefix('--')}"
    annotation = Annotated[kind | None if is_optional else kind, typer.Option(flag, **given)]
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _to_field(name: str, value: Any) -> Any:  # noqa: ANN401 - of the field's type
    """Converts an option's value to the field's: seconds are fractions, `off` means None."""
    if unit_ms(name) is not None and isinstance(value, int):
        return in_unit(name, value)
    return None if value == OFF else value
