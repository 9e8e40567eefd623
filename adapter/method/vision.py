"""RGB images -> features of the frozen encoder (I_m of equation 9, arXiv 2303.16199)."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adapter.errors import LoadError

_STAGES = 5  # levels taken from an encoder that has more
_POSITION_SIZE = 64  # size of the position encoding of a feature map's cells
_MAX_ASPECT_RATIO = 1.6  # longer pictures are squeezed to this
_VERSION = 1  # of what a picture becomes in here and in `image_file`: raise it when that changes


@dataclass(frozen=True)
class VisualFeatures:
    """The frozen encoder's features of B images.

    levels: [B, feature_size], the mean over space of up to 5 stages' features, one stage after the other, and at
    the end the features that its classifier reads. logits: [B, num_classes] of that classifier,
    None for an encoder without one. tokens: [B, N, token_size], its last features place by place, each with its
    place in it; None where nobody asked for them.
    """

    levels: Tensor
    logits: Tensor | None = None
    tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, rows: slice | Tensor) -> VisualFeatures:
        return self.map(lambda t: t[rows])

    def to(self, *args: Any, **kwargs: Any) -> VisualFeatures:
        return self.map(lambda t: t.to(*args, **kwargs))

    def map(self, change: Callable[[Tensor], Tensor]) -> VisualFeatures:
        values = (getattr(self, f.name) for f in fields(self))
        changed: list[Any] = [None if value is None else change(value) for value in values]
        return VisualFeatures(*changed)

    @staticmethod
    def cat(parts: Sequence[VisualFeatures]) -> VisualFeatures:
        """The images of all parts, in order, from one encoder. A field that one part lacks is None."""
        columns = ([getattr(part, f.name) for part in parts] for f in fields(VisualFeatures))
        joined: list[Any] = [None if any(v is None for v in column) else torch.cat(column) for column in columns]
        return VisualFeatures(*joined)


class VisualEncoder:
    """A frozen timm model with its own picture transform. Safe to share between threads."""

    def __init__(self, name: str, model: Any, device: torch.device | str = "cpu") -> None:
        """model: timm's, with its weights."""
        from timm.data import resolve_model_data_config
        from timm.data.transforms import str_to_pil_interp

        self.name = name
        self._model = model.requires_grad_(False).eval().to(device)
        self._dtype = torch.float32
        classifier = model.get_classifier()
        self._classifier = classifier if isinstance(classifier, torch.nn.Linear) else None
        data = resolve_model_data_config(model)
        self._size: tuple[int, int] = data["input_size"][-2:]
        self._resample = str_to_pil_interp(data["interpolation"])
        self._crop: float = data["crop_pct"]
        self._mean = torch.tensor(data["mean"]).view(1, 3, 1, 1)
        self._std = torch.tensor(data["std"]).view(1, 3, 1, 1)
        stages = len(getattr(model, "feature_info", None) or ()) or 1
        step = stages / min(stages, _STAGES)
        self._stages = [round((i + 1) * step) - 1 for i in range(min(stages, _STAGES))]
        probe = self.encode([Image.new("RGB", (8, 8))], tokens=True)
        assert probe.tokens is not None
        self.feature_size = probe.levels.shape[1]
        self.token_size = probe.tokens.shape[2]
        self.num_classes = 0 if probe.logits is None else probe.logits.shape[1]

    def to(self, device: torch.device | str) -> VisualEncoder:
        """Move to a device, in place, as torch.nn.Module.to."""
        self._model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self._model.parameters()).device

    def compute_in(self, dtype: torch.dtype) -> None:
        """Computes the products of a transformer in `dtype` from now on, in place; sums and norms stay in fp32.

        A convolutional network stays in fp32: in bf16 its features point elsewhere (cosine 0.98, not 0.9999).
        """
        modules = list(self._model.modules())
        convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in modules)
        if convolutions <= 1:  # the one that cuts the picture into patches
            self._dtype = dtype
            for module in modules:
                if isinstance(module, torch.nn.Linear):
                    module.to(dtype)  # else autocast converts the weights anew for every batch

    def fingerprint(self) -> str:
        """Changes with whatever features depend on beside the picture and the arguments of `encode`.

        Reads all weights: a second for a gigabyte. On a CPU and on a GPU it differs, as features do.
        """
        transform = (self._size, self._crop, self._resample, self._mean.tolist(), self._std.tolist(), self._stages)
        digest = hashlib.sha256(repr((_VERSION, self.device.type, self._dtype, *transform)).encode())
        for name, tensor in self._model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[Image.Image],
        batch_size: int = 32,
        *,
        tokens: bool = False,
        projected: bool = False,
        channels: str = "RGB",
    ) -> VisualFeatures:
        """Features of RGB pictures, as `open_image` gives them, in fp32 on the encoder's device.

        tokens: keep the encoder's tokens too. projected, channels: as in VisionConfig. Raises LoadError if tokens
        cannot pass the encoder's head.
        """
        if len(images) > batch_size:
            options: dict[str, Any] = {"tokens": tokens, "projected": projected, "channels": channels}
            chunks = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
            return VisualFeatures.cat([self.encode(chunk, batch_size, **options) for chunk in chunks])
        pixels = torch.stack([torch.from_numpy(np.array(self._resize_and_crop(image))) for image in images])
        if channels == "BGR":
            pixels = pixels.flip(3)  # and not mean and std: releases trained on BGR took it for RGB
        batch = (pixels.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std  # [B, 3, H, W]
        whole = self._dtype == torch.float32
        with contextlib.nullcontext() if whole else torch.autocast(self.device.type, self._dtype):
            final, stages = self._model.forward_intermediates(batch.to(self.device), indices=self._stages)
            pooled = self._model.forward_head(final, pre_logits=True)  # [B, last level]
            levels = torch.cat([*(s.flatten(2).float().mean(2) for s in stages), pooled.float()], dim=1)
            logits = self._classifier(pooled) if self._classifier is not None else None
            features = VisualFeatures(levels, logits, self._tokens(final, projected) if tokens else None)
        return features.to(torch.float32)

    @property
    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weight [num_classes, last level] and bias of the linear classifier, on the CPU. Raises LoadError."""
        layer = self._classifier
        if layer is None:
            raise LoadError(f"Encoder '{self.name}' has no linear classifier. Use projection 'global' with it.")
        return layer.weight.cpu(), layer.bias.cpu()

    def _tokens(self, final: Tensor, projected: bool) -> Tensor:
        """[B, N, token_size] of the last features: a transformer's tokens as they are, a map's positions in order.

        What a map holds at a position says nothing of where that is, and so its place is put beside it.
        """
        if projected:
            if self._classifier is None or final.ndim != 3:
                raise LoadError(f"Encoder '{self.name}' has no head that its tokens could pass.")
            return self._classifier(final)
        if final.ndim == 3:
            return final
        if getattr(self._model, "output_fmt", "NCHW") != "NHWC":
            final = final.permute(0, 2, 3, 1)  # [B, H, W, C]
        positions = _position_encoding(final.shape[1], final.shape[2]).to(final)
        return torch.cat([final, positions.expand(len(final), -1, -1, -1)], dim=3).flatten(1, 2)

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        """Resize and centre-crop to the encoder's input size, as in its evaluation."""
        width, height = image.size
        # A long picture would lose most of its area to the crop, so it is squeezed first.
        shape = min(max(width / height, 1 / _MAX_ASPECT_RATIO), _MAX_ASPECT_RATIO)
        scale = 1 / self._crop
        target_h, target_w = self._size
        full_w, full_h = target_w * scale, target_h * scale
        if shape > full_w / full_h:
            full_w = full_h * shape
        else:
            full_h = full_w / shape
        left, top = (full_w - target_w) / 2, (full_h - target_h) / 2
        box = (
            left / full_w * width,
            top / full_h * height,
            (left + target_w) / full_w * width,
            (top + target_h) / full_h * height,
        )
        return image.convert("RGB").resize((target_w, target_h), self._resample, box=box, reducing_gap=3.0)


def _position_encoding(rows: int, columns: int) -> Tensor:
    """Sinusoidal position encoding of the cells of a feature map, [rows, columns, _POSITION_SIZE].

    From half a wave over the whole picture to half a wave a cell, finer than which no cell can tell.
    """
    axes = []
    for cells in (rows, columns):
        waves = torch.pi * cells ** torch.linspace(0, 1, _POSITION_SIZE // 4)
        angles = (torch.arange(cells) + 0.5)[:, None] / cells * waves
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=1))  # [cells, _POSITION_SIZE / 2]
    down, along = axes
    return torch.cat([down[:, None].expand(-1, columns, -1), along[None].expand(rows, -1, -1)], dim=2)
