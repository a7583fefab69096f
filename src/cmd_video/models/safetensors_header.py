"""What a safetensors file says of itself, looked at before a library reads it: that takes seconds, and memory without
end, where a small file has a header of a hundred thousand names.

check_header(Path("diffusion_pytorch_model.safetensors"))
"""

import struct
from pathlib import Path

MAX_HEADER = 16 * 2**20  # bytes
MAX_TENSORS = 20_000  # of one file; the largest models that are trained here have some 2,000


def check_header(path: Path) -> None:
    """Look at the length of a file's header and at how many tensors it names; the rest is the library's to check.

    Raises:
        ValueError: the header is longer than the file or than any model's, or names more tensors than any model has.
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER):
            raise ValueError(
                f"{path} is damaged or no safetensors: a header of {length} bytes in a file of {size}, allowed: 2 to "
                f"{MAX_HEADER}"
            )
        found = file.read(length).count(b'"data_offsets"')
    if found > MAX_TENSORS:
        raise ValueError(f"{path} names {found} tensors, allowed: {MAX_TENSORS}")
