"""What is compared: how each configuration keeps a block, and at how many bits a value."""
from __future__ import annotations

import dataclasses

from kvarn.client import Client
from kvarn.codec import TileSpec
from kvarn.fidelity.quantisers import Fp16, Kivi, Quantiser, Rotation, Rtn
from kvarn.fidelity.stores import DaemonStore, LocalStore, NDArray
from kvarn.types import PRESETS
from kvarn.worker.model import Config


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A name, and either a quantiser of this package or a preset and an encoder of kvarnd."""
    name: str
    title: str
    quantiser: Quantiser | None = None
    preset: str = ""
    encoder: str = "default"

    @property
    def learns(self) -> bool:
        """Whether the encoder learns from queries."""
        return self.encoder == "aware"

    def bits(self, group: int, dim: int) -> float:
        """Bits a value of a sealed block, scales included."""
        if self.quantiser is not None:
            return self.quantiser.bits(group, dim)
        k_bits, v_bits = PRESETS[self.preset]
        return TileSpec(dim, dim, group, k_bits, v_bits).record_bytes * 8 / (2 * group * dim)

    def open(self, config: Config, group: int, client: Client | None,
             queries: NDArray | None = None) -> LocalStore | DaemonStore:
        """A store for one text. queries: of another one, [layers, Hq, T, D], to learn from."""
        if self.quantiser is not None:
            return LocalStore(config, self.quantiser)
        if client is None:
            raise ValueError(f"{self.name} needs kvarnd: --server or --kvarnd")
        return DaemonStore(client, config, group, self.preset, self.encoder,
                           queries if self.learns else None)


ALL = {c.name: c for c in (
    Configuration("fp16", "fp16", Fp16()),
    Configuration("rtn2", "RTN a token, 2 bits", Rtn(2)),
    Configuration("kivi2-g128", "KIVI-2 g128", Kivi(128)),
    Configuration("kivi2-g32", "KIVI-2 g32", Kivi(32)),
    Configuration("rotation2", "rotation alone, 2 bits", Rotation(2)),
    Configuration("reference", "kvarnd k2v2 reference", preset="k2v2", encoder="reference"),
    Configuration("refined", "kvarnd k2v2 refined", preset="k2v2", encoder="refined"),
    Configuration("aware", "kvarnd k2v2 aware", preset="k2v2", encoder="aware"),
    Configuration("k4v2", "kvarnd k4v2", preset="k4v2"),
    Configuration("k4v4", "kvarnd k4v4", preset="k4v4"),
)}
OURS = tuple(name for name, c in ALL.items() if c.quantiser is None)
