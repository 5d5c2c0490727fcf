"""The result of simulation-based calibration."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ppgen import plots
from ppgen.checkpoint import write_atomically
from ppgen.diagnostics import symmetry, uniformity
from ppgen.summary import columns

_SHOWN = 8  # quantities in the printed table, worst first


@dataclass(frozen=True)
class Calibration:
    """Ranks of true values among the draws of an engine, and what follows from them.

    Args:
        story: the story's name.
        engine: the engine's name.
        level: the chance that a correct engine is flagged, all quantities together.
        seconds: that it took.
        pit: of each quantity, the ranks as numbers in (0, 1), one a simulation.
        independent: how many draws each rank was taken among, one a simulation.
        kind: of the posteriors, ``"chains"`` or ``"independent"``.
        unconverged: fits that said of themselves that they had not converged.
        failures: messages of the fits that raised.
        around: where true values came from: the ``"prior"``, or a posterior in words.
    """

    story: str
    engine: str
    level: float
    seconds: float
    pit: dict[str, np.ndarray] = field(repr=False)
    independent: np.ndarray = field(repr=False)
    kind: str
    unconverged: int = 0
    failures: tuple[str, ...] = ()
    around: str = "prior"

    @property
    def simulations(self) -> int:
        return len(self.independent)

    @cached_property
    def p(self) -> dict[str, float]:
        """p-value of each quantity's uniformity, exact."""
        return {name: uniformity(u) for name, u in self.pit.items()}

    @cached_property
    def bias(self) -> dict[str, float]:
        """p-value of symmetry about 1/2 (VSBC): an approximation may be narrow without bias."""
        return {name: symmetry(u) for name, u in self.pit.items()}

    @property
    def flagged(self) -> tuple[str, ...]:
        """Quantities outside their bands, worst first."""
        limit = self.level / len(self.p)  # Bonferroni
        return tuple(name for name in sorted(self.p, key=self._badness) if self.p[name] <= limit)

    @property
    def passed(self) -> bool:
        return not self.flagged and not self.failures

    def reading(self, name: str) -> str:
        """What the ranks of a quantity say, in words; nothing where they stay in the band."""
        if name not in self.flagged:
            return ""
        u, size = self.pit[name] - 0.5, len(self.pit[name])
        shift = u.mean() * math.sqrt(12 * size)
        spread = (12 * (u**2).mean() - 1) * math.sqrt(1.25 * size)  # Var[12 u^2] = 4/5
        if abs(shift) > 4:  # a large shift spreads the ranks as well; a wrong width shifts nothing
            return "draws too low" if shift > 0 else "draws too high"
        if abs(spread) > 3:
            return "draws too narrow" if spread > 0 else "draws too wide"
        return "ranks uneven"

    def verdict(self) -> str:
        """One sentence."""
        said = []
        if self.failures:
            said.append(f"{len(self.failures)} fits failed ({self.failures[0]})")
        if self.flagged:
            worst = self.flagged[0]
            said.append(
                f"{len(self.flagged)} of {len(self.p)} quantities leave their band, worst {worst}: "
                f"{self.reading(worst)} (p {self.p[worst]:.1g})"
            )
            unbiased = self.kind == "independent" and not any(
                p <= self.level / len(self.bias) for p in self.bias.values()
            )
            if unbiased:
                said.append("widths only, no bias is seen")
        else:
            said.append(f"all {len(self.p)} quantities stay in their bands")
        if self.unconverged:
            said.append(f"{self.unconverged} fits said that they had not converged")
        return f"{'PASS' if self.passed else 'FAIL'}: {self.engine} on {self.story}: " + "; ".join(
            said
        )

    def __str__(self) -> str:
        """The verdict, the worst quantities, and what the verdict rests on."""
        heads = ["quantity", "p", "mean rank", "bias p", ""]
        order = sorted(self.p, key=self._badness)
        rows = [
            [
                name,
                f"{self.p[name]:.2g}",
                f"{self.pit[name].mean():.3f}",
                f"{self.bias[name]:.2g}",
                self.reading(name) or "-",
            ]
            for name in order[:_SHOWN]
        ]
        left = len(order) - _SHOWN
        note = f"\n({left} more, none worse)" if left > 0 else ""
        return f"{self.verdict()}\n\n{columns([heads, *rows])}{note}\n\n{self.rests_on()}"

    def rests_on(self) -> str:
        """How much was simulated, and how often a correct engine is flagged."""
        few, many = self.independent.min(), self.independent.max()
        return (
            f"{self.simulations} data sets from the {self.around}, ranks among "
            f"{many if few == many else f'{few} to {many}'} draws, {self.seconds:.1f} s; a "
            f"correct engine fails with a probability of at most {self.level:g}."
        )

    def plot(self) -> Figure:
        """Distribution functions of the ranks, with their simultaneous band."""
        return plots.ecdf_difference(self.pit, self.level, f"{self.engine} on {self.story}")

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain data."""
        return {
            "verdict": self.verdict(),
            "passed": self.passed,
            "story": self.story,
            "engine": self.engine,
            "kind": self.kind,
            "around": self.around,
            "level": self.level,
            "simulations": self.simulations,
            "seconds": self.seconds,
            "unconverged": self.unconverged,
            "failures": list(self.failures),
            "independent": self.independent.tolist(),
            "quantities": {
                name: {
                    "p": self.p[name],
                    "bias_p": self.bias[name],
                    "reading": self.reading(name),
                    "pit": u.tolist(),
                }
                for name, u in self.pit.items()
            },
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``calibration.json`` and ``calibration.png`` into `folder`.

        Returns:
            The path of the numbers.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.plot().savefig(folder / "calibration.png")
        path = folder / "calibration.json"
        write_atomically(path, json.dumps(self.to_json(), indent=1, allow_nan=False).encode())
        return path

    def _badness(self, name: str) -> tuple[float, float]:
        """p-values of zero are told apart by how far the mean rank is off."""
        return self.p[name], -abs(float(self.pit[name].mean()) - 0.5)
