"""Slow drift: a bet against the calibration that grows when normal windows look less normal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mmfuse_ros.errors import ConfigError

_BETS = (0.0, 0.5, 1.0)


@dataclass
class DriftMonitor:
    """Conformal test martingale that asks for a recalibration and never raises an alarm.

    It bets on small p-values (Vovk, Nouretdinov and Gammerman, "Testing exchangeability on-line",
    2003; the mixing of stakes is the simple jumper of Vovk et al., "Retrain or not retrain",
    2021). While windows come from the calibrated distribution its capital exceeds C with a
    probability of at most 1 / C at any time (Ville's inequality). That holds for independent
    p-values: feed one per independent stretch of time, not one per overlapping window; `spacing`
    windows apart are taken, the others passed over.

    Windows under an alarm are not fed to it: a fault is not a drift.

    Attributes:
        spacing: takes every so-many-th window.
        capital_limit: capital at which `asks` becomes true.
        jump: share of the stake that is redistributed at each step.
    """

    spacing: int = 1
    capital_limit: float = 100.0
    jump: float = 0.01
    _log_stakes: list[float] = field(init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)
    asks: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.spacing < 1:
            raise ConfigError(f"spacing must be at least 1, got {self.spacing}")
        if not self.capital_limit > 1.0:
            raise ConfigError(f"capital_limit must be above 1, got {self.capital_limit}")
        self.reset()

    def reset(self) -> None:
        """Start again with a capital of 1, as after a recalibration."""
        self._log_stakes = [-math.log(len(_BETS))] * len(_BETS)
        self._count = 0
        self.asks = False

    @property
    def log_capital(self) -> float:
        """Natural logarithm of the capital."""
        top = max(self._log_stakes)
        return top + math.log(sum(math.exp(s - top) for s in self._log_stakes))

    def update(self, p: float) -> bool:
        """Take a window's p-value (NaN is passed over); return whether to recalibrate."""
        if math.isnan(p):
            return self.asks
        self._count += 1
        if (self._count - 1) % self.spacing:
            return self.asks
        total = self.log_capital
        share = self.jump / len(_BETS)
        for i, bet in enumerate(_BETS):
            kept = math.exp(self._log_stakes[i] - total) * (1.0 - self.jump) + share
            self._log_stakes[i] = total + math.log(kept) + math.log(1.0 + bet * (0.5 - p))
        self.asks = self.asks or self.log_capital >= math.log(self.capital_limit)
        return self.asks
