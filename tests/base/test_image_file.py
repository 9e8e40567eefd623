"""Picture files of every kind: what they show, and that those built to hurt take no more than is stated."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from adapter.base.image_file import MAX_SIDE, open_image
from adapter.errors import BadInput
from tests.base.hostile_pictures import DECODED, REFUSED, encoded, noise

DECODE_BYTES = 320 * 2**20  # what decoding one file takes at most, the file included


def halves(left: str, right: str, width: int = 40) -> Image.Image:
    image = Image.new("RGB", (width, width // 2), left)
    image.paste(right, (width // 2, 0, width, width // 2))
    return image


@pytest.mark.parametrize("width", [40, 2_000], ids=["small", "reduced"])
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("L", "P", "RGB", "RGBA", "LA")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")),
        ("WEBP", "RGB"),
    ],
)
def test_a_picture_of_any_kind_and_mode_is_what_it_shows(kind, mode, width):
    coloured = mode not in ("L", "LA")
    shown = halves("red", "blue", width) if coloured else halves("white", "black", width)
    got = open_image(encoded(shown.convert(mode), kind))
    side = min(width, MAX_SIDE)
    assert (got.mode, got.size) == ("RGB", (side, side // 2))
    left, right = got.getpixel((side // 8, side // 4)), got.getpixel((side * 7 // 8, side // 4))
    assert left[0] > 200 > right[0] + 100
    assert not coloured or (right[2] > 200 > left[2] + 100 and max(left[1], right[1]) < 100)


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.putpixel((5, 5), (10, 20, 30, 255))
    got = open_image(encoded(image))
    assert got.getpixel((0, 0)) == (255, 255, 255) and got.getpixel((5, 5)) == (10, 20, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_orientation_and_pixel_is_pillows(kind, orientation):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "words before it", orientation
    data = encoded(noise(30).resize((30, 20)), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        assert open_image(data).tobytes() == ImageOps.exif_transpose(opened).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"hello, I am a text file", "not a picture"),
        (encoded(noise(64), "JPEG")[:2_000], "damaged"),
        ("nothing.png", "no picture at"),
        (b"\0" * (20 * 2**20 + 1), "20 MB are the limit"),
    ],
    ids=range(4),
)
def test_files_that_are_not_images_are_refused_with_a_remedy(source, words, tmp_path):
    with pytest.raises(BadInput, match=words) as caught:
        open_image(tmp_path / source if isinstance(source, str) else source)
    assert any(remedy in str(caught.value) for remedy in ("again", "Check")), caught.value


# Files that are built to hurt. What they take is measured in a process of its own.

MEASURE = """
import json, resource, sys
from concurrent.futures import ThreadPoolExecutor
from adapter.errors import BadInput
from adapter.base.image_file import open_image

resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30,) * 2)  # without its guards it shall not take the machine's
open_image(sys.argv[1])  # what is imported late


def memory(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))


def outcome(path):
    try:
        return list(open_image(path).size)
    except BadInput as error:
        return str(error)


def measured(paths):
    with open("/proc/self/clear_refs", "w") as references:
        references.write("5")  # the peak counts from here
    before = memory("VmRSS:")
    with ThreadPoolExecutor(len(paths)) as pool:
        outcomes = list(pool.map(outcome, paths))
    print(json.dumps([outcomes, memory("VmHWM:") - before]), flush=True)


for line in sys.stdin:
    measured(json.loads(line))
"""


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[list[Any], int]]]:
    """A function from files, opened at once by a thread each, to sizes or refusals, and to bytes taken at most."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured on Linux only")
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "small").write_bytes(encoded(noise(700), "PNG"))
    command = [sys.executable, "-c", MEASURE, str(folder / "small")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def measured(*files: bytes) -> tuple[list[Any], int]:
            paths = [str(folder / str(number)) for number in range(len(files))]
            for path, file in zip(paths, files, strict=True):
                Path(path).write_bytes(file)
            process.stdin.write(json.dumps(paths) + "\n")
            process.stdin.flush()
            outcomes, taken = json.loads(process.stdout.readline())
            return outcomes, taken

        yield measured
        process.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REFUSED, *DECODED])
def test_no_file_takes_more_than_is_stated(name, measure):
    (outcome,), taken = measure({**REFUSED, **DECODED}[name]())
    if name in DECODED:
        assert max(outcome) <= MAX_SIDE, outcome
        assert taken <= DECODE_BYTES
    else:
        assert isinstance(outcome, str) and "again" in outcome, outcome
        assert taken <= DECODE_BYTES if "cut" in name else taken < 64 * 2**20, "it is refused before it is decoded"


@pytest.mark.slow
def test_five_visitors_take_the_memory_of_two(measure):
    file = DECODED["lossless WebP of 12 megapixels"]()
    outcomes, taken = measure(*[file + bytes([number]) for number in range(5)])
    assert outcomes == [[640, 480]] * 5
    assert taken <= 2 * DECODE_BYTES


def test_a_file_is_decoded_once():
    """However many ask at once, by the cache's rule."""
    data = encoded(noise(20, seed=7))
    assert open_image(data) is open_image(bytes(bytearray(data)))


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 200),
)
def test_a_damaged_file_is_a_picture_or_a_sentence(kind, changes, cut):
    data = bytearray(encoded(noise(12), kind, exif=Image.Exif()))
    for at, value in changes:
        data[at % len(data)] = value
    try:
        assert open_image(bytes(data[: len(data) - cut])).mode == "RGB"
    except BadInput as error:
        assert str(error).endswith(".")
