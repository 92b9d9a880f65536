"""Table: how Faust sees the evidence: one changelog topic, assigned together with the sources. Holds no data; the partitions do."""

from __future__ import annotations

from typing import Any

import faust
from faust.tables.manager import TableManager as StockTableManager
from faust.types import TP

from streams.recovery import Recovery


class EvidenceTable(faust.Table):
    """Exists so that Faust subscribes to the changelog and assigns its partitions, standby ones included. Reading and writing it is an error."""

    def __init__(self, app: faust.App, *, changelog: str, **kwargs: Any) -> None:
        self._changelog = changelog
        super().__init__(app, **kwargs)

    def _changelog_topic_name(self) -> str:
        return self._changelog

    def persisted_offset(self, tp: TP) -> int | None:
        """None: `Recovery` asks the partition itself, once it is open."""
        return None

    async def on_rebalance(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `Recovery` opens and closes the stores."""

    def apply_changelog_batch(self, batch: Any) -> None:
        raise TypeError("changelog records go to the partitions, not through the table")

    on_key_get = on_key_set = on_key_del = apply_changelog_batch


class TableManager(StockTableManager):
    """Faust's, with our recovery and without its second of waiting at the start."""

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery  # type: ignore[return-value]

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()

    async def on_stop(self) -> None:
        await super().on_stop()
        await self.recovery.close_partitions()
