"""Rows of a step to ranks and micro-steps, so that each has about as many images."""

import numpy as np


def deal(num_images: np.ndarray, source_ids: np.ndarray, micro_batch_size: int) -> np.ndarray:
    """Deals the global rows of a step to cells (rank x micro-step) of `micro_batch_size` rows.

    Rows are dealt in rounds, most images first; in each round the cell with the fewest images so
    far takes the row with the most. So no two cells differ by more images than two rows may.
    Rows with equally many images go round by source, so that cells are alike in that too. Then the
    fullest cell changes a row with another cell for as long as that makes it less full.

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
    if micro_batch_size > 1:  # else nothing can be made more even
        for _ in range(num_cells):
            if not _relieve(cells, loads, num_images):
                break
    return np.sort(cells, axis=1)


def _relieve(cells: np.ndarray, loads: np.ndarray, num_images: np.ndarray) -> bool:
    """Changes a row of the fullest cell with one of another, if that lowers the larger load."""
    fullest = int(loads.argmax())
    if loads[fullest] * len(cells) - loads.sum() < len(cells):
        return False  # the least that whole images allow
    images = num_images[cells]  # (cells, M)
    moved = images[fullest][:, None, None] - images  # (M, cells, M)
    larger = np.maximum(loads[fullest] - moved, loads[:, None] + moved)
    larger[:, fullest] = loads[fullest]
    mine, other, theirs = np.unravel_index(int(larger.argmin()), larger.shape)
    if larger[mine, other, theirs] >= loads[fullest]:
        return False
    change = moved[mine, other, theirs]
    loads[fullest] -= change
    loads[other] += change
    swapped = cells[fullest, mine], cells[other, theirs]
    cells[other, theirs], cells[fullest, mine] = swapped
    return True


def image_balance(
    num_images: np.ndarray, source_ids: np.ndarray, world_size: int, micro_batch_size: int
) -> float:
    """Most images of a rank over the mean, in the micro-steps of a step; 1 is even.

    Ranks wait for each other in every micro-step, so the largest of each is added up.
    """
    cells = deal(num_images, source_ids, micro_batch_size)
    loads = num_images[cells].sum(axis=1).reshape(-1, world_size)  # (micro-steps, ranks)
    return float(loads.max(axis=1).sum() / max(1e-9, loads.mean(axis=1).sum()))
