"""Reads a dashboard as Grafana's own schema has it: grafana.py SDK DASHBOARD. Prints what the schema does not know, or has as
another type, a line each; then how many objects were looked at."""

import enum
import json
import sys
import types
import typing

sys.path.insert(0, sys.argv[1])
from grafana_foundation_sdk.cog import encoder, plugins
from grafana_foundation_sdk.models import dashboard

looked_at = 0


def lost(told, read, at):
    """What was told and is not there once it was read."""
    if isinstance(told, dict) and isinstance(read, dict):
        for name, value in told.items():
            if name in read:
                lost(value, read[name], f"{at}/{name}")
            else:
                print(f"{at}/{name}: the schema has no such field")
    elif isinstance(told, list) and isinstance(read, list) and len(told) == len(read):
        for number, (value, other) in enumerate(zip(told, read)):
            lost(value, other, f"{at}/{number}")
    elif told != read:
        print(f"{at}: {told!r} is read as {read!r}")


def is_one(value, hint):
    """Whether a value is of a type, on the outside."""
    of = typing.get_origin(hint)
    if of in (typing.Union, types.UnionType):
        return any(is_one(value, one) for one in typing.get_args(hint))
    if of is typing.Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [one.value for one in hint]
    if hint in (typing.Any, object) or not isinstance(of or hint, type):
        return True
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, of or hint)


def check(value, at):
    """The types of an object's fields, and of theirs."""
    global looked_at
    if isinstance(value, list):
        for number, one in enumerate(value):
            check(one, f"{at}/{number}")
    elif isinstance(value, dict):
        for name, one in value.items():
            check(one, f"{at}/{name}")
    elif hasattr(value, "to_json"):
        looked_at += 1
        for name, hint in typing.get_type_hints(type(value)).items():
            one = getattr(value, name)
            if not is_one(one, hint):
                print(f"{at}/{name}: {one!r} is not {hint}")
            check(one, f"{at}/{name}")


plugins.register_default_plugins()
with open(sys.argv[2], encoding="utf-8") as file:
    told = json.load(file)
read = dashboard.Dashboard.from_json(told)
lost(told, json.loads(encoder.JSONEncoder().encode(read)), "")
check(read, "")
print(looked_at)
