"""What a locator carries packed comes back as it was."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scvi_dist.data.names import names_digest, repeated, shared_names
from scvi_dist.data.packing import pack_names, pack_numbers, unpack_names, unpack_numbers

NAMES = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1
)


@given(st.lists(st.integers(0, 2**62)))
def test_numbers_come_back(values: list[int]) -> None:
    text = json.loads(json.dumps(pack_numbers(np.array(values, dtype=np.int64))))
    found = unpack_numbers(text)
    assert found.dtype == np.int64
    assert found.tolist() == values


@given(NAMES)
def test_names_come_back(names: list[str]) -> None:
    found = unpack_names(json.loads(json.dumps(pack_names(names))))
    assert found.dtype == object
    assert found.tolist() == names


def test_packing_makes_small() -> None:
    assert len(pack_numbers(np.full(100_000, 12_345))) < 2_000
    assert len(pack_names(f"ENSG{i:011d}" for i in range(20_000))) < 90_000


def test_equal_names_are_kept_once() -> None:
    one, two = (np.array([f"g{i}" for i in range(9)], dtype=object) for _ in range(2))
    assert one is not two
    assert shared_names(one) is one
    assert shared_names(two) is one
    assert shared_names(one[:3]) is not one
    assert names_digest(one) == names_digest(two) != names_digest(one[::-1])
    # "ab", "c" and "a", "bc" are not the same names.
    assert names_digest(["ab", "c"]) != names_digest(["a", "bc"])


@given(st.lists(st.sampled_from("abcdef")))
def test_repeated_names_are_those_that_occur_more_than_once(names: list[str]) -> None:
    found = repeated(np.array(names, dtype=object)).tolist()
    assert len(found) == len(set(found))
    assert set(found) == {name for name in names if names.count(name) > 1}
