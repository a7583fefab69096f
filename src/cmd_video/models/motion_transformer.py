"""CMD's motion model: a DiT over motion latents, given the content frame (arXiv 2403.14148, section 3.2, equation 8).

    model = CMDMotionTransformer(**MOTION_TRANSFORMER_SIZES["L"], num_classes=101)
    noise = model(motion_latents, timestep, content_frame, class_labels=labels).sample

Differs from paper: a learned vector for each plane tells tokens of rows from those of columns; the variance is not
learned, though "as official DiT" would have it so; a text is the mean of its encoder's tokens, of which the paper says
"linear" only.

B batch, C channels, F frames, D motion channels, H', W' rows and columns of the planes, S tokens, K slots of time,
F / patch_size of the latents and one of the content frame; `t` is diffusion time.
"""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from .layers import AdaLNZeroBlock, TimestepEmbedder, modulate, per_token, sincos_table, zero_init

# DiT's named sizes (arXiv 2212.09748, table 1)
MOTION_TRANSFORMER_SIZES: dict[str, dict[str, int]] = {
    "S": {"num_layers": 12, "dim": 384, "num_heads": 6},
    "B": {"num_layers": 12, "dim": 768, "num_heads": 12},
    "L": {"num_layers": 24, "dim": 1024, "num_heads": 16},
    "XL": {"num_layers": 28, "dim": 1152, "num_heads": 16},
}


@dataclass
class CMDMotionTransformerOutput(BaseOutput):
    """What the motion model returns.

    Attributes:
        sample: (B, D, F, H' + W'), the prediction.
    """

    sample: torch.Tensor


class CMDMotionTransformer(ModelMixin, ConfigMixin):
    """Denoiser of motion latents: patches of the F x (H' + W') plane and of the content frame, joined along the
    sequence.

    Args:
        latent_channels: D of the motion latents.
        content_channels: C of the content frame.
        autoencoder_patch_size: content-frame pixels per row of a plane, so that H' = H / autoencoder_patch_size.
        patch_size: side of a patch of motion latents; F, H' and W' must be divisible by it.
        content_patch_size: side of a patch of the content frame.
        num_layers: blocks.
        dim: width of a token.
        num_heads: attention heads.
        num_classes: number of class labels; 0 = no class condition. Label `num_classes` stands for "no class".
        text_dim: width of the pooled text feature; 0 = no text condition.
        num_references: R given frames, each with a mask, behind the content frame's channels (STIV, arXiv 2412.07730).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["AdaLNZeroBlock"]
    _repeated_blocks = ["AdaLNZeroBlock"]

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 8,
        content_channels: int = 4,
        autoencoder_patch_size: int = 2,
        patch_size: int = 2,
        content_patch_size: int = 4,
        num_layers: int = 24,
        dim: int = 1024,
        num_heads: int = 16,
        num_classes: int = 0,
        text_dim: int = 0,
        num_references: int = 0,
    ) -> None:
        super().__init__()
        if dim % 4 or dim % num_heads:
            raise ValueError(f"dim: {dim} is not divisible by 4 and by num_heads = {num_heads}")
        # 1. Tokens
        self.latent_embed = nn.Conv2d(latent_channels, dim, patch_size, stride=patch_size)
        shown = content_channels + num_references * (content_channels + 1)
        self.content_embed = nn.Conv2d(shown, dim, content_patch_size, stride=content_patch_size)
        self.plane_embedding = nn.Parameter(torch.zeros(2, dim))  # tells rows (z_x) from columns (z_y)
        # 2. Conditions
        self.time_embed = TimestepEmbedder(dim)
        self.class_embed = nn.Embedding(num_classes + 1, dim) if num_classes else None
        self.text_embed = nn.Linear(text_dim, dim) if text_dim else None
        # 3. Blocks
        self.blocks = nn.ModuleList(AdaLNZeroBlock(dim, num_heads) for _ in range(num_layers))
        # 4. Output
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.proj_out = nn.Linear(dim, patch_size**2 * latent_channels)
        self.gradient_checkpointing = False
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        for module in self.modules():  # Xavier for every linear and patch layer, as in DiT
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.plane_embedding, std=0.02)
        for layer in (self.time_embed.mlp.linear_1, self.time_embed.mlp.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
        if self.class_embed is not None:
            nn.init.normal_(self.class_embed.weight, std=0.02)
        # adaLN-Zero: each block is the identity and the whole model outputs zero
        modulations = [block.get_submodule("modulation.1") for block in self.blocks]
        for layer in (*modulations, self.modulation_out[1], self.proj_out):
            zero_init(layer)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        content_frame: torch.Tensor,
        pooled_text: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> CMDMotionTransformerOutput | tuple[torch.Tensor]:
        """Predict what the scheduler's prediction type says, for noisy motion latents.

        Args:
            hidden_states: (B, D, F, H' + W'), normalised and noised.
            timestep: diffusion time in 0..999, (B,), or (B, F / patch_size), of each patch of frames its own (FVDM,
                arXiv 2410.03160); the content frame's tokens then have the largest.
            content_frame: (B, C + R (C + 1), H, W), in the same scale as in training.
            pooled_text: (B, text_dim); needed when the model has a text condition.
            class_labels: (B,) integers in 0..num_classes; needed when the model has a class condition.
            return_dict: return a `CMDMotionTransformerOutput` instead of a tuple.

        Returns:
            `sample` (B, D, F, H' + W').

        Raises:
            ValueError: a condition is missing or not known to this model, or a size does not fit.
        """
        self.check_inputs(hidden_states, content_frame, pooled_text, class_labels)
        if timestep.ndim == 2 and timestep.shape[1] != hidden_states.shape[2] // self.config.patch_size:
            raise ValueError(f"timestep: {timestep.shape[1]} in a row, {hidden_states.shape[2]} frames have "
                             f"{hidden_states.shape[2] // self.config.patch_size}")  # fmt: skip
        condition = self.embed_condition(timestep, pooled_text, class_labels)  # (B, dim), or (B, K, dim)
        fixed_tokens = self.embed_content_frame(hidden_states, content_frame)  # (B, S_z + S_c, dim)
        x = self.embed_latents(hidden_states, fixed_tokens)  # (B, S_z + S_c, dim)
        x = self.run(self.blocks, x, condition, self.slots(condition, hidden_states, x))  # (B, S_z + S_c, dim)
        sample = self.project(x, condition, hidden_states)  # (B, D, F, H' + W')
        return CMDMotionTransformerOutput(sample) if return_dict else (sample,)

    def embed_condition(
        self, timestep: torch.Tensor, pooled_text: torch.Tensor | None, class_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Diffusion time (B,), text and class as one vector (B, dim) for adaLN; of times (B, K - 1) as (B, K, dim)."""
        each = timestep.ndim == 2
        if each:
            timestep = torch.cat([timestep, timestep.amax(dim=1, keepdim=True)], dim=1)  # (B, K)
        condition = self.time_embed(timestep.flatten(), self.proj_out.weight.dtype)  # (B, dim), or (B K, dim)
        condition = condition.unflatten(0, timestep.shape)  # (B, dim), or (B, K, dim)
        if self.text_embed is not None:
            text = self.text_embed(pooled_text)  # (B, dim)
            condition = condition + (text[:, None] if each else text)
        if self.class_embed is not None:
            label = self.class_embed(class_labels)  # (B, dim)
            condition = condition + (label[:, None] if each else label)
        return condition

    def slots(self, condition: torch.Tensor, hidden_states: torch.Tensor, x: torch.Tensor) -> torch.Tensor | None:
        """Which of the K rows of `condition` each token of x (B, S, dim) has: (S,); None where it is (B, dim)."""
        if condition.ndim == 2:
            return None
        patch, (frames, places) = self.config.patch_size, hidden_states.shape[2:]
        of_latents = torch.arange(frames // patch, device=x.device).repeat_interleave(places // patch)  # (S_z,)
        of_content = of_latents.new_full((x.shape[1] - len(of_latents),), frames // patch)  # (S_c,)
        return torch.cat([of_latents, of_content])

    def embed_content_frame(self, hidden_states: torch.Tensor, content_frame: torch.Tensor) -> torch.Tensor:
        """What is the same at every denoising step of a clip: positions of the latents (only the shape of
        `hidden_states` counts), then the content frame's tokens with theirs, (B, S_z + S_c, dim).
        """
        content_tokens = self.content_embed(content_frame).flatten(2).transpose(1, 2)  # (B, S_c, dim)
        positions = self._positions(hidden_states, content_frame).to(content_tokens.dtype)  # (S_z + S_c, dim)
        of_latents, of_content = positions.split(
            [len(positions) - content_tokens.shape[1], content_tokens.shape[1]]
        )  # (S_z, dim), (S_c, dim)
        return torch.cat([of_latents.expand(len(content_tokens), -1, -1), content_tokens + of_content], dim=1)

    def embed_latents(self, hidden_states: torch.Tensor, fixed_tokens: torch.Tensor) -> torch.Tensor:
        """Patches of the latents on their positions, before the content frame's tokens: (B, S_z + S_c, dim)."""
        tokens = self.latent_embed(hidden_states).flatten(2).transpose(1, 2)  # (B, S_z, dim)
        positions, content_tokens = fixed_tokens.split(
            [tokens.shape[1], fixed_tokens.shape[1] - tokens.shape[1]], dim=1
        )  # (B, S_z, dim), (B, S_c, dim)
        return torch.cat([tokens + positions, content_tokens], dim=1)

    def run(
        self, blocks: nn.ModuleList, x: torch.Tensor, condition: torch.Tensor, slots: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Some of the blocks: (B, S, dim) -> (B, S, dim)."""
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, condition, slots, use_reentrant=False)
            else:
                x = block(x, condition, slots)
        return x

    def project(self, x: torch.Tensor, condition: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Tokens (B, S_z + S_c, dim) -> the prediction, of the shape of `like` (B, D, F, H' + W')."""
        patch, (batch, channels, frames, places) = self.config.patch_size, like.shape
        count = (frames // patch) * (places // patch)  # S_z
        slots = self.slots(condition, like, x)
        modulation = per_token(self.modulation_out(condition), None if slots is None else slots[:count])
        shift, scale = modulation.chunk(2, dim=-1)  # (B, 1 or S_z, dim) each
        x = self.proj_out(modulate(self.norm_out(x[:, :count]), shift, scale))  # (B, S_z, p*p*D)
        x = x.view(batch, frames // patch, places // patch, patch, patch, channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, frames, places)

    def _positions(self, hidden_states: torch.Tensor, content_frame: torch.Tensor) -> torch.Tensor:
        """Positions (S_z + S_c, dim): (frame, place in its plane) of latents, (row, column) of the content frame."""
        device, dim = hidden_states.device, self.config.dim
        height, width = (side // self.config.autoencoder_patch_size for side in content_frame.shape[-2:])
        patch, content_patch = self.config.patch_size, self.config.content_patch_size
        frames = torch.arange(hidden_states.shape[2] // patch, device=device)
        places = torch.cat([torch.arange(side // patch, device=device) for side in (height, width)])
        planes = torch.cat([torch.full((side // patch,), i, device=device) for i, side in enumerate((height, width))])
        grid = torch.meshgrid(frames, torch.arange(len(places), device=device), indexing="ij")
        time, place = (axis.flatten() for axis in grid)
        latent_table = sincos_table(time, places[place], dim) + self.plane_embedding[planes[place]]
        grid = torch.meshgrid(
            *(torch.arange(side // content_patch, device=device) for side in content_frame.shape[-2:]), indexing="ij"
        )
        return torch.cat([latent_table, sincos_table(grid[0].flatten(), grid[1].flatten(), dim)])

    def check_inputs(
        self,
        hidden_states: torch.Tensor,
        content_frame: torch.Tensor,
        pooled_text: torch.Tensor | None,
        class_labels: torch.Tensor | None,
    ) -> None:
        """Raise a ValueError if an argument of `forward` does not fit."""
        for name, given, known in (
            ("pooled_text", pooled_text, self.text_embed),
            ("class_labels", class_labels, self.class_embed),
        ):
            if (given is None) != (known is None):
                raise ValueError(
                    f"{name}: {'missing' if given is None else 'given'}, but the model has "
                    f"{'such' if known is not None else 'no such'} a condition"
                )
        height, width = (side // self.config.autoencoder_patch_size for side in content_frame.shape[-2:])
        if hidden_states.shape[-1] != height + width:
            raise ValueError(f"hidden_states: width {hidden_states.shape[-1]} is not H' + W' = {height} + {width}")
        for name, side, patch in (
            ("frames", hidden_states.shape[2], self.config.patch_size),
            ("H'", height, self.config.patch_size),
            ("W'", width, self.config.patch_size),
            ("content height", content_frame.shape[-2], self.config.content_patch_size),
            ("content width", content_frame.shape[-1], self.config.content_patch_size),
        ):
            if side % patch:
                raise ValueError(f"{name}: {side} is not divisible by its patch size {patch}")
