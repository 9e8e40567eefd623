"""An encoder that is not here, or that does not fit, is refused with a sentence; the process goes on."""

import pytest
import timm

from adapter.base import memory
from adapter.base.encoder import load_encoder
from adapter.errors import LoadError


def test_an_encoder_that_does_not_fit_is_refused_before_its_weights_are_fetched(monkeypatch):
    create = timm.create_model

    def created(name, pretrained):
        assert not pretrained, "fetched"
        return create(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", created)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 8 * 10**9)
    with pytest.raises(LoadError, match=r"'vit_giant_patch14_dinov2' takes 9\.1 GB of memory to load"):
        load_encoder("vit_giant_patch14_dinov2")
