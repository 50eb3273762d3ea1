"""Key → partition is fixed for ever, and the same in every language."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.format.partition import partition_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("key", "crc"),
    [("", 0), ("A1", 0xF9656C81), ("85123A", 0xAAE2A999), ("köln", 0xEEA91AFF), ("123456789", 0xCBF43926)],
)
def test_the_partition_is_the_crc_32_of_the_key_modulo_the_count(key, crc):
    for partitions in (1, 2, 3, 8, 12, 1024):
        assert partition_of(key, partitions) == crc % partitions


def test_a1_belongs_to_partition_1_of_8():
    assert partition_of("A1", 8) == 1


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 1024))
def test_every_key_has_a_partition_that_exists(key, partitions):
    assert 0 <= partition_of(key, partitions) < partitions


def test_keys_are_spread_over_all_partitions():
    counts = [0] * 8
    for number in range(8000):
        counts[partition_of(f"sku-{number}", 8)] += 1
    assert min(counts) > 800
    assert max(counts) < 1200


def test_the_rule_stands_in_one_place() -> None:
    packages = ("bus", "workers", "admin_ui", "demo", "benchmarks")
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    users = [path.relative_to(ROOT).as_posix() for path in paths if "crc32" in path.read_text()]
    assert users == ["bus/format/partition.py"]
