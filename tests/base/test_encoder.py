"""An encoder that is not here, or that does not fit, is refused with a sentence; the process goes on."""

from __future__ import annotations

import pytest
import timm

from adapter.base import encoder, memory
from adapter.base.encoder import load_encoder
from adapter.base.memory import DeviceMemory
from adapter.errors import LoadError, with_detail

create = timm.create_model


def test_an_encoder_that_does_not_fit_is_refused_before_its_weights_are_fetched(monkeypatch):
    def created(name, pretrained):
        assert not pretrained, "fetched"
        return create(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", created)
    monkeypatch.setattr(memory, "ram", lambda: DeviceMemory(16 * 10**9, 8 * 10**9))
    with pytest.raises(LoadError, match=r"'vit_giant_patch14_dinov2' takes 9\.1 GB of memory to load"):
        load_encoder("vit_giant_patch14_dinov2")


def test_an_encoder_that_fits_is_loaded(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    assert load_encoder("resnet10t").num_classes == 1000


def test_a_failure_names_the_encoder_and_not_the_machine(monkeypatch):
    def created(name, pretrained):
        if pretrained:
            raise OSError(13, "Permission denied", "/srv/secret/cache")
        return create(name, pretrained=False)

    monkeypatch.setattr(timm, "create_model", created)
    with pytest.raises(LoadError, match="'resnet10t' cannot be loaded") as caught:
        encoder.load_encoder("resnet10t")
    assert "Permission" not in str(caught.value) and "/srv" not in str(caught.value)
    assert "/srv/secret/cache" in with_detail(caught.value), "whoever runs the server finds the cause"
