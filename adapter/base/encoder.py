"""The frozen image encoder that a name means: the embedded one, or one of timm's with weights from the Hub.

Knows timm's names and where weights are; what an encoder computes is `adapter.method.vision`.
"""

from __future__ import annotations

from typing import Any

import torch

from adapter.base import embedded
from adapter.errors import LoadError, first_line
from adapter.method.vision import VisualEncoder


def load_encoder(name: str = embedded.ENCODER, device: torch.device | str = "cpu") -> VisualEncoder:
    """The encoder `name` on `device`. Raises LoadError if timm does not know it or its weights cannot be had."""
    return VisualEncoder(name, _load_embedded() if name == embedded.ENCODER else _load_from_hub(name), device)


def _load_embedded() -> Any:
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(embedded.ENCODER, pretrained=False)
    model.load_state_dict(load_file(embedded.encoder_weights()))
    return model


def _load_from_hub(name: str) -> Any:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise LoadError(
            f"timm {timm.__version__} knows no encoder '{name}'. Choose one that `timm.list_models()` names, "
            f"or {embedded.ENCODER}."
        )
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client, the network or the cache raise
        raise LoadError(
            f"The weights of encoder '{name}' cannot be loaded ({first_line(error)[:100]}). "
            f"Start again with a network, or use an adapter that reads images with {embedded.ENCODER}."
        ) from error
