"""The published list is the list of the tests."""

from collections import Counter

import pytest
from listing import AREAS, PAGE, render, requirements


def test_the_published_list_is_that_of_the_tests() -> None:
    assert PAGE.read_text() == render(), "run: python tests/conformance/listing.py"


def test_ids_are_unique_and_without_gaps() -> None:
    every = requirements()
    assert not [key for key, n in Counter((e.area, e.number) for e in every).items() if n > 1]
    for area in AREAS:
        numbers = [each.number for each in every if each.area == area]
        assert numbers == list(range(1, len(numbers) + 1)), area


@pytest.mark.parametrize("area", AREAS)
def test_every_area_has_requirements(area: str) -> None:
    assert any(each.area == area for each in requirements())
