"""Groups of options: a parameter of a command that is a dataclass stands for one option per field of it.

Each group has its own part of the command's help.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand


class _Command(TyperCommand):
    """A command whose help is plain text with a part for each group: long names are whole on narrow terminals and in pipes."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        parts = defaultdict(list)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = getattr(parameter, "rich_help_panel", None)
                parts[title or f"{parameter.param_type_name.capitalize()}s"].append(record)
        for title, records in parts.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Application(typer.Typer):
    """Commands, or commands about one thing."""

    def __init__(self, **settings: Any) -> None:
        # --help of a group has a value where it is not given, for which typer then loads no pydantic
        super().__init__(rich_markup_mode=None, context_settings={"default_map": {"help": False}}, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Any], Any]:
        """Adds a command, as typer's own decorator does."""
        return super().command(name, cls=_Command, **settings)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it, with the options of each group in the group's place."""
    types = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in types.items() if is_dataclass(kind)}
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if name in groups:
            parameters += _options(groups[name])
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=types[name]))

    def call(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    made: Any = wraps(command)(call)
    del made.__wrapped__  # its signature would be read instead
    made.__signature__ = Signature(parameters)
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _options(group: Any) -> list[Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=_in_part(types[field.name], group.TITLE),
        )
        for field in fields(group)
    ]


def _in_part(annotation: Any, title: str) -> Any:
    """The annotation of an option, for that part of the help; other commands may have the option outside of the group."""
    option = copy(annotation.__metadata__[0])
    option.rich_help_panel = title
    return Annotated[annotation.__origin__, option]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return Parameter.empty if field.default is MISSING else field.default
