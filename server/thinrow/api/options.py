"""Functions whose options are generated from configurations, as those of commands are."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_type_hints

from thinrow.api.values import convert
from thinrow.core.settings import built, option_of, settings_of, unit_ms
from thinrow.errors import UsageError
from thinrow.store.durations import duration_text
from thinrow.store.place import is_url
from thinrow.store.scratch import scratch_beside
from thinrow.store.shard import storage_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from thinrow.core.settings import Setting

__all__ = ["job"]

R = TypeVar("R")


class Option(NamedTuple):
    """One parameter of a function, and the field that it sets."""

    config: str
    """Name of the configuration among the parameters of the function that is wrapped."""
    field: str
    hint: Any
    default: Any
    setting: Setting

    @property
    def is_required(self) -> bool:
        """True where the field has no default."""
        return self.default is MISSING

    @property
    def is_positional(self) -> bool:
        """True where the command has an argument instead of an option."""
        return bool(self.setting.argument)


def job(output: str = "") -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Turns a function of configurations into one of their options.

    Args:
        output: Name of the path beside which tables in memory are written; "": they lie among
            the temporary files of the system, as they do if it is a URL.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        hints = get_type_hints(function)
        configs = {name: kind for name, kind in hints.items() if name != "return"}
        assert all(is_dataclass(kind) for kind in configs.values())
        options = {
            name: each for config, kind in configs.items() for name, each in _options(config, kind)
        }

        @wraps(function)
        def run(*inputs: object, **given: object) -> R:
            named = _named(function.__name__, options, inputs, given)
            values: dict[str, dict[str, object]] = {config: {} for config in configs}
            with ExitStack() as stack:
                scratch = _Scratch(stack, named.get(output))
                for name, value in named.items():
                    option = options[name]
                    made = convert(name, option.field, option.hint, value, scratch.path)
                    values[option.config][option.field] = made
                return function(
                    **{
                        config: built(kind, values[config], _shown)
                        for config, kind in configs.items()
                    }
                )

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [_parameter(name, option) for name, option in options.items()],
            return_annotation=hints["return"],
        )
        lines = [f"    {name}: {option.setting.help}" for name, option in options.items()]
        run.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *lines])
        return run

    return decorate


def _options(config: str, kind: type) -> Iterator[tuple[str, Option]]:
    hints = get_type_hints(kind)
    defaults = {field.name: field.default for field in fields(kind)}
    for name, found in settings_of(kind).items():
        if found.option is not None:
            yield _shown(name, found), Option(config, name, hints[name], defaults[name], found)


def _shown(field: str, found: Setting) -> str:
    """Returns the name of a field's parameter: that of the option, without its dashes."""
    return field if found.argument else option_of(field, found).lstrip("-").replace("-", "_")


def _parameter(name: str, option: Option) -> inspect.Parameter:
    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(
        name,
        positional if option.is_positional else keyword,
        default=inspect.Parameter.empty if option.is_required else _default(option),
    )


def _default(option: Option) -> object:
    """Returns the default of an option, a duration as people write it."""
    unit = unit_ms(option.field)
    return (
        option.default
        if unit is None or option.default is None
        else duration_text(option.default * unit)
    )


def _named(
    function: str,
    options: Mapping[str, Option],
    inputs: tuple[object, ...],
    given: Mapping[str, object],
) -> dict[str, object]:
    """Returns the arguments by name. Raises UsageError: One is unknown, missing or given twice."""
    places = [name for name, option in options.items() if option.is_positional]
    if len(inputs) > len(places):
        raise UsageError(
            f"thinrow.{function} takes {', '.join(places) or 'no argument'} by place, and options "
            f"by name; give several files as one list."
        )
    named = dict(zip(places, inputs, strict=False))
    for name in given:
        if name in named:
            raise UsageError(f"thinrow.{function} has {name} twice; give it once.")
        if name not in options:
            raise UsageError(
                f"thinrow.{function} has no option {name}; it has {', '.join(options)}."
            )
    named |= given
    for name, option in options.items():
        if option.is_required and name not in named:
            raise UsageError(f"thinrow.{function} needs {name}: {option.setting.help}")
    return named


class _Scratch:
    """A folder for tables in memory, made once one of them needs it."""

    def __init__(self, stack: ExitStack, output: object) -> None:
        self._stack = stack
        self._output = output
        self._folder: Path | None = None

    def path(self, name: str) -> Path:
        """Returns the path of a file in the folder. Raises StoreError where it cannot be made."""
        if self._folder is None:
            output = self._output
            is_local = isinstance(output, Path) or (isinstance(output, str) and not is_url(output))
            beside = Path(str(output)) if is_local else None
            try:
                self._folder = (
                    Path(self._stack.enter_context(TemporaryDirectory(prefix="thinrow-")))
                    if beside is None
                    else self._stack.enter_context(scratch_beside(beside))
                )
            except OSError as error:
                raise storage_error(error, beside or Path()) from error
        return self._folder / f"{name}.parquet"
