"""The analysis of a capture, which is made once and kept on its structure for further queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx

from idfx.analysis.dataflow import Dataflow
from idfx.analysis.paths import Paths
from idfx.analysis.rows import Exclusive
from idfx.analysis.sides import Blocks
from idfx.analysis.sites import ParameterUses
from idfx.analysis.structure_graph import Read, structure_graph

if TYPE_CHECKING:
    from idfx.core.records import Structure


@dataclass(frozen=True)
class Analysis:
    """The data flow of a forward pass, its paths, its rows, where parameters meet data, and its residual blocks.

    Only the blocks depend on where branches are to end; the rest follows from the capture.
    """

    flow: Dataflow
    paths: Paths
    exclusive: Exclusive
    uses: ParameterUses
    blocks: Blocks

    def graph(self, structure: Structure) -> nx.DiGraph[str]:
        """Return the graph of a structure that was made of this (`idfx.analysis.structure_graph`)."""
        return structure_graph(structure, Read(self.flow, self.uses, self.blocks))
