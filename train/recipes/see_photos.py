"""The benchmark of ordinary photographs: which files, and which words name what each shows.

The photographs lie in packages and are not part of this repository; nothing is ever trained on them. Somebody
looked at each and wrote the words before any model answered. scikit-image, scikit-learn and Gradio bring theirs
along; the others unpack into runs/photos, without being installed:

    mkdir -p runs/photos && cd runs/photos
    apt-get download opencv-doc palapeli-data mate-backgrounds lomiri-wallpapers-16.04
    for deb in *.deb; do dpkg -x "$deb" .; done
    pip download --no-deps foolbox==3.3.4 ultralytics imgaug==0.4.0
    for wheel in *.whl; do python -m zipfile -e "$wheel" .; done
"""

from __future__ import annotations

import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

UNPACKED = Path("runs/photos")

_OPENCV = "usr/share/doc/opencv-doc/examples/data"
_OPENCV_HFS = "usr/share/doc/opencv-doc/examples/hfs/data"
_OPENCV_MATTE = "usr/share/doc/opencv-doc/examples/alphamat/input_images"
_PALAPELI = "usr/share/palapeli/collection"
_LOMIRI = "usr/share/backgrounds"
_MATE = "usr/share/backgrounds/mate/nature"

# Path inside site-packages or the unpacked folder, and the words of which an answer must hold one.
_LIST = f"""
skimage/data/astronaut.png: astronaut, space suit, spacesuit, woman, person
skimage/data/brick.png: brick, wall
skimage/data/camera.png: camera, tripod, man, photographer, person
skimage/data/chelsea.png: cat, kitten
skimage/data/coffee.png: coffee, espresso, cup
skimage/data/coins.png: coin, money
skimage/data/motorcycle_left.png: motorcycle, motorbike, moped, motor scooter
skimage/data/rocket.jpg: rocket, missile, launch
sklearn/datasets/images/china.jpg: palace, temple, pagoda, tower, building
sklearn/datasets/images/flower.jpg: flower, dahlia, daisy, marigold, chrysanthemum
gradio/media_assets/images/cheetah.jpg: cheetah, big cat, wild cat
gradio/media_assets/images/cheetah1.jpg: cheetah, big cat, wild cat
gradio/test_data/cheetah2.jpg: cheetah, big cat, wild cat
gradio/media_assets/images/lion.jpg: lion, big cat, wild cat
gradio/media_assets/images/tower.jpg: tower
foolbox/data/imagenet_00_243.jpg: dog
foolbox/data/imagenet_01_559.jpg: chair
foolbox/data/imagenet_02_438.jpg: beaker, glass, measuring cup, laboratory
foolbox/data/imagenet_03_990.jpg: buckeye, chestnut, nut
foolbox/data/imagenet_04_949.jpg: strawberry, strawberries, fruit, berry
foolbox/data/imagenet_05_853.jpg: house, thatch, thatched roof, cottage
foolbox/data/imagenet_06_609.jpg: jeep, car, suv, off-road vehicle
foolbox/data/imagenet_07_609.jpg: jeep, car, suv, off-road vehicle
foolbox/data/imagenet_08_915.jpg: yurt, tent, hut
foolbox/data/imagenet_09_455.jpg: bottle cap, bottlecap, bottle top
foolbox/data/imagenet_10_541.jpg: drum
foolbox/data/imagenet_11_630.jpg: shoe, loafer
foolbox/data/imagenet_12_741.jpg: stained glass, window
foolbox/data/imagenet_13_471.jpg: cannon, gun
foolbox/data/imagenet_14_129.jpg: bird, spoonbill, ibis
foolbox/data/imagenet_15_99.jpg: goose, geese, bird
foolbox/data/imagenet_16_251.jpg: dalmatian, dog
foolbox/data/imagenet_17_22.jpg: eagle, bird
foolbox/data/imagenet_18_317.jpg: leafhopper, insect, bug
foolbox/data/imagenet_19_305.jpg: beetle, insect
imgaug/quokka.jpg: quokka, wallaby, kangaroo, marsupial
ultralytics/assets/bus.jpg: bus
ultralytics/assets/zidane.jpg: man, men, suit, person, people
{_OPENCV}/aloeL.jpg: plant, pot, flowerpot, aloe
{_OPENCV}/apple.jpg: apple
{_OPENCV}/baboon.jpg: baboon, mandrill, monkey
{_OPENCV}/board.jpg: circuit, circuit board, computer, electronic device, chip
{_OPENCV}/building.jpg: building, office, hotel
{_OPENCV}/butterfly.jpg: butterfly
{_OPENCV}/chicky_512.png: dog
{_OPENCV}/ela_original.jpg: notebook, book, binder, wallet
{_OPENCV}/fruits.jpg: fruit, orange, kiwi
{_OPENCV}/home.jpg: church, dome, building, palace, monastery
{_OPENCV}/left.jpg: book
{_OPENCV}/leuvenA.jpg: building, house, street, village, town
{_OPENCV}/licenseplate_motion.jpg: car
{_OPENCV}/messi5.jpg: football, soccer, soccer ball, ball, player
{_OPENCV}/orange.jpg: orange
{_OPENCV}/squirrel_cls.jpg: squirrel
{_OPENCV}/sudoku.png: sudoku, puzzle, crossword
{_OPENCV_HFS}/000.jpg: robin, bird
{_OPENCV_HFS}/001.jpg: lake, lakeside, lakeshore, water
{_OPENCV_HFS}/002.jpg: tree
{_OPENCV_MATTE}/plant.jpg: plant, pot, flowerpot
{_PALAPELI}/castle-maintenon.jpg: castle, palace, building
{_PALAPELI}/cincinnati-bridge.jpg: bridge
{_PALAPELI}/citrus-fruits.jpg: orange, lemon, lime, citrus, fruit
{_PALAPELI}/european-honey-bee.jpg: bee
{_PALAPELI}/panther-chameleon-female.jpg: chameleon, lizard
{_LOMIRI}/Bridge_by_Sander_Klootwijk.jpg: bridge
{_LOMIRI}/Picture_0B_by_freespace.jpg: fig, fruit, bowl
{_LOMIRI}/Picture_1A_by_freespace.jpg: brush, paintbrush
{_LOMIRI}/aitzgorri_by_Aitzol_Berasategi.jpg: mountain, hill, valley, field, meadow
{_LOMIRI}/free_by_Peter_Nerlich.jpg: bird, parrot, budgerigar
{_LOMIRI}/friends_by_Aitzol_Berasategi.jpg: dog, spaniel
{_LOMIRI}/greentock_by_Peter_Nerlich.jpg: clock
{_LOMIRI}/life_by_Aitzol_Berasategi.jpg: stream, river, creek, waterfall, forest
{_LOMIRI}/picosdeeuropa_by_Aitzol_Berasategi.jpg: mountain, valley, alp
{_LOMIRI}/seeding_by_Clements_Engelhardt.jpg: dandelion, flower
{_MATE}/Garden.jpg: flower, marigold
{_MATE}/LadyBird.jpg: ladybug, ladybird, insect, beetle
{_MATE}/YellowFlower.jpg: flower, daisy, sunflower
"""


@dataclass(frozen=True)
class Photo:
    """`words`: an answer names the picture if it holds one of them."""

    path: Path
    words: tuple[str, ...]

    def named_in(self, text: str) -> bool:
        """Whether `text` holds one of the words, as a whole word or its regular plural."""
        return any(re.search(rf"\b{re.escape(w)}(e?s)?\b", text, re.IGNORECASE) for w in self.words)


def photographs() -> tuple[list[Photo], int]:
    """The photographs that are on this machine, and the number of those that are not."""
    found, missing = [], 0
    roots = (UNPACKED, Path(sysconfig.get_path("purelib")), Path("/"))
    for line in _LIST.strip().splitlines():
        name, _, words = line.partition(": ")
        path = next((root / name for root in roots if (root / name).is_file()), None)
        if path is None:
            missing += 1
        else:
            found.append(Photo(path, tuple(word.strip() for word in words.split(","))))
    return found, missing
