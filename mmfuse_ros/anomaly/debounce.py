"""From flagged windows to an alarm: k of the last n, with hysteresis; and how severe it is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from mmfuse_ros.errors import ConfigError


@dataclass
class Debounce:
    """Raise an alarm when `raise_at` of the last `of` windows are flagged; clear it later.

    The alarm is cleared when at most `clear_at` of the last `of` windows are flagged. A window in
    which nothing could be scored is passed over: it neither raises nor clears.

    Raises:
        ConfigError: not 0 <= clear_at < raise_at <= of.
    """

    raise_at: int = 2
    of: int = 3
    clear_at: int = 0
    active: bool = False
    _recent: deque[bool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.clear_at < self.raise_at <= self.of:
            raise ConfigError(
                "debounce must have 0 <= clear_at < raise_at <= of, got clear_at "
                f"{self.clear_at}, raise_at {self.raise_at}, of {self.of}"
            )
        self._recent = deque(maxlen=self.of)

    def update(self, flag: bool | None) -> bool:
        """Take one window's flag (None: not scored) and return whether the alarm is raised."""
        if flag is not None:
            self._recent.append(flag)
            count = sum(self._recent)
            self.active = count > self.clear_at if self.active else count >= self.raise_at
        return self.active

    def changed(self, raise_at: int, of: int) -> Debounce:
        """Return one with other numbers; itself, with its past, where they are the same."""
        if (raise_at, of) == (self.raise_at, self.of):
            return self
        other = Debounce(raise_at, of, min(self.clear_at, raise_at - 1), self.active)
        other._recent.extend(self._recent)
        return other

    def reset(self) -> None:
        """Forget everything, the alarm included."""
        self._recent.clear()
        self.active = False


def severity(score: float, threshold: float, decades: float = 2.0) -> float:
    """Return 0 at the threshold, 1 at `decades` above it (a p-value 100 times smaller)."""
    return min(max((score - threshold) / decades, 0.0), 1.0)
