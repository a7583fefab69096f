"""Parts of a configuration: typed, frozen, an unknown key is an error; and fields whose `kind` says which part it is.

class Settings(Section):
    kind: Literal["bridge"] = "bridge"

class Run(Section):
    objective: Annotated[Any, by_kind(find, default="denoising")]  # find: a kind to its section, or a ValueError
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import core_schema


class Section(BaseModel):
    """A part of a configuration that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class by_kind:
    """Annotation of a field that holds one of several sections, as its key `kind` says.

    The sections are looked up when a value is validated, so that a table of them can grow, and none is imported before
    it is used.

    Args:
        find: a kind to its section; a ValueError names what is allowed.
        default: the kind of a value without one; None = it must be given.
    """

    def __init__(self, find: Callable[[str], type[Section]], default: str | None = None) -> None:
        self.find, self.default = find, default

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        serialize = core_schema.plain_serializer_function_ser_schema(
            lambda value, info: value.model_dump(mode=info.mode, by_alias=info.by_alias), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self._section, serialization=serialize)

    def _section(self, value: Any) -> Section:
        if isinstance(value, Section):
            expected = self.find(str(getattr(value, "kind", self.default)))
            if not isinstance(value, expected):
                raise ValueError(f"kind: a {type(value).__name__} is no {expected.__name__}")
            return value
        if not isinstance(value, dict):
            raise ValueError(f"expected fields and a kind, got {value!r}")
        kind = value.get("kind", self.default)
        if kind is None:
            raise ValueError("kind: not given")
        return self.find(str(kind)).model_validate({**value, "kind": kind})


def named(place: str) -> Any:
    """What a row of a table names as "package.module:Name", imported now."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def by_technique(seam: str) -> by_kind:
    """Annotation of a field that holds the section of a technique of this seam; the table of techniques is asked."""
    return by_kind(lambda kind: import_module("cmd_video.techniques").technique(kind, seam).settings)
