"""The cut of the input: every part once, in order, whatever the sizes."""

from hypothesis import given
from hypothesis import strategies as st

from corpora.pipeline.units import Counter, Part, cut, read_units, write_units


@given(st.lists(st.integers(0, 100)), st.integers(1, 120))
def test_units_hold_every_part_once_in_order_and_no_more_than_asked(sizes, unit_bytes):
    parts = [Part(f"f{i}", size) for i, size in enumerate(sizes)]
    units = cut(parts, unit_bytes)
    assert [part for unit in units for part in unit] == parts
    totals = [sum(part.size for part in unit) for unit in units]
    assert all(len(u) == 1 or size <= unit_bytes for u, size in zip(units, totals, strict=True))
    for size, following in zip(totals, units[1:], strict=False):  # as much as fits
        assert size + following[0].size > unit_bytes


def test_units_go_to_a_file_and_back(tmp_path):
    units = [(Part("ü", 3, 1, 2, "r"), Part("b", 0)), (Part("c", 1),)]
    write_units(tmp_path / "u", units)
    assert read_units(tmp_path / "u") == units


def test_a_counter_tells_the_whole_of_a_short_unit(tmp_path):
    counter = Counter(tmp_path / "000000")
    for _ in range(3):
        counter.tick()
    counter.write()
    assert (tmp_path / "000000").read_text() == "3 0"
