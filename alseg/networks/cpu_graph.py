"""A traced network rewritten for a CPU: the same numbers from fewer and cheaper steps.

Convolutions and the batch norms behind them become one layer each (``cpu_layout``). A convolution
behind a skip connection is linear in its channels, so what it makes of those that are the same in
all passes is computed once. Activations and sums overwrite what nothing else reads.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from alseg.networks.cpu_layout import LaidOut

N_CHANNELS = "n_channels"  # in a node's meta: of its value


def lay_out(traced: fx.GraphModule) -> None:
    """Replace the convolutions of a traced network in eval mode, and the batch norms behind them.

    Each ``LaidOut`` in it is to be refreshed whenever weights may have changed.
    """
    for node in list(traced.graph.nodes):
        convolution = layer_of(node, traced)
        if not isinstance(convolution, nn.Conv3d | nn.ConvTranspose3d):
            continue
        if not _is_plain(convolution):
            continue
        norm = None
        (reader, *others) = node.users or (None,)
        if reader is not None and not others:
            behind = layer_of(reader, traced)
            if isinstance(behind, nn.BatchNorm3d):
                norm = behind
                reader.replace_all_uses_with(node)
                traced.graph.erase_node(reader)
        node.target = f"laid_out_{node.name}"
        traced.add_submodule(node.target, LaidOut(convolution, norm))
    traced.graph.lint()
    traced.recompile()


def split_concatenations(traced: fx.GraphModule, varying: Collection[fx.Node]) -> None:
    """Give the still channels of a concatenation a convolution of their own.

    conv(cat(skip, up)) becomes conv_up(up) + conv_skip(skip), where the skip does not vary.

    Args:
        traced: after ``lay_out``, its nodes with ``N_CHANNELS`` in their meta.
        varying: the nodes whose values differ between passes.
    """
    graph, moving = traced.graph, set(varying)
    for node in list(graph.nodes):
        layer = layer_of(node, traced)
        pieces = _concatenated(node.args[0]) if isinstance(layer, LaidOut) else ()
        still = [piece not in moving for piece in pieces]
        if not isinstance(layer, LaidOut) or all(still) or not any(still):
            continue
        ends = pairwise(accumulate((piece.meta[N_CHANNELS] for piece in pieces), initial=0))
        channels = [range(*both) for both in ends]
        sums = []
        for is_still in (False, True):
            chosen = [i for i, found in enumerate(still) if found == is_still]
            part = layer.of_channels(
                [channel for i in chosen for channel in channels[i]], is_shifted=is_still
            )
            name = f"{node.target}_{'still' if is_still else 'varying'}"
            traced.add_submodule(name, part)
            with graph.inserting_before(node):
                source = pieces[chosen[0]]
                if len(chosen) > 1:
                    source = graph.call_function(torch.cat, ([pieces[i] for i in chosen], 1))
                sums.append(graph.call_module(name, (source,)))
        with graph.inserting_before(node):
            total = graph.call_function(operator.add, tuple(sums))
        total.meta = dict(node.meta)
        moving.add(total)
        node.replace_all_uses_with(total)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.lint()
    traced.recompile()


def add_within_convolutions(traced: fx.GraphModule) -> None:
    """Make one layer of conv(x) + x, after ``lay_out``: the kernel takes in the second x."""
    for node in list(traced.graph.nodes):
        if node.target is not operator.add or len(node.all_input_nodes) != 2:
            continue
        for sum_of, other in (node.args, node.args[::-1]):
            layer = layer_of(sum_of, traced)
            if not isinstance(layer, LaidOut) or len(sum_of.users) > 1:
                continue
            while isinstance(layer_of(other, traced), nn.Identity):
                (other,) = other.all_input_nodes
            if sum_of.args == (other,) and layer.keeps_shape:
                layer.adds_input = True
                layer.refresh()
                node.replace_all_uses_with(sum_of)
                traced.graph.erase_node(node)
                break
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()


class InPlace(nn.Module):
    """A ReLU or PReLU that overwrites its input."""

    def __init__(self, activation: nn.ReLU | nn.PReLU) -> None:
        super().__init__()
        self._activation = (activation,)

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x, in x."""
        (activation,) = self._activation
        if isinstance(activation, nn.ReLU):
            return torch.relu_(x)
        return F.leaky_relu_(x, activation.weight.item())


def add_in_place(x: Tensor, y: Tensor) -> Tensor:
    """x + y, in x where it has that type and size."""
    return x.add_(y) if (x.dtype, x.shape) == (y.dtype, y.shape) else x + y


def overwrite(part: fx.GraphModule) -> None:
    """Let activations and sums overwrite what nothing else reads."""
    for node in part.graph.nodes:
        if not node.all_input_nodes or not is_fresh(node.all_input_nodes[0], part):
            continue
        layer = layer_of(node, part)
        many_slopes = isinstance(layer, nn.PReLU) and layer.num_parameters > 1
        if isinstance(layer, nn.ReLU | nn.PReLU) and not many_slopes:
            node.target = f"in_place_{node.name}"
            part.add_submodule(node.target, InPlace(layer))
        elif node.target is operator.add and len(node.all_input_nodes) == 2:
            node.target = add_in_place
    part.recompile()


def layer_of(node: fx.Node, traced: fx.GraphModule) -> nn.Module | None:
    """The layer that a node calls; None if it calls none."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_fresh(node: fx.Node, part: fx.GraphModule) -> bool:
    """Whether a node's value is made here and read once, so that the reader may overwrite it."""
    if len(node.users) != 1:
        return False
    layer = layer_of(node, part)
    if isinstance(layer, _DropoutNd | nn.Identity | InPlace):
        return is_fresh(node.all_input_nodes[0], part)
    makes_anew = isinstance(layer, LaidOut | _ConvNd | _BatchNorm | _InstanceNorm)
    return makes_anew or node.target in (operator.add, add_in_place, torch.cat)


def _concatenated(node: object) -> Sequence[fx.Node]:
    """What a node puts together along the channels; nothing if it does something else."""
    if not isinstance(node, fx.Node) or node.target is not torch.cat:
        return ()
    pieces = node.args[0]
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if axis != 1 or not isinstance(pieces, Sequence):
        return ()
    nodes = [piece for piece in pieces if isinstance(piece, fx.Node)]
    return nodes if len(nodes) == len(pieces) else ()


def _is_plain(convolution: nn.Conv3d | nn.ConvTranspose3d) -> bool:
    return (
        convolution.groups == 1
        and set(convolution.dilation) == {1}
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )
