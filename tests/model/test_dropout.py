"""Dropout masks follow from keys alone; the decoder gives every row and site a key of its own."""

import itertools

import pytest
import torch

import mllm.model.decoder
from mllm.model.attention import Documents
from mllm.model.dropout import dropout, site_keys
from mllm.model.init import build
from tests.model.test_decoder import packed_row, tiny

NUM_SITES = 7  # of the tiny decoder: embeddings, and two in each of three layers


def masks(row_seeds: list[int], rate: float, num_sites: int = NUM_SITES) -> torch.Tensor:
    """What is dropped, bool (num_sites, B, 64, 48)."""
    ones = torch.ones(len(row_seeds), 64, 48)
    keys = site_keys(torch.tensor(row_seeds), num_sites)
    return torch.stack([dropout(ones, rate, key, is_training=True) == 0 for key in keys])


def test_keys_are_the_numbers_of_splitmix64() -> None:
    """Its first five from 1234567, as Rosetta Code lists them ("Pseudo-random numbers")."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    keys = site_keys(torch.tensor([1234567]), 5)
    assert [key % 2**64 for key in keys[:, 0].tolist()] == expected


def test_a_mask_follows_from_its_row_and_site_whatever_stands_beside_it() -> None:
    together = masks([11, 12, 13], 0.3)
    assert torch.equal(together, masks([11, 12, 13], 0.3))
    assert torch.equal(together[:, 2:], masks([13], 0.3))
    assert torch.equal(together[:, [1, 0]], masks([12, 11], 0.3))
    assert torch.equal(together[:2], masks([11, 12, 13], 0.3, num_sites=2))
    keys = site_keys(torch.tensor([12]), 1)[0]
    half = dropout(torch.ones(1, 64, 48, dtype=torch.bfloat16), 0.3, keys, is_training=True)
    assert torch.equal(half[0] == 0, together[0, 1])


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_kept_and_the_mean_too(rate: float) -> None:
    dropped = masks(list(range(20)), rate)
    count = dropped.numel()
    sigma = (rate * (1 - rate) / count) ** 0.5
    assert abs(dropped.float().mean().item() - rate) < 4 * sigma + 2**-17
    hidden = torch.randn(2, 64, 48)
    out = dropout(hidden, rate, torch.tensor([3, 4]), is_training=True)
    kept = out != 0
    assert (out[kept] * (1 - rate) / hidden[kept] - 1).abs().max() < 2**-16 / (1 - rate)


@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 1, 1), (3, 7, 2)])
def test_rows_of_any_size_have_masks(shape: tuple[int, int, int]) -> None:
    """One hash decides four elements; rows need not be a multiple of that."""
    keys = site_keys(torch.arange(shape[0]), 1)[0]
    out = dropout(torch.ones(shape), 0.5, keys, is_training=True)
    assert out.shape == shape and ((out == 0) | (out == 2)).all()


def test_masks_of_rows_and_sites_are_unrelated() -> None:
    """Correlations of all pairs, and of neighbours within a mask, are those of chance."""
    flat = masks([0, 1, 2, 3, 2**40, -5], 0.5).flatten(0, 1).flatten(1).float() * 2 - 1  # (42, n)
    num_masks, count = flat.shape
    products = flat @ flat.T / count
    pairs = products[~torch.eye(num_masks, dtype=torch.bool)]
    assert pairs.abs().max() < 5 * count**-0.5
    # The sum of squared correlations is chi-square: too even would be suspicious as well.
    total, freedom = (pairs.square().sum() / 2 * count).item(), num_masks * (num_masks - 1) / 2
    assert abs(total - freedom) < 5 * (2 * freedom) ** 0.5
    for lag in (1, 2, 3, 4, 5, 8, 47, 48, 49, 192):
        correlation = (flat[:, lag:] * flat[:, :-lag]).mean().item()
        assert abs(correlation) < 4 * (num_masks * (count - lag)) ** -0.5, lag


def test_the_gradient_passes_where_the_mask_kept() -> None:
    hidden = torch.randn(2, 64, 48, requires_grad=True)
    out = dropout(hidden, 0.25, torch.tensor([8, 9]), is_training=True)
    out.sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, torch.where(out == 0, 0.0, 1 / 0.75))


def test_without_training_or_rate_nothing_happens() -> None:
    hidden, keys = torch.randn(1, 4, 8), torch.tensor([1])
    assert dropout(hidden, 0.5, keys, is_training=False) is hidden
    assert dropout(hidden, 0.0, keys, is_training=True) is hidden
    assert dropout(hidden, 0.5, None, is_training=False) is hidden


def test_rows_of_a_decoder_train_alone_as_they_do_together() -> None:
    decoder = build(tiny(dropout=0.3), seed=1).decoder.train()
    lengths = ([20, 25, 15], [7, 30, 1, 17])
    ids, positions = (torch.cat(x) for x in zip(*(packed_row(n, 64) for n in lengths), strict=True))
    embeddings, seeds = torch.randn(2, 64, 48), torch.tensor([21, 22])

    def run(rows: list[int]) -> torch.Tensor:
        return decoder(
            embeddings[rows],
            positions[rows],
            documents=Documents(ids[rows]),
            row_seeds=seeds[rows],
        )

    together = run([0, 1])
    assert torch.equal(together, run([0, 1]))  # no generator stands behind it
    assert (together[[1, 0]] - run([1, 0])).abs().max() < 1e-5
    for row in (0, 1):
        assert (together[row] - run([row])[0]).abs().max() < 1e-5
    seeds += 1
    assert (together - run([0, 1])).abs().max() > 0.1


def test_every_site_of_every_row_has_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def note(
        hidden: torch.Tensor, rate: float, keys: torch.Tensor, *, is_training: bool
    ) -> torch.Tensor:
        assert rate == 0.3 and is_training
        seen.extend(keys.tolist())
        return dropout(hidden, rate, keys, is_training=is_training)

    monkeypatch.setattr(mllm.model.decoder, "dropout", note)
    decoder = build(tiny(dropout=0.3), seed=1).decoder.train()
    positions = torch.arange(64).expand(2, -1)
    decoder(torch.randn(2, 64, 48), positions, row_seeds=torch.tensor([1, 2]))
    assert len(seen) == len(set(seen)) == 2 * NUM_SITES


def test_without_row_seeds_torchs_generator_draws() -> None:
    """So does the exported class in other people's training loops."""
    decoder = build(tiny(dropout=0.3), seed=1).decoder
    embeddings, positions = torch.randn(1, 64, 48), torch.arange(64)[None]
    runs = []
    for seed, row_seeds in itertools.product((1, 1, 2), (None, torch.tensor([5]))):
        torch.manual_seed(seed)
        runs.append(decoder.train()(embeddings, positions, row_seeds=row_seeds))
    assert torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[4])
    assert torch.equal(runs[1], runs[3]) and torch.equal(runs[1], runs[5])
    plain = decoder.eval()(embeddings, positions)
    assert torch.equal(plain, decoder(embeddings, positions, row_seeds=torch.tensor([5])))
