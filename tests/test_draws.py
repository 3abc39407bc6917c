"""The draws of stochastic rounding: their definition, element by element, and that they look like independent ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")

from altgrad.draws import Draws, draws_of_each  # noqa: E402
from altgrad.formats import DRAW_VERSIONS, get_format, stochastic_draw  # noqa: E402
from altgrad.rounding import quantize  # noqa: E402
from altgrad.scratch import Scratch  # noqa: E402

CPU = torch.device("cpu")
STARTS = (0, 1, 2**31 - 20, 2**32 - 20, 2**32, 2**33 - 7, 2**33, 3 * 2**40 - 11)


def drawn(count: int, seed: int, version: int, start: int = 0) -> np.ndarray:
    return Draws(seed, version).numbers(start, (count,), CPU).double().numpy()


@pytest.mark.parametrize("version", DRAW_VERSIONS)
def test_draws_equal_the_scalar_definition_also_across_the_borders_of_keys(version: int) -> None:
    for start in STARTS:
        for seed in (0, 1, 2**63, 2**64 - 1):
            draws = Draws(seed, version)
            found = draws.numbers(start, (40,), CPU)
            assert found.dtype == torch.float32
            assert found.tolist() == [stochastic_draw(seed, start + index, version) for index in range(40)]
            scratch = Scratch(48, CPU)
            for first, count in ((start, 40), (start + 40, 33), (start + 73, 1)):
                again = draws.numbers(first, (count,), CPU, scratch)
                assert again.tolist() == [stochastic_draw(seed, first + index, version) for index in range(count)]
    assert np.array_equal(drawn(10_000, 5, version)[-3:], [stochastic_draw(5, i, version) for i in range(9997, 10_000)])


@pytest.mark.parametrize("version", DRAW_VERSIONS)
def test_draws_that_each_element_makes_for_itself_are_the_same(version: int) -> None:
    for seed in (0, 7, 2**64 - 1):
        first, key = (torch.tensor(number, dtype=torch.int32) for number in Draws(seed, version).key(0))
        assert np.array_equal(draws_of_each(first, key, version, 1001, CPU).double(), drawn(1001, seed, version))


@pytest.mark.parametrize("version", DRAW_VERSIONS)
def test_a_seed_in_a_tensor_has_the_keys_of_the_number(version: int) -> None:
    for seed in (0, 1, 12345, 2**63, 2**64 - 1):
        bits = torch.tensor(seed, dtype=torch.uint64).view(torch.int64)
        for start in (0, 2**34, 3 * 2**40):
            assert [int(part) for part in Draws(bits, version).key(start)] == [*Draws(seed, version).key(start)]
        x = torch.randn(99)
        how = {"rounding": "stochastic", "draw_version": version}
        assert torch.equal(
            quantize(x, get_format("e2m1"), seed=bits, **how), quantize(x, get_format("e2m1"), seed=seed, **how)
        )


def test_version_2_draws_odd_multiples_of_two_to_the_minus_16_all_equally_often() -> None:
    numbers = drawn(1 << 20, 3, 2) * 2**16
    assert ((numbers > 0) & (numbers < 2**16) & (numbers % 2 == 1)).all()
    assert stats.chisquare(np.bincount(numbers.astype(np.int64) // 2, minlength=1 << 15)).pvalue > 1e-4


def test_threads_change_no_bit() -> None:
    x, how = torch.randn(3, 200_001), {"rounding": "stochastic", "seed": 4, "draw_version": 2}
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(quantize(x, get_format("e4m3"), **how))
    torch.set_num_threads(threads)
    assert torch.equal(*found)


def pvalues(numbers: np.ndarray) -> dict[str, float]:
    """Chi-square tests of draws: of their upper and lower bits, and of pairs that far apart."""
    bins = (numbers * 4096).astype(np.int64)
    low = (numbers * 2**15).astype(np.int64) & 4095
    found = {"upper bits": bins, "lower bits": low}
    found |= {f"pairs {far} apart": (bins[:-far] >> 6) * 64 + (bins[far:] >> 6) for far in (1, 2, 3, 64, 4096)}
    return {name: stats.chisquare(np.bincount(each, minlength=4096)).pvalue for name, each in found.items()}


@pytest.mark.parametrize("version", DRAW_VERSIONS)
@pytest.mark.parametrize("seed", [0, 1, 12345, 2**64 - 1])
def test_draws_are_uniform_in_their_upper_and_lower_bits_and_in_pairs(seed: int, version: int) -> None:
    found = pvalues(drawn(1 << 20, seed, version))
    assert min(found.values()) > 1e-4, found


def test_the_chi_square_tests_see_a_weak_generator() -> None:
    """A counter times a constant, without any mixing, is even more uniform than chance, and its pairs are not."""
    weak = (np.arange(1 << 20, dtype=np.uint64) * 0x9E3779B1 % 2**32) * 2.0**-32
    assert pvalues(weak)["pairs 1 apart"] < 1e-12


@pytest.mark.parametrize("version", DRAW_VERSIONS)
def test_draws_of_neighbouring_indices_seeds_and_blocks_are_uncorrelated(version: int) -> None:
    count = 1 << 19
    base = drawn(count, 0, version)
    others = {f"seed {seed}": drawn(count, seed, version) for seed in (1, 2, 3, 2**32, 2**63)}
    others |= {f"lag {lag}": np.roll(base, lag) for lag in (1, 2, 3, 5, 64, 1024, 4096, 65536)}
    others["next key"] = drawn(count, 0, version, version << 32)
    chance = 2.0 ** -(24 if version == 1 else 15)
    for name, other in others.items():
        assert abs(np.corrcoef(base, other)[0, 1]) * math.sqrt(count) < 4.5, name
        equal = (base == other).sum()
        assert abs(equal - chance * count) < 6 * math.sqrt(chance * count) + 3, name
        assert not np.array_equal(np.sort(base), np.sort(other)) or name.startswith("lag"), name


def test_a_bit_of_the_index_or_the_key_turns_each_bit_of_a_word_half_the_time() -> None:
    """The avalanche of version 2, whose two draws are one word but for the last bit of each, which is always set."""
    index = np.random.default_rng(0).integers(0, 1 << 31, 3000)
    base, bits = words(index, 0), [bit for bit in range(32) if bit % 16]
    others = {f"index, bit {bit}": words(index ^ (1 << bit), 0) for bit in range(31)} | {"seed": words(index, 1)}
    for name, other in others.items():
        turned = ((other ^ base)[:, None] >> np.array(bits) & 1).mean(0)
        assert abs(turned - 0.5).max() < 0.05, name


def words(number: np.ndarray, seed: int) -> np.ndarray:
    """The words of version 2, as 32 bits."""
    pairs = np.array([[stochastic_draw(seed, 2 * int(n) + half, 2) for half in (0, 1)] for n in number])
    low, high = ((pairs - 0.5) * 2**16).astype(np.int64).T & 0xFFFF
    return low | high << 16
