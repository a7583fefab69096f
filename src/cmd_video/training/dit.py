"""First weights of diffusers' DiT, for training from scratch: those of the paper (arXiv 2212.09748, section 3.2).

initialize_dit(DiTTransformer2DModel(...))

diffusers leaves torch's own, since it loads what was trained elsewhere.
"""

from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding, TimestepEmbedding
from torch import nn

from cmd_video.models.layers import zero_init

STD = 0.02


def initialize_dit(model: DiTTransformer2DModel) -> None:
    """adaLN-Zero: each block begins as the identity and the whole model says zero. Linear layers are Xavier's."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, TimestepEmbedding):
            nn.init.normal_(module.linear_1.weight, std=STD)
            nn.init.normal_(module.linear_2.weight, std=STD)
        elif isinstance(module, LabelEmbedding):
            nn.init.normal_(module.embedding_table.weight, std=STD)
    for block in model.transformer_blocks:
        zero_init(block.norm1.linear)
    zero_init(model.proj_out_1)
    zero_init(model.proj_out_2)
