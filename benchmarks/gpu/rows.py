"""What the scripts of this folder share: arguments, small sizes for a rehearsal, rows that are written one by one.

arguments = parse(__doc__)
results = Results("presets", arguments, {"batch": 1}, shown=("end_to_end",))
raise SystemExit(results.run([Row("turbo, eager", measure), ...]))      # measure() -> a row, JSON-able
"""

import argparse
import gc
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch

from cmd_video.benchmark.system import Place, Size
from cmd_video.benchmark.timing import describe_device
from cmd_video.evaluation.protocol.results import write_result

DTYPE = torch.bfloat16
CLIP = Size(512, 1024, 16)
SMALL_CLIP = Size(64, 64, 4)  # divisible by what the peers' compression asks for
SMALL: dict[str, dict[str, Any]] = {  # class -> what differs from its published configuration in a rehearsal
    "CLIPTextModel": {
        "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 16,
    },
    "T5EncoderModel": {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2},
    "UMT5EncoderModel": {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2},
    "CMDAutoencoder": {"dim": 16, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 1},
    "CMDMotionTransformer": {"num_layers": 3, "dim": 32, "num_heads": 2, "text_dim": 16, "content_patch_size": 4},
    "UNet2DConditionModel": {
        "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16,
        "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "mid_block_type": None,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "UNet3DConditionModel": {
        "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "attention_head_dim": 4,
    },
    "VideoCrafterUNet": {
        "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "attention_head_dim": 4,
    },
    "UNetSpatioTemporalConditionModel": {
        "block_out_channels": (32, 32, 64, 64), "num_attention_heads": (2, 2, 4, 4), "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24,
    },
    "AutoencoderKL": {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8),
        "num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1),
    },
    "LTXVideoTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "cross_attention_dim": 16,
    },
    "AutoencoderKLLTXVideo": {
        "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
    "WanTransformer3DModel": {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 1},
    "AutoencoderKLWan": {"base_dim": 8, "num_res_blocks": 1},
    "HunyuanVideoTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 10, "rope_axes_dim": (2, 4, 4), "num_layers": 2,
        "num_single_layers": 3, "num_refiner_layers": 1,
    },
    "AutoencoderKLHunyuanVideo": {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
}  # fmt: skip


def parse(description: str | None) -> argparse.Namespace:
    """The arguments of every script; and `place`, where and how large to build, and `clip`, what to make."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--rehearse", action="store_true", help="the same with small models on a CPU")
    parser.add_argument("--device", help="default: cuda, in a rehearsal cpu")
    seconds_help = "start no row when this process is that old"
    parser.add_argument("--seconds", type=float, default=float("inf"), help=seconds_help)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these, by the names that are printed")
    arguments = parser.parse_args()
    arguments.device = arguments.device or ("cpu" if arguments.rehearse else "cuda")
    arguments.clip = SMALL_CLIP if arguments.rehearse else CLIP
    arguments.place = Place(arguments.device, DTYPE, SMALL if arguments.rehearse else {})
    if arguments.rehearse:
        torch.set_num_threads(1)  # small tensors are not worth sharing
    diffusers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", module="torch._dynamo")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    return arguments


@dataclass(frozen=True)
class Row:
    """What is to be measured.

    Attributes:
        name: of the row.
        measure: returns it, JSON-able.
        needs: seconds; with less left it is not begun, and a later row that needs less takes its turn.
    """

    name: str
    measure: Callable[[], dict[str, Any]]
    needs: float = 0.0


class Results:
    """A results file that grows by a row at a time, until the time is up.

    Args:
        name: of the measurement.
        arguments: from `parse`.
        protocol: what decides the numbers, beside the arguments.
        shown: what of a row is printed.
    """

    def __init__(
        self, name: str, arguments: argparse.Namespace, protocol: dict[str, Any], shown: tuple[str, ...]
    ) -> None:
        self.shown = (*shown, "row_seconds")
        self.name, self.path, self.device = name, arguments.output, arguments.device
        self.seconds, self.chosen = arguments.seconds, arguments.rows
        described = describe_device(arguments.device)
        self.protocol = {"device": described, "rehearsal": arguments.rehearse, "dtype": "bfloat16", **protocol}
        self.rows: dict[str, dict[str, Any]] = {}
        self.left: list[str] = []

    def run(self, rows: Sequence[Row]) -> int:
        """Measure the rows in this order. A row that fails is written with its error, and the next one is tried.

        Returns:
            exit code: 0, 1 if a row failed, 2 if there is no such row, or 3 if the time was up before the last row.
        """
        unknown = sorted(set(self.chosen or ()) - {row.name for row in rows})
        if unknown:
            print(f"--rows: {unknown[0]!r} is none of {'; '.join(row.name for row in rows)}", file=sys.stderr)
            return 2
        rows = [row for row in rows if self.chosen is None or row.name in self.chosen]
        self.left = [row.name for row in rows]
        for row in rows:
            if time.time() - psutil.Process().create_time() + row.needs >= self.seconds:
                continue
            self._write(row.name)
            self.rows[row.name] = self._measure(row.measure)
            self.left.remove(row.name)
            failure = self.rows[row.name].get("failure")
            print(f"  {row.name}: {failure or self._in_words(self.rows[row.name])}", flush=True)
        self._write()
        if self.left:
            print(f"  time is up, not run: {'; '.join(self.left)}", flush=True)
        failed = any("failure" in row for row in self.rows.values())
        return 1 if failed else 3 if self.left else 0

    def _measure(self, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            row = measure()
        except torch.OutOfMemoryError as error:
            row = {"failure": str(error).splitlines()[0]}
        except Exception as error:
            traceback.print_exc()
            row = {"failure": f"{type(error).__name__}: {error}"[:500]}
        free(self.device)
        return {**row, "row_seconds": time.perf_counter() - start}

    def _in_words(self, row: dict[str, Any]) -> str:
        return ", ".join(f"{name} {_short(name, row[name])}" for name in self.shown if name in row)

    def _write(self, running: str | None = None) -> None:
        """If this process is ended, the file says in which row."""
        values = {"rows": self.rows, "not_run": self.left, **({"running": running} if running else {})}
        write_result(self.path, self.name, values, self.protocol, self.device)


def _short(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / 1e9:.2f} G"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def free(device: str) -> None:
    """Give back what the last row held."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def fill_zeros(module: torch.nn.Module) -> None:
    """Draw the weights that a fresh model has at zero, so that every layer has something to do."""
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
