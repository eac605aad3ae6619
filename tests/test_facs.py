"""facs.py: the AUs, and the orders in which the corpora's tables print them."""

import pytest

from aupipe.facs import ACTION_UNITS, AU_SETS, AUSet
from aupipe.schema import ConfigError


def test_corpora_have_the_orders_of_the_published_tables():
    # BP4D and DISFA: STRAL §IV-A; Aff-Wild2: the ABAW challenge's label files.
    assert AU_SETS["bp4d"].numbers == (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
    assert AU_SETS["disfa"].numbers == (1, 2, 4, 6, 9, 12, 25, 26)
    assert AU_SETS["affwild2"].numbers == (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)


def test_synthetic_corpus_codes_every_au_of_the_others():
    others = {number for name, aus in AU_SETS.items() if name != "synthetic" for number in aus}
    assert set(AU_SETS["synthetic"]) == others
    assert len(AU_SETS["synthetic"]) == 15


@pytest.mark.parametrize("name", AU_SETS)
def test_sets_ascend_and_their_columns_follow_their_order(name):
    aus = AU_SETS[name]
    assert list(aus) == sorted(aus)
    assert aus.columns == tuple(f"AU{n:02d}_c" for n in aus)
    assert aus.intensity_columns == tuple(f"AU{n:02d}_r" for n in aus)
    assert aus.probability_columns == tuple(f"AU{n:02d}_p" for n in aus)
    assert AUSet.named(name) is aus


def test_set_keeps_the_order_that_it_was_given():
    aus = AUSet.named([12, 1, 4])
    assert aus.numbers == (12, 1, 4)
    assert aus.columns == ("AU12_c", "AU01_c", "AU04_c")
    assert [aus.index(n) for n in (12, 1, 4)] == [0, 1, 2]
    assert len(aus) == 3


@pytest.mark.parametrize(("numbers", "reason"), [((1, 3), "unknown AU 3"), ((1, 1), "distinct"), ((), "at least one")])
def test_set_of_unknown_repeated_or_no_aus_is_refused(numbers, reason):
    with pytest.raises(ConfigError, match=reason):
        AUSet(numbers)


def test_unknown_set_names_the_known_ones():
    with pytest.raises(ConfigError, match="disfa"):
        AUSet.named("bp5d")


def test_units_are_described_and_found_by_their_number():
    assert ACTION_UNITS[12].name == "lip corner puller"
    assert ACTION_UNITS[12].muscles == "zygomaticus major"
    for number, unit in ACTION_UNITS.items():
        assert unit.number == number
        assert unit.name
        assert unit.muscles
        assert unit.region in ("brow", "eyes", "cheek", "nose", "mouth", "chin")
