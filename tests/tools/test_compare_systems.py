"""Which systems are compared, and on which files."""

import pytest

from tools import compare_systems
from unimodal.data.media_items import FileItems, is_held_out
from unimodal.tokenizers.configs.registry import read_system


@pytest.mark.parametrize("medium", ["image", "audio", "video"])
def test_one_system_of_each_kind_is_compared(medium):
    chosen = compare_systems.choose_systems(medium)
    kinds = [(read_system(name).system, read_system(name).choose_settings(small=True)["family"]) for name in chosen]
    assert len(set(kinds)) == len(kinds) > 1


def test_what_is_compared_on_is_what_the_recipe_holds_out(tmp_path):
    media = tmp_path / "media"
    for number in range(40):
        (media / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (media / str(number % 2) / f"{number}.png").write_bytes(b"a")
    kept = compare_systems.keep_held_out(media, "image", tmp_path / "held")
    items = FileItems(media, "image")
    wanted = {items.find_group(index) for index in range(40) if is_held_out(items.find_group(index), 10)}
    assert {path.relative_to(kept).as_posix() for path in kept.rglob("*.png")} == wanted and wanted
