"""Images: planted damaged, tiny and alike ones."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests.prepare.fitting import through


def picture(seed: int) -> Image.Image:
    """Return smooth noise, unlike that of another seed."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC)


def test_damaged_and_tiny_images_are_dropped(tmp_path):
    picture(0).save(tmp_path / "good.png")
    picture(1).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    picture(2).resize((64, 20)).save(tmp_path / "tiny.png")
    picture(3).resize((640, 40)).save(tmp_path / "long.png")
    names = ("good.png", "cut.jpg", "text.png", "tiny.png", "long.png")
    found = through([{"path": str(tmp_path / name)} for name in names], ("readable",))
    assert found[0] == {"path": str(tmp_path / "good.png"), "width": 128, "height": 96, "mode": "RGB"}
    assert [dropped.rule for dropped in found[1:]] == ["damaged", "damaged", "tiny", "too_long"]


def test_alike_images_are_found_and_others_are_not(tmp_path):
    pytest.importorskip("imagehash", reason="needs the extra prepare")
    records, alike = [], []
    for i in range(40):
        picture(i).save(tmp_path / f"{i}.png")
        records.append({"path": str(tmp_path / f"{i}.png")})
    for i in range(20):
        changed = picture(i).resize((96, 72)) if i % 2 else ImageEnhance.Brightness(picture(i)).enhance(1.1)
        changed.save(tmp_path / f"like{i}.jpg", quality=80)
        records.append({"path": str(tmp_path / f"like{i}.jpg")})
        alike.append(len(records) - 1)
    found = through(records, ("near_images",))
    dropped = [i for i, record in enumerate(found) if not isinstance(record, dict)]
    assert set(dropped) <= set(alike) and len(dropped) >= 0.95 * len(alike)
    assert [found[i].because for i in dropped[:2]] == ["like record 0 of shard 0", "like record 1 of shard 0"]
