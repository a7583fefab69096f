"""Files that nobody would write on purpose, or on purpose only: one line, exit code 2, and no code runs.

What tells a mistake from a bug is tested beside it: a bug keeps its traceback.
"""

import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import time
import types
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError

from cmd_video.cli import Verb, main
from cmd_video.cli.errors import describe, is_mistake
from cmd_video.models import CMDAutoencoder
from cmd_video.models.whole import load_whole

DEEP = b"[" * 100_000
HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 16, 256, 256, 3), }"
NPY = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + HEADER.ljust(117) + b"\n"  # of 3 TB
GENERATE = ["generate", "a red circle", "--model", "{m}", "-o", "{out}/a.mp4", "--steps", "1"]
CALC = ["evaluate", "calc", "{m}", "--frames", "4", "-o", "{out}/a.json", "--extractor"]
PAIRED = ["evaluate", "paired", "{in}", "{in}", "-o", "{out}/a.json"]
PRUNE = ["prune", "{m}", "-o", "{out}/small"]


LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(  # 9^9 values
    b"%c: &%c [%s]\n" % (name, name, b", ".join([b"*%c" % (name - 1)] * 9)) for name in b"bcdefghi"
) + b"stage: *i\n"  # fmt: skip


class Evil:
    """What runs a command where it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def index(**changes):
    """A model whose model_index.json says something else."""

    def change(model, canary):
        path = model / "model_index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def part(name, content):
    """A model in which a file holds something else; "pickle" is one that runs a command."""

    def change(model, canary):
        path = model / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(pickle.dumps(Evil(canary)) if content == "pickle" else content)

    return change


def binary(model, canary):
    """A text encoder whose weights are a pickle, as they were once published."""
    (model / "text_encoder" / "model.safetensors").unlink()
    torch.save({"a": Evil(canary)}, model / "text_encoder" / "pytorch_model.bin")


WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "autoencoder": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
MODELS = {
    **{
        f"index {content[:3]!r}": part("model_index.json", content)
        for content in (b"[]", b"7", b"{}", b"{", b"", DEEP)
    },
    "index of another encoding": part("model_index.json", b"\xff\xfe\x00\x01"),
    **{
        f"unet is {value}": index(unet=value)
        for value in (
            7, [], "x", {"a": 1}, ["diffusers"], [1, 2], [None, None], ["cmd_video.nothing", "X"], ["os", "system"],
            ["transformers", "pipeline"], ["cmd_video.cli", "main"], ["diffusers", "NoSuch"], ["../evil", "X"],
        )
    },
    **{f"sampling is {value}": index(sampling=value) for value in (7, [], {"content": 7}, {"nope": 1})},
    **{
        f"{name} is {content[:3]!r}": part(name, content)
        for name in ("unet/config.json", "text_encoder/config.json", "motion_scheduler/scheduler_config.json")
        for content in (b"[]", b"{", DEEP)
    },
    **{
        f"tokenizer/{name} is {content[:3]!r}": part(f"tokenizer/{name}", content)
        for name in ("tokenizer.json", "tokenizer_config.json")
        for content in (b"", b"[]", DEEP)
    },
    **{
        f"weights of {name} are {what}": part(f"{name}/{file}", content)
        for name, file in WEIGHTS.items()
        for what, content in (
            ("empty", b""), ("a pickle", "pickle"), ("gone", None), ("a header of 2^40", struct.pack("<Q", 2**40)),
            ("a pointer", b"version https://git-lfs.github.com/spec/v1\n"),
        )
    },
    "weights are a pickle": binary,
}  # fmt: skip


@pytest.fixture
def places(tmp_path, tiny_pipeline):
    (tmp_path / "out").mkdir()
    shutil.copytree(tiny_pipeline, tmp_path / "m")
    return tmp_path


def check(run, places, arguments, word, **names):
    names = {"m": str(places / "m"), "out": str(places / "out"), **names}
    code, _, err = run(*(argument.format(**names) for argument in arguments))
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert word in lines[0], lines[0]
    assert not (places / "canary").exists() and not list((places / "out").iterdir())
    return lines[0]


@pytest.mark.parametrize("command", ["generate", pytest.param("prune", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_a_hostile_model(name, command, run, places, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    MODELS[name](places / "m", places / "canary")
    check(run, places, GENERATE if command == "generate" else [*PRUNE, "--budget", "0.9"], "")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
ABUSE = {  # what the header says of a file that holds 16 bytes of tensors
    "overlap": {"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}, "c": {**ENTRY, "data_offsets": [8, 16]}},
    "negative": {"a": {**ENTRY, "data_offsets": [-8, 0]}},
    "outside": {"a": {**ENTRY, "data_offsets": [0, 2**40], "shape": [2**38]}},
    "backwards": {"a": {**ENTRY, "data_offsets": [8, 0]}},
    "wrong dtype": {"a": {**ENTRY, "dtype": "F99"}},
    "no dtype": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "too few bytes": {"a": {**ENTRY, "shape": [3]}},
    "a shape that overflows": {"a": {**ENTRY, "shape": [2**62, 2**62]}},
    "a list": [],
    "depth": DEEP[:50_000],
    "no UTF-8": b'{"\xff\xfe": {}}',
    "100,000 names": {f"a{n}": {**ENTRY, "data_offsets": [8 * n, 8 * n + 8]} for n in range(100_000)},
    "a length of 2^40": None,
    "a length of 2^63": None,
}


def abused(name, file):
    """A safetensors file with a header of ABUSE."""
    header = ABUSE[name]
    if header is None:
        return file.write_bytes(struct.pack("<Q", 2 ** int(name[-2:])) + b"{}" + bytes(16))
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    held = 800_000 if name == "100,000 names" else 16
    return file.write_bytes(struct.pack("<Q", len(data)) + data + bytes(held))


@pytest.mark.parametrize("name", ABUSE)
def test_an_abused_safetensors_file_is_refused_at_once(name, run, places):
    """In two seconds of this process, the model's other parts included."""
    abused(name, places / "m" / "unet" / WEIGHTS["unet"])
    begun = time.process_time()
    check(run, places, GENERATE, "unet")
    assert time.process_time() - begun < 2


def test_mutated_safetensors_are_refused_or_the_same_numbers(places):
    """Bytes of the header changed at random: one line, or what the header says still fits every weight."""
    file = places / "m" / "autoencoder" / WEIGHTS["autoencoder"]
    whole, rng = bytearray(file.read_bytes()), random.Random(0)
    (length,) = struct.unpack_from("<Q", whole)
    refused = 0
    for _ in range(60):
        data = whole.copy()
        for place in rng.sample(range(8 + length), rng.choice((1, 4))):
            data[place] = rng.randrange(256)
        file.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        begun = time.process_time()
        try:
            model = load_whole(CMDAutoencoder, places / "m", "model", subfolder="autoencoder")
            assert all(weight.isfinite().all() for weight in model.state_dict().values())
        except ValueError as error:
            assert str(error).startswith("model: ") and "Traceback" not in str(error)
            refused += 1
        assert time.process_time() - begun < 2
    assert refused > 50


def picture(path, canary):
    Image.new("1", (30_000, 30_000)).save(path)


def archive(path, canary):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("videos.npy", NPY + b"x")


def objects(path, canary):
    np.save(path, np.array([Evil(canary)], dtype=object), allow_pickle=True)


def plain(content):
    return lambda path, canary: path.write_bytes(content)


def pickled(path, canary):
    path.write_bytes(pickle.dumps({"a": Evil(canary)}))


def saved(path, canary):
    torch.save({"a": Evil(canary)}, path)


TAG = plain(b"!!python/object/apply:os.system ['touch canary']")
COMPARE, REPORT = ["evaluate", "compare", "{in}", "{in}"], ["evaluate", "report", "{in}", "-o", "{out}/report"]
PRUNE_BY = ["--budget", "0.9", "--importance", "{in}"]
FILES = {  # name of the file, what writes it, the command that reads it
    **{
        f"{verb} of {what}": ("in.json", write, arguments)
        for verb, arguments in (
            ("compare", COMPARE), ("report", REPORT), ("selection", [*PRUNE, "--selection", "{in}"]),
            ("importance", [*PRUNE, *PRUNE_BY]), ("sampling", [*GENERATE, "--sampling", "{in}"]),
            ("train", ["train", "{in}"]), ("reference", [*CALC, "pixels", "--reference", "{in}"]),
        )
        for what, write in (("depth", plain(DEEP)), ("a list", plain(b"[]")), ("a pickle", pickled), ("a tag", TAG))
    },
    **{
        f"{verb} of {what}": ("in.yaml", plain(text), arguments)
        for verb, arguments in (("train", ["train", "{in}"]), ("sampling", [*GENERATE, "--sampling", "{in}"]))
        for what, text in (("aliases", LAUGHS), ("an alias of itself", b"stage: &a [*a]"))
    },
    "an archive of 3 TB": ("in.npz", archive, PAIRED),
    "an array of 3 TB": ("in.npy", plain(NPY + b"x"), PAIRED),
    "an array of objects": ("in.npy", objects, PAIRED),
    "a text as archive": ("in.npz", plain(b"text"), PAIRED),
    "a picture that is too large": ("in.png", picture, [*GENERATE, "--image", "{in}"]),
    "a last picture that is too large": ("in.png", picture, [*GENERATE, "--last-image", "{in}"]),
    "a content frame that is too large": ("in.png", picture, [*GENERATE, "--content-frame", "{in}"]),
    "a mask that is too large": (
        "in.png", picture,
        ["restore", "{in}", "--task", "inpaint", "--mask", "{in}", "--model", "{m}", "-o", "{out}/a.mp4"],
    ),
    **{
        f"ViT-g of {what}": ("in.pt", write, [*CALC, "videomaev2:{in}", "--reference", "{m}"])
        for what, write in (("a pickle", pickled), ("a saved pickle", saved), ("text", plain(b"x")))
    },
    "a pickle as safetensors": ("in.safetensors", pickled, [*CALC, "videomaev2:{in}", "--reference", "{m}"]),
    "prompts that are no text": ("in.txt", plain(b"\xff\xfe"), [*GENERATE, "--prompts-file", "{in}"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file(name, run, places, monkeypatch):
    monkeypatch.chdir(places)
    file, write, arguments = FILES[name]
    write(places / file, places / "canary")
    check(run, places, arguments, "", **{"in": str(places / file)})


ARGUMENTS = {
    "a device without numbers": ([*GENERATE, "--device", "meta"], "--device: 'meta' holds no numbers"),
    "more than any memory": ([*GENERATE, "--height", "1600000", "--width", "1600000"], "GiB, this machine has"),
    "half an emoji as model": ([*GENERATE[:2], "--model", "caf\ud83d", "-o", "{out}/a.mp4"], "no folder caf"),
    "half an emoji as clip": (["reconstruct", "caf\ud83d.mp4", "--model", "{m}"], "caf"),
    "half an emoji as clips": (["evaluate", "paired", "caf\ud83d", "b", "-o", "{out}/a.json"], "caf"),
    "a name with nothing in it": (["evaluate", "paired", "a\0b", "b", "-o", "{out}/a.json"], ""),
    "too long a name": (
        ["generate", "x", "--model", "{m}", "-o", "{out}/" + "a" * 300 + ".mp4"],
        "File name too long",
    ),
    "a typo below a folder": ([*GENERATE[:2], "--model", "{m}/../modle"], "no folder "),
    "depth on the command line": ([*GENERATE, "--sampling", "[" * 5000], "is no YAML"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_hostile_argument(name, run, places, monkeypatch):
    monkeypatch.chdir(places)
    check(run, places, *ARGUMENTS[name])


@pytest.mark.parametrize("exists", [False, True])
def test_a_typo_is_no_hub_id_where_its_folder_is_there(exists, run, places, monkeypatch):
    """`runs/modle` beside `runs/model`: no network is asked; elsewhere the line says that both were looked for."""
    monkeypatch.chdir(places)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if exists:
        (places / "runs").mkdir()
    line = check(run, places, [*GENERATE[:2], "--model", "runs/modle", "-o", "{out}/a.mp4"], "no folder runs/modle")
    assert ("hub" in line) is not exists


def test_a_name_of_bytes_is_written_and_told(places, monkeypatch):
    """A name that is no UTF-8, as old disks have them: that it cannot be printed must not undo what was done."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    arguments = [
        word.format(m=places / "m", out=places / "out").replace("a.mp4", "caf\udce9.mp4") for word in GENERATE
    ]
    assert main(arguments) == 0
    assert b"caf\xe9.mp4" in os.listdir(os.fsencode(places / "out"))


def out_of_memory():
    try:
        torch.empty(10**17)
    except RuntimeError as error:
        return error


def no_safetensors():
    from safetensors.torch import load

    try:
        load(b"x" * 100)
    except SafetensorError as error:
        return error


MISTAKES = {
    "ValueError": ValueError("a"),
    "a kind of it": UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
    "OSError": OSError(28, "No space"),
    "a kind of that": UnidentifiedImageError("x"),
    "safetensors": no_safetensors(),
    "a pickle": pickle.UnpicklingError("Re-running torch.load with weights_only=False will likely succeed"),
    "memory": MemoryError(),
    "memory of torch": out_of_memory(),
    "memory of a GPU": torch.OutOfMemoryError("CUDA"),
    "a bomb": Image.DecompressionBombError("x"),
}
BUGS = [
    TypeError("a"), KeyError("a"), AttributeError("a"), IndexError("a"), RuntimeError("a"), ZeroDivisionError("a"),
    RecursionError("a"), NotImplementedError("a"), AssertionError("a"), ImportError("a"), pickle.PicklingError("a"),
]  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name):
    assert is_mistake(MISTAKES[name])
    text = describe(MISTAKES[name])
    assert text and "\n" not in text and "weights_only" not in text


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_a_bug_keeps_its_traceback(error, monkeypatch):
    def command():
        raise error

    module = types.ModuleType("broken_verb")
    module.command = command
    monkeypatch.setitem(sys.modules, "broken_verb", module)
    assert not is_mistake(error)
    with pytest.raises(type(error)):
        main(["break"], {"break": Verb("broken_verb", "command", "")})
