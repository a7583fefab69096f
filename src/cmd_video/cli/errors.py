"""A user's mistake in one line: what is wrong, the value that was given, what is allowed.

Which exceptions are a user's is said here alone: those that readers and checks raise on purpose, `ValueError` and
`OSError`, and a few that libraries raise of files and machines in types of their own, by name, so that no library is
imported to ask. Every other type, TypeError and KeyError above all, is a bug of ours: whoever reads what a user wrote
turns it into a ValueError there, where the file is known.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


ARGUMENTS = re.compile(r"\w+((, | and | or )\w+)*(?=:)")  # what a message is about


NO_MEMORY = "not enough memory: {}; make frames, clips or what is done at a time smaller"
FOREIGN = {  # by the name of a type that is no ValueError or OSError, a user's mistake, and how it is said
    "safetensors_rust.SafetensorError": "damaged or no safetensors: {}",
    "_pickle.UnpicklingError": "a file holds a pickle that is more than tensors, and is not opened",
    "PIL.Image.DecompressionBombError": "a picture is too large: {}",
    "torch.OutOfMemoryError": NO_MEMORY,
}


def is_mistake(error: BaseException) -> bool:
    """Whether an exception tells of what a user gave, or of his machine, rather than of a bug."""
    return isinstance(error, ValueError | OSError) or _foreign(error) is not None


def _foreign(error: BaseException) -> str | None:
    """How an exception of FOREIGN is said; torch tells of a machine without memory in a RuntimeError."""
    if is_out_of_memory(error):
        return NO_MEMORY
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return next((said for name in names for key, said in FOREIGN.items() if name.endswith(key)), None)


def describe(error: Exception, options: Mapping[str, str] | None = None) -> str:
    """Return the message of an exception as one line.

    Args:
        error: what was raised.
        options: of the command that was called, by the name of the argument: what the library says of `num_clips` is
            said of `--num-clips`.
    """
    from pydantic import ValidationError

    foreign = None if isinstance(error, ValueError | OSError) else _foreign(error)
    if foreign is not None:
        text = foreign.format(next(iter(str(error).splitlines()), "") or type(error).__name__)
    elif isinstance(error, ValidationError):
        text = "\n".join(describe_problem(error, problem) for problem in error.errors(include_url=False))
    elif isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        text = ": ".join([" -> ".join(names), error.strerror] if names else [error.strerror])
    elif hasattr(error, "format_message"):  # typer's own
        text = error.format_message()
        if isinstance(error.__cause__, ValidationError):  # typer drops the value that it gave to pydantic
            text += f", got {short(error.__cause__.errors()[0]['input'])}"
    else:
        text = as_typed(str(error), options or {})
    printable = text.encode(errors="backslashreplace").decode()  # paths may hold bytes that are no UTF-8
    return one_line(printable) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether something was too large, in the words of Python, of torch on a GPU or of torch on a CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def as_typed(text: str, options: Mapping[str, str]) -> str:
    """A message that begins with names of arguments, with the options that they were given as."""
    found = ARGUMENTS.match(text)
    if found is None:
        return text
    return re.sub(r"\w+", lambda name: options.get(name[0], name[0]), found[0]) + text[found.end() :]


def one_line(text: str) -> str:
    """Join the lines of a message with '; '."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


def describe_problem(error: "ValidationError", problem: Any) -> str:
    """Return one entry of a pydantic error as `field.path: message, got VALUE`."""
    path = ".".join(str(key) for key in problem["loc"])
    if problem["type"] == "extra_forbidden":
        allowed = sorted(allowed_names(error.title, problem["loc"][:-1]))
        near = get_close_matches(str(problem["loc"][-1]), allowed, n=1)
        hint = f", did you mean {near[0]}?" if near else f", allowed: {', '.join(allowed)}" if allowed else ""
        return f"{path}: unknown name{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if problem["type"] == "missing":
        return f"{path}: {message}"
    given = f"{message}, got {short(problem['input'])}"
    return f"{path}: {given}" if path else given


def short(value: Any) -> str:
    """Return the repr of a value, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def allowed_names(title: str, path: Sequence[str | int]) -> set[str]:
    """Return the field names allowed at a path inside the pydantic model with this title."""
    models = {model for model in _models() if title in (model.__name__, model.model_config.get("title"))}
    for key in path:
        fields = [model.model_fields[key] for model in models if isinstance(key, str) and key in model.model_fields]
        if fields:  # any other key is an index, a dictionary's key or a union's tag
            models = {model for field in fields for model in _models_in(field.annotation)}
    return {field.alias or name for model in models for name, field in model.model_fields.items()}


def _models() -> "Iterator[type[BaseModel]]":
    from pydantic import BaseModel

    pending: list[type[BaseModel]] = [BaseModel]
    while pending:
        model = pending.pop()
        yield model
        pending.extend(model.__subclasses__())


def _models_in(annotation: Any) -> "Iterator[type[BaseModel]]":
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
