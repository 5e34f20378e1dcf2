"""Rows of a step to ranks and micro-steps, so that each has about as many images."""

import numpy as np


def deal(num_images: np.ndarray, source_ids: np.ndarray, micro_batch_size: int) -> np.ndarray:
    """Deals the global rows of a step to cells (rank x micro-step) of `micro_batch_size` rows.

    Rows are dealt in rounds, most images first; in each round the cell with the fewest images so
    far takes the row with the most. So no two cells differ by more images than two rows may.
    Rows with equally many images go round by source, so that cells are alike in that too.

    Returns:
        int64 (cells, micro_batch_size), row numbers in order within each cell.
    """
    num_cells = len(num_images) // micro_batch_size
    order = np.lexsort((source_ids, -num_images))
    loads = np.zeros(num_cells, dtype=np.int64)
    cells = np.empty((num_cells, micro_batch_size), dtype=np.int64)
    for number in range(micro_batch_size):
        dealt = order[number * num_cells : (number + 1) * num_cells]
        takers = np.argsort(loads, kind="stable")
        cells[takers, number] = dealt
        loads[takers] += num_images[dealt]
    return np.sort(cells, axis=1)


def image_balance(
    num_images: np.ndarray, source_ids: np.ndarray, world_size: int, micro_batch_size: int
) -> float:
    """Most images of a rank over the mean, in the micro-steps of a step; 1 is even.

    Ranks wait for each other in every micro-step, so the largest of each is added up.
    """
    cells = deal(num_images, source_ids, micro_batch_size)
    loads = num_images[cells].sum(axis=1).reshape(-1, world_size)  # (micro-steps, ranks)
    return float(loads.max(axis=1).sum() / max(1e-9, loads.mean(axis=1).sum()))
