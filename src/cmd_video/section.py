"""Parts of a configuration: typed, frozen, an unknown key is an error; and fields whose `kind` says which part it is.

    class Settings(Section):
        kind: Literal["bridge"] = "bridge"

    class Run(Section):
        objective: Annotated[Any, by_kind(find, default="denoising")]  # find: a kind to its section, or a ValueError
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import core_schema


class Section(BaseModel):
    """A part of a configuration that refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class by_kind:  # noqa: N801  # reads as a function in an annotation
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
            return value
        if not isinstance(value, dict):
            raise ValueError(f"expected fields and a kind, got {value!r}")
        kind = value.get("kind", self.default)
        if kind is None:
            raise ValueError("kind: not given")
        return self.find(str(kind)).model_validate({**value, "kind": kind})


