"""Where the windows of a convolution or pooling lie along one axis, and how to say so with other paddings."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Window", "same_padding"]


@dataclass(frozen=True)
class Window:
    """The windows of a layer along one axis: window i covers the `reach` places from `i stride - left` on.

    Args:
        size: length of the input.
        reach: length of a window, dilation included: `(kernel - 1) dilation + 1`.
        stride: from one window to the next.
        left: padding before the input.
        right: padding after it.

    Example:
        >>> window = Window(size=224, reach=3, stride=2, left=0, right=1)
        >>> window.count, window.unread
        (112, 0)
        >>> window.paddings(mirrored=False), window.paddings(mirrored=True)
        ((0, 1, 2), (1, 0, 1))
    """

    size: int
    reach: int
    stride: int
    left: int = 0
    right: int = 0

    @property
    def count(self) -> int:
        """Number of windows, the length of the output."""
        return (self.size + self.left + self.right - self.reach) // self.stride + 1

    @property
    def unread(self) -> int:
        """Places of the padded input after the last window."""
        return (self.size + self.left + self.right - self.reach) % self.stride

    def paddings(self, mirrored: bool) -> tuple[int, int, int]:
        """Return the paddings that give the same windows: left, the least right, the largest right.

        On the mirrored axis, the last window is the first, so left = right - unread; up to stride - 1 places
        after the last window may be there unread. A negative padding takes places away.
        """
        left, right = (self.right - self.unread, self.left) if mirrored else (self.left, self.right - self.unread)
        return left, right, right + self.stride - 1

    def allows(self, left: int, right: int, mirrored: bool) -> bool:
        """Return whether these paddings give the same windows."""
        only, least, most = self.paddings(mirrored)
        return left == only and least <= right <= most


def same_padding(size: int, reach: int, stride: int) -> tuple[int, int]:
    """Return the (left, right) that TensorFlow's 'same' stands for: the odd one goes right.

    Example:
        >>> same_padding(224, 3, 2), same_padding(225, 3, 2)
        ((0, 1), (1, 1))
    """
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2
