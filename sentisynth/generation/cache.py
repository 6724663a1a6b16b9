"""Keys and values of the tokens before, which decoding keeps."""

import torch

_BLOCK = 16  # positions by which a cache grows


class Cache:
    """Keys and values of every layer, (layers, 2, B, H, S, D), of which `length` positions count.

    Where products read `views`, attention has a view of these positions, all room is made at once,
    and rows that stay move up. Elsewhere a batched product would copy what does not lie in one
    piece (half precision on a CPU): S grows by blocks, attention reads all of it, and the positions
    that do not count are zero.
    """

    def __init__(self, both: torch.Tensor, length: int = 0, *, views: bool = False) -> None:
        self.both, self.length, self.views = both, length, views
        self.logits: torch.Tensor | None = None
        """Memory of a step's logits that the next step may write over."""

    def spread(self, n_rows: int, capacity: int) -> "Cache":
        """A cache of n rows, and up to so many positions, from one of one row."""
        if not self.views:
            return Cache(self.both.repeat(1, 1, n_rows, 1, 1, 1), self.length)
        layers, two, _, heads, _, width = self.both.shape
        both = self.both.new_empty(layers, two, n_rows, heads, capacity, width)
        both[..., : self.length, :] = self.both[..., : self.length, :]
        return Cache(both, self.length, views=True)

    def fill(self, prefix: "Cache") -> None:
        """Begin with the same prefix, of one row, in all rows."""
        self.length = prefix.length
        self.both[..., : self.length, :] = prefix.both[..., : self.length, :]
        self.both[..., self.length :, :] = 0

    def grow(self) -> None:
        """Make room for one position more."""
        room = self.both.shape[4]
        if self.length == room:
            shape = (*self.both.shape[:4], room + _BLOCK, self.both.shape[5])
            both = torch.empty(shape, dtype=self.both.dtype, device=self.both.device)
            both[..., :room, :] = self.both
            both[..., room:, :] = 0
            self.both = both

    def keep(self, rows: torch.Tensor) -> None:
        """Only these rows go on."""
        if not self.views:
            self.both = self.both[:, :, rows]
            return
        for part_BHSD in self.both.flatten(0, 1):
            part_BHSD[: len(rows), :, : self.length] = part_BHSD[rows, :, : self.length]
        self.both = self.both[:, :, : len(rows)]

    def first(self, n_rows: int, n_positions: int) -> "Cache":
        """A view of the first rows and positions."""
        return Cache(self.both[:, :, :n_rows, :, :n_positions])
