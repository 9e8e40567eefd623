"""Loads the frozen image encoder of a name: the embedded one, or one of timm's with weights from the Hub."""

from typing import Any

import torch
from safetensors.torch import load_file

from adapter.base import embedded, memory
from adapter.errors import LoadError, first_line
from adapter.method.vision import VisualEncoder


def load_encoder(name: str = embedded.ENCODER, device: torch.device | str = "cpu") -> VisualEncoder:
    """The encoder `name` on `device`. Raises LoadError if it is not known, not here or too large for memory."""
    import timm

    if name != embedded.ENCODER:
        return VisualEncoder(name, _load_from_hub(name), device)
    model = timm.create_model(embedded.ENCODER, pretrained=False)
    model.load_state_dict(load_file(embedded.encoder_weights()))
    return VisualEncoder(name, model, device)


def _load_from_hub(name: str) -> Any:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise LoadError(
            f"timm {timm.__version__} knows no encoder '{name}'. Choose one that `timm.list_models()` names, "
            f"or {embedded.ENCODER}."
        )
    try:
        with torch.device("meta"):  # timm has encoders of 0.02 and of 27 GB
            sizes = [tensor.nbytes for tensor in timm.create_model(name, pretrained=False).state_dict().values()]
        needed, free = 2 * sum(sizes), memory.free_bytes("cpu")  # the model, and the file that is read into it
        if needed <= free:
            return timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client, the network or the cache raise
        raise LoadError(
            f"The weights of encoder '{name}' cannot be loaded: they are neither here nor to be had from the Hub. "
            f"Start again with a network, or use an adapter that reads images with {embedded.ENCODER}.",
            first_line(error),
        ) from error
    raise LoadError(
        f"Encoder '{name}' takes {needed / 1e9:.1f} GB of memory to load, and {free / 1e9:.1f} GB are free. "
        f"Use an adapter that reads images with {embedded.ENCODER}."
    )
