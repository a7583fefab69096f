"""CMD's pipeline and what it shares with training: text features and the space of content frames."""

from .pipeline_cmd import CMDPipeline
from .pipeline_output import CMDPipelineOutput

__all__ = ["CMDPipeline", "CMDPipelineOutput"]
