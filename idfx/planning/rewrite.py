"""Plan → the parameters of a captured graph: the rewrite as a pass that torch.fx people know."""

from __future__ import annotations

import torch.fx
from torch.fx.passes.infra.pass_base import PassResult

from idfx.core.records import FACTS, Plan
from idfx.fills import fill_


def rewrite(graph_module: torch.fx.GraphModule, plan: Plan) -> PassResult:
    """Return the graph with the plan's fill written at each `get_attr` node of a parameter; nothing else changes.

    The parameters of a captured graph are those of its model, so the model is initialised with it. Scalars and
    checkpoints of a plan are the business of `apply_`, as are parameters that the graph does not use.

    Args:
        graph_module: of a capture, `structure.capture.graph_module`.
        plan: made for it.

    Example:
        >>> import idfx
        >>> model = torch.nn.Linear(2, 2)
        >>> structure = idfx.analyze(model, (torch.ones(1, 2),))
        >>> result = rewrite(structure.capture.graph_module, idfx.plan(structure, loosen="none"))
        >>> result.modified, model.weight.tolist()
        (True, [[1.0, 0.0], [0.0, 1.0]])
    """
    written: set[int] = set()
    for node in graph_module.graph.find_nodes(op="get_attr"):
        decision = plan.decisions.get(node.meta[FACTS].name)
        if decision is None:
            continue
        parameter = graph_module.get_parameter(str(node.target))
        if id(parameter) not in written:
            written.add(id(parameter))
            fill_(parameter, decision.fill, decision.arguments, parameter=decision.parameter, seed=plan.seed)
    return PassResult(graph_module, bool(written))
