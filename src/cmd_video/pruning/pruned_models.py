"""Pruned models as ordinary components: classes whose configuration says which blocks they lack.

student = PrunedUNet2DConditionModel.from_teacher(unet, select_by_rule(unet))
student.save_pretrained(folder);  PrunedUNet2DConditionModel.from_pretrained(folder)      # bit-equal
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import diffusers
import torch
from diffusers import ConfigMixin, ModelMixin

from cmd_video.models import CMDAutoencoder, CMDMotionTransformer, CMDWarpAutoencoder, VideoCrafterUNet

from .blocks import block_modules, parameter_names, remove_blocks
from .channels import cut, kept_channels, narrow
from .selection import BlockSelection

Pruned = TypeVar("Pruned", bound="PrunedMixin")


class PrunedMixin(ModelMixin, ConfigMixin):
    """Before a diffusers model class: adds `removed_blocks` to its constructor and its configuration.

    Classes with `narrows` also get `widths`, shares of the channels of their decoder's stages.
    """

    narrows: ClassVar[bool] = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if PrunedMixin not in cls.__bases__:  # of a pruned class, as `fully_shard` makes one
            return
        teacher = cls.teacher_class()

        def __init__(
            self: Any, *, removed_blocks: Sequence[str] = (), widths: Mapping[str, float] | None = None, **config: Any
        ) -> None:
            teacher.__init__(self, **config)
            self.register_to_config(removed_blocks=list(removed_blocks))
            remove_blocks(self, removed_blocks)
            if cls.narrows:
                self.register_to_config(widths=dict(widths or {}))
                narrow(self, widths or {})
            elif widths:
                raise ValueError(f"selection: widths: {teacher.__name__} keeps its channels; decoders can lose some")

        original = inspect.signature(teacher.__init__)
        extra = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in (("removed_blocks", ()), *([("widths", None)] if cls.narrows else []))
        ]
        __init__.__signature__ = original.replace(parameters=[*original.parameters.values(), *extra])  # type: ignore[attr-defined]
        cls.__init__ = __init__  # type: ignore[method-assign]

    @classmethod
    def teacher_class(cls) -> Any:
        """The class that this one is a pruned form of."""
        models = (base for base in cls.__mro__[1:] if issubclass(base, ModelMixin))
        return next(base for base in models if not issubclass(base, PrunedMixin))

    @classmethod
    def from_teacher(cls: type[Pruned], teacher: Any, selection: BlockSelection) -> Pruned:
        """A student with the teacher's weights, without the selected blocks.

        Args:
            teacher: a model of `teacher_class`, or of this class, for a second round.
            selection: what leaves, by the teacher's names; the student's configuration has those of `teacher_class`.

        Raises:
            ValueError: the teacher is of another class, or the selection does not fit it.
        """
        expected = cls.teacher_class()
        if type(teacher) not in (expected, cls):
            raise ValueError(f"teacher: expected a {expected.__name__}, got a {type(teacher).__name__}")
        if selection.model_class != type(teacher).__name__:
            raise ValueError(
                f"selection: it is for {selection.model_class}, the teacher is a {type(teacher).__name__}"
            )
        earlier, widths = teacher.config.get("removed_blocks", ()), teacher.config.get("widths") or {}
        if widths and selection.widths:
            raise ValueError("selection: widths: the teacher has lost channels already; give its own teacher")
        known = inspect.signature(expected.__init__).parameters
        config = {name: value for name, value in teacher.config.items() if name in known}
        with torch.device("meta"):
            shapes = expected(**config)
            first_names = {module: name for name, module in block_modules(shapes).items()}
            remove_blocks(shapes, earlier)
            present = block_modules(shapes)
            names = parameter_names(shapes, selection.removed)
            removed = [*earlier, *(first_names[present[name]] for name in selection.removed)]
            student = cls(removed_blocks=removed, widths=widths or selection.widths, **config)
        before = dict([*teacher.named_parameters(), *teacher.named_buffers()])
        tensors = {new: before[old] for new, old in names.items()}
        kept = kept_channels(shapes, selection.widths, tensors) if selection.widths else {}
        for name, tensor in tensors.items():
            parent, _, leaf = name.rpartition(".")
            module = student.get_submodule(parent) if parent else student
            copy = cut(tensor.detach(), kept.get(name, {})).clone()
            if isinstance(tensor, torch.nn.Parameter):
                module._parameters[leaf] = torch.nn.Parameter(copy, tensor.requires_grad)
            else:
                module._buffers[leaf] = copy
        return student.train(teacher.training)


class PrunedUNet2DConditionModel(PrunedMixin, diffusers.UNet2DConditionModel):
    """Image UNets: Stable Diffusion, CMD's content model."""


class PrunedUNet3DConditionModel(PrunedMixin, diffusers.UNet3DConditionModel):
    """ModelScope and its layout."""


class PrunedVideoCrafterUNet(PrunedMixin, VideoCrafterUNet):
    """VideoCrafter2, T2V-Turbo."""


class PrunedUNetSpatioTemporalConditionModel(PrunedMixin, diffusers.UNetSpatioTemporalConditionModel):
    """Stable Video Diffusion, SF-V."""


class PrunedUNetMotionModel(PrunedMixin, diffusers.UNetMotionModel):
    """AnimateDiff."""


class PrunedHunyuanVideoTransformer3DModel(PrunedMixin, diffusers.HunyuanVideoTransformer3DModel):
    """HunyuanVideo."""


class PrunedWanTransformer3DModel(PrunedMixin, diffusers.WanTransformer3DModel):
    """Wan 2.1."""


class PrunedLTXVideoTransformer3DModel(PrunedMixin, diffusers.LTXVideoTransformer3DModel):
    """LTX-Video."""


class PrunedCMDMotionTransformer(PrunedMixin, CMDMotionTransformer):
    """CMD's motion model."""


class PrunedCMDAutoencoder(PrunedMixin, CMDAutoencoder):
    """CMD's autoencoder."""


class PrunedCMDWarpAutoencoder(PrunedMixin, CMDWarpAutoencoder):
    """CMD's autoencoder as small models have it."""


class PrunedAutoencoderKL(PrunedMixin, diffusers.AutoencoderKL):
    """Image autoencoders: the decoder's middle, residual blocks and channels."""

    narrows = True


class PrunedAutoencoderKLTemporalDecoder(PrunedMixin, diffusers.AutoencoderKLTemporalDecoder):
    """Stable Video Diffusion's autoencoder."""

    narrows = True


PRUNED_CLASSES: dict[str, type[PrunedMixin]] = {
    cls.teacher_class().__name__: cls for cls in PrunedMixin.__subclasses__()
}


def prune(teacher: Any, selection: BlockSelection) -> Any:
    """`from_teacher` of the class that fits.

    Raises:
        ValueError: models of this class cannot be pruned.
    """
    check_prunable(teacher)
    kind = type(teacher) if isinstance(teacher, PrunedMixin) else PRUNED_CLASSES[type(teacher).__name__]
    return kind.from_teacher(teacher, selection)


def check_prunable(model: Any) -> None:
    """Raise ValueError unless there is a pruned class for a model."""
    name = type(model).__name__
    if name not in PRUNED_CLASSES and not isinstance(model, PrunedMixin):
        raise ValueError(f"model: {name} cannot be pruned; known are {', '.join(PRUNED_CLASSES)}")
