"""Embeddings from which words stand near which: seconds of work that spare a small model most of
its training.

Levy and Goldberg, "Neural word embedding as implicit matrix factorization", NIPS 2014: the
singular vectors of the positive pointwise mutual information (PPMI) of words and contexts.
Levy, Goldberg, Dagan, "Improving distributional similarity", TACL 2015, sections 3.2 and 3.3: the
counts of contexts smoothed by a power of 0.75, the singular values raised to one half.
V pieces, E width, N tokens of a chunk.
"""

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from sentisynth.training.rows import Rows

_WINDOW, _SMOOTHING, _CHUNK = 8, 0.75, 2**23


def cooccurrence_embeddings(
    rows: Rows, n_pieces: int, width: int, special: list[int], seed: int
) -> np.ndarray:
    """float32 (V, E), E < V, of standard deviation 1; the first columns tell most.

    Neighbours are up to 8 tokens apart in a row; special tokens are none, their vectors are zero,
    as are those of pieces that do not occur. The seed is of the randomised SVD (Halko, Martinsson,
    Tropp, SIAM Review 2011).
    """
    ppmi_VV = ppmi(neighbours(rows, n_pieces, special))
    u_VE, s_E, _ = randomized_svd(ppmi_VV, width, random_state=seed % 2**32)
    table_VE = u_VE * np.sqrt(s_E)
    table_VE[np.diff(ppmi_VV.indptr) == 0] = 0  # exactly
    return (table_VE / (table_VE.std() or 1.0)).astype(np.float32)


def neighbours(rows: Rows, n_pieces: int, special: list[int]) -> sparse.csr_matrix:
    """(V, V): how often two pieces stand at most 8 tokens apart in a row, either way."""
    is_special = np.zeros(n_pieces, dtype=bool)
    is_special[special] = True
    found = sparse.csr_matrix((n_pieces, n_pieces), dtype=np.float64)
    first = 0
    while first < len(rows):  # whole rows, a chunk of tokens at a time
        until = int(np.searchsorted(rows.starts, rows.starts[first] + _CHUNK, side="right")) - 1
        last = max(first + 1, until)
        ids_N = np.asarray(rows.ids[rows.starts[first] : rows.starts[last]])
        row_N = np.repeat(np.arange(last - first), rows.lengths[first:last])
        for apart in range(1, _WINDOW + 1):
            left, right = ids_N[:-apart], ids_N[apart:]
            near = (row_N[:-apart] == row_N[apart:]) & ~is_special[left] & ~is_special[right]
            ones = np.ones(int(near.sum()))
            found += sparse.coo_matrix((ones, (left[near], right[near])), shape=found.shape).tocsr()
        first = last
    return (found + found.T).tocsr()


def ppmi(counts_VV: sparse.csr_matrix) -> sparse.csr_matrix:
    """max(0, log p(w, c) / p(w) p(c)), where p(c) is of counts raised to 0.75."""
    count_V = np.asarray(counts_VV.sum(axis=1)).ravel()
    context_V = count_V**_SMOOTHING
    context_V /= context_V.sum()
    pairs = counts_VV.tocoo()
    value = np.log(pairs.data / (count_V[pairs.row] * context_V[pairs.col]))
    kept = value > 0
    return sparse.csr_matrix(
        (value[kept], (pairs.row[kept], pairs.col[kept])), shape=counts_VV.shape
    )
