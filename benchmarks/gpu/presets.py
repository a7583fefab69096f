"""CMD's presets at the true size with random weights: seconds of a clip and of each part, memory, compiled and not.

python benchmarks/gpu/presets.py -o benchmarks/results/gpu/presets.json [--rehearse] [--device cuda] [--seconds 170]

Rows in the order of their weight: the presets as they are, then compiled with CUDA graphs, and so on; the time box
cuts the rest. The pipeline is built once; rows change its preset, its decoder and what is compiled.
"""

import time
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch._dynamo
from rows import Results, Row, fill_zeros, free, parse
from torch._dynamo.utils import counters

from cmd_video.benchmark.cmd_system import (
    cmd_system,
    compile_denoisers,
    compile_surroundings,
    paper_image_autoencoder,
    paper_motion_transformer,
    paper_pipeline,
    set_preset,
    uncompile,
)
from cmd_video.benchmark.system import Place, Size, System
from cmd_video.benchmark.timing import time_system, wait

TARGETS = {"quality": 1.0, "fast": 0.3, "turbo": 0.1}  # seconds of a clip of 16x512x1024 on an H200
RUNS = {"quality": 5, "fast": 10, "turbo": 20}
MODES: dict[str, dict[str, Any]] = {  # how the denoisers run -> options of torch.compile
    "eager": {},
    "graphs": {"backend": "cudagraphs"},  # no other kernels, but launched together
    "compiled": {"mode": "default"},
    "compiled, graphs": {"mode": "reduce-overhead"},
}
REHEARSED: dict[str, dict[str, Any]] = {"eager": {}} | {mode: {"backend": "eager"} for mode in list(MODES)[1:]}
SHOWN = ("end_to_end", "target_seconds", "denoiser", "peak_bytes", "first_call_seconds", "compiled_graphs")
TINY, KL = "AutoencoderTiny", "AutoencoderKL"


@dataclass(frozen=True)
class Variant:
    """A row.

    Attributes:
        preset: quality, fast or turbo.
        mode: a key of MODES.
        surroundings: whether text encoder and decoders are compiled as well.
        motion: size of the motion transformer.
        decoder: of images; None = the preset's usual one.
        batch: clips at once.
        channels_last: memory layout of the UNet and the image decoder.
    """

    preset: str
    mode: str = "eager"
    surroundings: bool = False
    motion: str = "XL"
    decoder: str | None = None
    batch: int = 1
    channels_last: bool = False

    @property
    def image_decoder(self) -> str:
        return self.decoder or (KL if self.preset == "quality" else TINY)

    @property
    def name(self) -> str:
        words = [self.preset, self.mode]
        words += ["all compiled"] * self.surroundings + [f"motion {self.motion}"] * (self.motion != "XL")
        words += [self.decoder] if self.decoder else []
        words += [f"batch {self.batch}"] * (self.batch > 1) + ["channels-last"] * self.channels_last
        return ", ".join(words)


BEST, ALL = "compiled, graphs", ("turbo", "quality", "fast")  # what quality compiles is partly turbo's
VARIANTS = [
    *(Variant(preset) for preset in ALL),
    *(Variant(preset, BEST) for preset in ALL),
    *(Variant(preset, BEST, surroundings=True) for preset in ALL),
    *(Variant(preset, batch=4) for preset in ALL),
    Variant("turbo", motion="L"),
    *(Variant(preset, channels_last=True) for preset in ("quality", "turbo")),
    Variant("quality", decoder=TINY),
    *(Variant(preset, decoder=KL) for preset in ("turbo", "fast")),
    *(Variant(preset, "graphs") for preset in ALL),
    Variant("turbo", BEST, surroundings=True, motion="L"),
    *(Variant(preset, BEST, surroundings=True, batch=4) for preset in ALL),
    *(Variant(preset, "compiled") for preset in ALL),
    *(Variant(preset, "compiled", batch=4) for preset in ALL),
]


class Bench:
    """One pipeline, made into one variant after the other.

    Args:
        at: where and how large it is built.
        clip: its output.
        rehearse: few steps, and a compiler that does next to nothing.
    """

    def __init__(self, at: Place, clip: Size, rehearse: bool) -> None:
        self.at, self.clip, self.rehearse = at, clip, rehearse
        self.modes = REHEARSED if rehearse else MODES
        self.pipe = paper_pipeline("sd21", "XL", at.device, at.dtype, changes=at.changes)
        self.built = {"motion": "XL", "decoder": KL, "mode": "eager"}
        for module in (self.pipe.unet, self.pipe.motion_transformer, self.pipe.autoencoder, self.pipe.vae):
            fill_zeros(module)

    def system(self, variant: Variant) -> System:
        """The pipeline as a variant, to be timed."""
        pipe = self.pipe
        uncompile(pipe)
        if self.modes[self.built["mode"]] != self.modes[variant.mode]:
            torch._dynamo.reset()  # until here what was compiled is found again, and CUDA graphs keep their memory
            free(self.at.device)
        if self.built["motion"] != variant.motion:
            pipe.motion_transformer = None  # gone before the next one comes
            pipe.register_modules(motion_transformer=paper_motion_transformer("sd21", variant.motion, self.at))
            fill_zeros(pipe.motion_transformer)
        if self.built["decoder"] != variant.image_decoder:
            pipe.vae = None
            pipe.register_modules(vae=paper_image_autoencoder(variant.image_decoder == TINY, self.at))
            fill_zeros(pipe.vae)
        self.built = {"motion": variant.motion, "decoder": variant.image_decoder, "mode": variant.mode}
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        for module in (pipe.unet, pipe.vae):
            module.to(memory_format=layout)
        if variant.mode != "eager":
            compile_denoisers(pipe, **self.modes[variant.mode])
        if variant.surroundings:
            compile_surroundings(pipe, **self.modes["compiled"])
        set_preset(pipe, variant.preset)
        if self.rehearse:
            few = min(pipe.sampling.content.num_inference_steps, 10)
            pipe.sampling = pipe.sampling.changed({"num_inference_steps": few})
        return cmd_system(pipe, self.clip, name=variant.name).with_batch(variant.batch)

    def measure(self, variant: Variant, runs: int) -> dict[str, Any]:
        """A row; what is compiled is compiled in the first call."""
        system, device = self.system(variant), self.at.device
        before, start = compilations(), time.perf_counter()
        with torch.inference_mode():
            system.run()
        wait(device)
        first, after = time.perf_counter() - start, compilations()
        timing = time_system(system, device, runs)
        target = {"target_seconds": TARGETS[variant.preset]} if variant.batch == 1 else {}
        return {
            **{entry.name: getattr(variant, entry.name) for entry in fields(variant)},
            "decoder": variant.image_decoder,
            "sampling": system.sampling,
            **timing,
            **target,
            "first_call_seconds": first,
            **{name: after[name] - before[name] for name in before},
            "compiled_later": compilations()["compiled_graphs"] - after["compiled_graphs"],
        }


def compilations() -> dict[str, int]:
    """What the compiler has done so far: graphs, breaks between them, and graphs that it did not capture for CUDA."""
    return {
        "compiled_graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "skipped_cuda_graphs": counters["inductor"]["cudagraph_skips"],
    }


def worth_rehearsing(variant: Variant) -> bool:
    """To trace a preset's graphs takes a CPU seconds, so for each preset once and the rest with turbo alone."""
    return variant.mode == "eager" or variant.preset == "turbo" or variant == Variant(variant.preset, BEST)


def expect_many_graphs() -> None:
    """All compiled modules share one limit of recompilations; to run into it must not go unnoticed."""
    torch._dynamo.config.recompile_limit = 128
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def check_compiler(device: str) -> dict[str, Any]:
    """Seconds until each mode has compiled something small, with the real modes also in a rehearsal."""
    row = {}
    for mode, options in MODES.items():
        start = time.perf_counter()
        layer = torch.nn.Linear(64, 64, device=device)
        if options:
            layer.compile(dynamic=False, **options)
        with torch.inference_mode():
            for _ in range(3):  # graphs are captured in the second call
                layer(torch.randn(8, 64, device=device))
        wait(device)
        row[mode] = time.perf_counter() - start
    return row


def main() -> None:
    arguments = parse(__doc__)
    expect_many_graphs()
    bench = Bench(arguments.place, arguments.clip, arguments.rehearse)
    results = Results("presets", arguments, {"clip": str(arguments.clip), "base": "sd21"}, SHOWN)
    rows: list[Row] = []
    for variant in VARIANTS:
        if arguments.rehearse and not worth_rehearsing(variant):
            continue
        if variant.mode != "eager" and all(row.name != "compiler" for row in rows):
            rows.append(Row("compiler", partial(check_compiler, arguments.device)))
        runs = 2 if arguments.rehearse else max(2, RUNS[variant.preset] // variant.batch)
        needs = 15.0 if variant.mode == "eager" else 60.0  # what is not begun lets others be measured
        rows.append(Row(variant.name, partial(bench.measure, variant, runs), needs))
    raise SystemExit(results.run(rows))


if __name__ == "__main__":
    main()
