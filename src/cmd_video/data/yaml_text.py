"""YAML as users write it: no key twice, no code, and no text of a few lines that unfolds to a billion values.

values = parse_yaml("lr: 1e-4")
"""

from typing import Any

import yaml

MAX_VALUES = 100_000  # with every `*alias` written out


class _Loader(yaml.SafeLoader):
    """Refuses a key that a section has twice: the first one would be lost. What `<<` brings may be overridden."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if key.value in {before.value for before in keys[:number]}:
                raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
        return node


def parse_yaml(text: str) -> Any:
    """What a YAML text says; None of an empty one.

    Raises:
        yaml.YAMLError: it is not YAML.
        RecursionError: it is nested too deep.
        ValueError: it has a key twice, or aliases that unfold to more than MAX_VALUES values, or to themselves.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_VALUES:
            raise ValueError(f"its aliases unfold to more than {MAX_VALUES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values in a node, those of an alias as often as it stands there."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    found = known[id(node)]
    if found is None:
        raise ValueError(f"line {node.start_mark.line + 1}: an alias stands in what it names")
    return found
