"""The comparison of systems on the page is that of its files, and its leaders are those of the figures."""

import pytest

from tools import write_comparison
from tools.write_comparison import MEASURES, Comparison, Measure, System

COMPARISONS = write_comparison.load_comparisons()


def make(*values):
    """Three systems with one measure, PSNR, of so many seeds each."""
    names = ("a", "b", "c")
    systems = {
        name: System("32×32", "16 of 64", 96, 1000, 10, 30.0, [{"psnr_db": value} for value in seeds])
        for name, seeds in zip(names, values, strict=True)
    }
    return Comparison("image", 30, 16, 8, 0, systems, {"d": "needs a trunk"})


def test_the_page_says_what_the_files_say():
    page = write_comparison.PAGE.read_text(encoding="utf-8")
    made = write_comparison.replace_section(page, write_comparison.draw_section(COMPARISONS))
    assert made == page, "python tools/write_comparison.py"


def test_files_are_small_and_of_all_media():
    assert {comparison.medium for comparison in COMPARISONS} == set(MEASURES)
    assert sum(path.stat().st_size for path in write_comparison.FOLDER.iterdir()) < 300_000


@pytest.mark.parametrize("more", [True, False])
def test_leaders_are_those_with_the_best_values(more):
    found = make([3.0], [5.0], [4.0])
    assert write_comparison.list_leaders(found, Measure("psnr_db", "", more, 2)) == (
        list("bca") if more else list("acb")
    )


def test_a_cell_is_a_mean_with_half_its_range():
    found = make([3.0, 4.0, 5.0], [5.0], [4.0])
    measure = MEASURES["image"][0]
    assert write_comparison.write_cell(found.systems["a"], measure) == "4.00 ± 1.00"
    assert write_comparison.write_cell(found.systems["b"], measure) == "5.00"
    table = write_comparison.draw_table(found)
    assert (
        "| **5.00** |" in table
        and "- `d`: needs a trunk" in table
        and "- PSNR, dB: `b`, `a`, `c`; at 100 bits or fewer `b`" in table
    )
