"""Tables of plain settings, as YAML holds them <-> frozen dataclasses, every value checked against its type."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vocalremover.errors import UsageError


def from_table(kind: type, given: object, where: str) -> Any:  # noqa: ANN401
    """The dataclass that a table of settings describes. Raises UsageError that tells `where` it is wrong."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{where} must be a table of settings, not {given!r}")
    hints = get_type_hints(kind)
    for key in given:
        if key not in hints:
            near = get_close_matches(str(key), hints, 1)
            raise UsageError(f"{where} has no setting {key!r}" + (f": did you mean {near[0]}?" if near else ""))
    missing = [each.name for each in fields(kind) if each.name not in given and _required(each)]
    if missing:
        raise UsageError(f"{where} lacks {', '.join(missing)}")
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in given.items()})


def _required(each: Any) -> bool:  # noqa: ANN401
    return each.default is MISSING and each.default_factory is MISSING


def _value(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    """A value out of YAML as the type that a setting wants."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (other,) = (option for option in options if option is not type(None))
        return None if value is None else _value(other, value, where)
    if origin is Literal and value in options:
        return value
    if is_dataclass(hint):
        return from_table(hint, value, where)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UsageError(f"{where} must be a list, not {value!r}")
        return tuple(_value(options[0], each, f"{where}.{place}") for place, each in enumerate(value))
    if origin is not None and isinstance(value, Mapping) and len(options) == 2:
        return {str(key): _value(options[1], each, f"{where}.{key}") for key, each in value.items()}
    if hint is Any or (hint in (bool, int, str) and type(value) is hint):
        return value
    if hint is float and not isinstance(value, bool):
        try:  # YAML takes 1e-4 for a word
            return float(value)
        except (TypeError, ValueError):
            pass
    wanted = f"one of {', '.join(map(str, options))}" if origin is Literal else f"a {getattr(hint, '__name__', hint)}"
    raise UsageError(f"{where} must be {wanted}, not {value!r}")


def as_table(value: Any) -> Any:  # noqa: ANN401
    """Tuples as lists, as YAML has them."""
    if isinstance(value, Mapping):
        return {key: as_table(each) for key, each in value.items()}
    return [as_table(each) for each in value] if isinstance(value, list | tuple) else value
