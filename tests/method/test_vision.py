"""The frozen encoder, on real pictures too."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from adapter.base import encoder as base_encoder
from adapter.base.encoder import load_encoder
from adapter.formats.official_v2 import ENCODER
from adapter.method import vision
from adapter.method.config import TuningConfig, VisionConfig
from adapter.method.vision import VisualEncoder, VisualFeatures
from adapter.serve.prompts import PromptKVBuilder
from tests.tiny_models import random_adapter


@pytest.fixture
def unlearned(monkeypatch) -> Callable[[str], VisualEncoder]:
    """Encoders by timm's names, with random weights instead of a download."""

    def load(name):
        torch.manual_seed(0)
        return timm.create_model(name, pretrained=False)

    monkeypatch.setattr(base_encoder, "_load_from_hub", load)
    return load_encoder


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (50, 60, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "name, tokens, size",
    [
        ("vit_tiny_patch16_224", 1 + 14 * 14, 192),  # the class token is one of them
        ("swin_tiny_patch4_window7_224", 7 * 7, 768 + vision._POSITION_SIZE),  # its maps have the channels last
    ],
)
def test_tokens_are_the_last_features_in_order_of_position(unlearned, name, tokens, size):
    encoder = unlearned(name)
    images = [noise(0), noise(1)]
    got = encoder.encode(images, tokens=True)
    assert got.tokens.shape == (2, tokens, size) and encoder.token_size == size
    plain = encoder.encode(images)
    assert plain.tokens is None and torch.equal(plain.levels, got.levels)
    alone = encoder.encode(images[1:], tokens=True)
    torch.testing.assert_close(alone.tokens[0], got.tokens[1], rtol=1e-4, atol=1e-4)
    # What the classifier reads, the last level: the class token, or the mean over a map.
    if name.startswith("vit"):
        torch.testing.assert_close(got.tokens[:, 0], got.levels[:, -size:])
    elif name.startswith("swin"):
        torch.testing.assert_close(got.tokens[:, :, :768].mean(1), got.levels[:, -768:])


def test_a_fingerprint_changes_with_the_weights(unlearned):
    encoder = unlearned("mobilenetv3_small_050")
    before = encoder.fingerprint()
    next(encoder._model.parameters()).view(-1)[0] += 1e-3
    assert encoder.fingerprint() != before


def test_clip_encodes_as_in_the_v2_release():
    """ViT-L/14 without numbers: 257 tokens of the width that official projections expect."""
    with torch.device("meta"):
        model = timm.create_model(ENCODER, pretrained=False)
    got = VisualEncoder(ENCODER, model, "meta").encode([noise(0)], tokens=True, projected=True, channels="BGR")
    assert got.tokens.shape == (1, 257, 768)


def test_tokens_of_a_vision_transformer_reach_an_adapter(unlearned, monkeypatch, tiny_base, tiny_fingerprint):
    """From the picture to prompts; what one adapter's way of looking found is not another's."""
    name = "vit_tiny_patch16_224"
    config = VisionConfig(encoder=name, projection="queries", token_size=192, width=12, blocks=1, heads=3)
    kinds = [
        config,
        replace(config, channels="BGR"),
        VisionConfig(name, feature_size=unlearned(name).feature_size),
    ]
    adapters = [random_adapter(tiny_fingerprint, vision=kind) for kind in kinds]
    adapters[1].load_state_dict(adapters[0].state_dict())
    asked, real = [], VisualEncoder.encode

    def counted(self, images, **how):
        asked.append((how["tokens"], how.get("channels")))
        return real(self, images, **how)

    builder = PromptKVBuilder(tiny_base)
    builder._encoders.compute(name, lambda: unlearned(name))
    monkeypatch.setattr(VisualEncoder, "encode", counted)
    image = noise(0)
    entries = [builder.build([(a, 1.0)], image).mixed() for a in (*adapters, *adapters)]
    assert asked == [(True, "RGB"), (True, "BGR"), (False, "RGB")]
    keys = [entry.layers[3][0].keys for entry in entries]
    assert not torch.allclose(keys[0], keys[1], atol=1e-3)
    want = adapters[0](tiny_base.model, real(unlearned(name), [image], tokens=True)).layers[3][0].keys
    torch.testing.assert_close(keys[0][:, :, : want.shape[2]], want)


def test_in_a_mix_with_a_text_adapter_only_what_the_picture_changes_is_left(tiny_base, tiny_fingerprint):
    """The terms of a blank picture are taken off as far as the text adapter takes part, and not without it."""

    class Encoder:
        def encode(self, images, **_):
            return VisualFeatures(torch.tensor([[float(x) for x in images[0].getpixel((0, 0))]]) / 100)

    vision = VisionConfig(encoder="any", feature_size=3, hidden=5)
    tuning = TuningConfig(64, norms=True, lora_rank=2)
    see = random_adapter(tiny_fingerprint, spread=1.0, vision=vision, tuning=tuning)
    voice = random_adapter(tiny_fingerprint, 2)
    builder, image = PromptKVBuilder(tiny_base, {"any": Encoder()}), Image.new("RGB", (9, 9), "red")

    def terms(adapters, shown=image):
        mixed = builder.build(adapters, shown).mixed()
        return mixed.layers[3], mixed.deltas

    with torch.inference_mode():
        blank = see(tiny_base.model, Encoder().encode([Image.new("RGB", (9, 9), (128, 128, 128))])).layers[3][0]
    for strength, taken in ((0.4, 0.4), (1.5, 1.0)):
        (shown, text, off), deltas = terms([(see, 0.5), (voice, strength)])
        (alone,), whole = terms([(see, 0.5)])
        assert torch.equal(shown.keys, alone.keys)
        blind, alone_blind = (terms([(see, 0.5), *more], None)[0][0] for more in ([(voice, strength)], []))
        torch.testing.assert_close(blind.gates, (1 - taken) * alone_blind.gates)  # blind, it changes nothing
        assert torch.equal(text.gates, terms([(voice, strength)])[0][0].gates)
        assert torch.equal(off.keys, blank.keys) and not torch.equal(off.keys, shown.keys)
        torch.testing.assert_close(off.gates, blank.gates * -0.5 * taken)
        if taken == 1:
            assert deltas is None
        else:
            torch.testing.assert_close(deltas.norms[3, "mlp_norm"], whole.norms[3, "mlp_norm"] * (1 - taken))
    assert len(terms([(see, 0.5)])[0]) == 1
