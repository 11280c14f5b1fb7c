"""Settings from the command line: a field of a dataclass is a flag, its group a heading, its docstring the help."""

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

T = TypeVar("T")
NAMES = {Path: "PATH", str: "STR", int: "INT", float: "FLOAT"}
REGISTRY = ConstructorRegistry()


def parse(kind: type[T], command: str, description: str, arguments: Sequence[str], default: T | None = None) -> T:
    """Returns the settings that a command was given.

    Args:
        kind: a dataclass, or one of groups of settings.
        command: for the help, "table quick".
        description: of the command.
        arguments: the flags.
        default: what holds where a flag is not given; by default what the fields say.
    """
    with REGISTRY:
        return tyro.cli(
            kind,
            prog=f"kimiajax {command}",
            description=description,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
            default=tyro.MISSING_NONPROP if default is None else default,
        )


@REGISTRY.struct_rule
def _of_this_project(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Shows no `None`: of a setting that need not be given, the help says what holds without it."""
    if not (dataclasses.is_dataclass(info.type) and info.type.__module__.startswith("kimiajax.")):
        return None
    hints, told = get_type_hints(info.type), _docstrings(info.type)
    given = info.default if isinstance(info.default, info.type) else None
    specs = []
    for field in dataclasses.fields(info.type):
        kind, default = hints[field.name], field.default if given is None else getattr(given, field.name)
        if default is dataclasses.MISSING:
            default = tyro.MISSING
        if default is None:
            kind: Any = Annotated[kind, tyro.conf.arg(metavar=_shown(kind), help_behavior_hint="")]
        specs.append(StructFieldSpec(field.name, kind, default, told.get(field.name)))
    return StructConstructorSpec(info.type, tuple(specs))


def _shown(kind: Any) -> str:
    """Returns the help's name for what a setting takes beside None."""
    if kind in NAMES:
        return NAMES[kind]
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(_shown(each) for each in get_args(kind) if each is not type(None))
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    return f"[{_shown(get_args(kind)[0])} ...]"  # a tuple of one kind


def _docstrings(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass and of those that it extends."""
    told = {}
    for each in reversed(kind.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                told[field.target.id] = ast.literal_eval(text.value)
    return told
