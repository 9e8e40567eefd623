"""Pictures of every kind, and the frozen encoder on real ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from adapter.errors import BadInput, LoadError
from adapter.vision import VisualEncoder, VisualFeatures, open_image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right, 40 x 20."""
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    return image.convert(mode)


@pytest.mark.parametrize(
    "kind, mode", [("PNG", "RGB"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "P"), ("WEBP", "RGB")]
)
def test_colours_survive_every_format_and_mode(kind, mode):
    image = open_image(encoded(halves(mode), kind))
    assert (image.mode, image.size) == ("RGB", (40, 20))
    left, right = image.getpixel((4, 10)), image.getpixel((35, 10))
    assert left[0] > 200 > left[2] + 100 and right[2] > 200 > right[0] + 100


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.putpixel((5, 5), (10, 20, 30, 255))
    got = open_image(encoded(image))
    assert got.getpixel((0, 0)) == (255, 255, 255) and got.getpixel((5, 5)) == (10, 20, 30)


def test_sixteen_bits_are_scaled():
    ramp = np.linspace(0, 65535, 100, dtype=np.uint16).reshape(1, 100).repeat(4, 0)
    got = np.asarray(open_image(encoded(Image.fromarray(ramp))))[0, :, 0]
    assert got[0] == 0 and got[-1] == 255 and 120 < got[50] < 136


def test_exif_turns_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    got = open_image(encoded(halves(), "JPEG", exif=exif))
    assert got.size == (20, 40)
    assert got.getpixel((10, 3))[0] > 200 and got.getpixel((10, 36))[2] > 200


def test_an_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((4, 4)) == (255, 0, 0)


def test_what_is_no_picture_is_refused_with_a_remedy(tmp_path):
    whole = encoded(Image.effect_noise((64, 64), 90), "JPEG")
    cases = [
        (b"", "empty"),
        (b"hello, I am a text file", "not a picture"),
        (whole[: len(whole) // 2], "damaged"),
        (encoded(halves())[:60], "damaged"),
        (tmp_path / "nothing.png", "no picture at"),
        (tmp_path, "no picture at"),
        (b"\0" * (20 * 2**20 + 1), "20 MB are the limit"),
    ]
    for source, words in cases:
        with pytest.raises(BadInput, match=words) as caught:
            open_image(source)
        assert any(w in str(caught.value) for w in ("again", "Check")), caught.value


def test_a_huge_picture_is_refused_before_it_is_decoded():
    data = encoded(Image.new("1", (20_000, 20_000)))
    assert len(data) < 2**20
    with pytest.raises(BadInput, match="megapixels"):
        open_image(data)


@pytest.mark.slow
def test_the_encoder_knows_real_photographs():
    skimage_data = pytest.importorskip("skimage.data")
    from timm.data import ImageNetInfo

    encoder = VisualEncoder()
    cat, coffee = (Image.fromarray(a) for a in (skimage_data.chelsea(), skimage_data.coffee()))
    features = encoder.encode([cat, coffee])
    assert features.levels.shape == (2, encoder.feature_size) and features.logits.shape == (2, 1000)
    names = [ImageNetInfo().index_to_description(int(i)) for i in features.logits.argmax(1)]
    assert "cat" in names[0] and "espresso" in names[1]
    alone = encoder.encode([coffee])
    assert torch.allclose(alone.levels, features.levels[1:], atol=1e-4)
    weight, bias = encoder.classifier
    assert torch.allclose(alone.levels[:, -1280:] @ weight.T + bias, alone.logits, atol=1e-4)


@pytest.mark.slow
def test_an_unknown_encoder_is_named():
    with pytest.raises(LoadError, match="knows no encoder 'nonsense_net'"):
        VisualEncoder("nonsense_net")
    with pytest.raises(LoadError, match="resnet18.*cannot be loaded"):
        VisualEncoder("resnet18")


def test_features_join_and_split():
    parts = [VisualFeatures(torch.full((1, 3), float(i)), torch.full((1, 2), float(i))) for i in range(3)]
    joined = VisualFeatures.cat(parts)
    assert len(joined) == 3 and torch.equal(joined[1:2].levels, parts[1].levels)


def test_a_thin_strip_keeps_its_middle():
    strip = Image.new("RGB", (1000, 20), "white")
    ImageDraw.Draw(strip).rectangle((490, 0, 510, 20), fill="black")
    assert open_image(strip).size == (1000, 20)
