"""A network in two parts: a head without randomness, and the tail behind its first dropout.

Monte-Carlo passes differ only in the tail, so a window's head is computed once for all of them.
The parts come from torch.fx; they run the network's own layers, so hooks on layers do fire, except
that on a CPU its convolutions and batch norms are laid out anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from alseg.networks.committee import reported_network
from alseg.networks.cpu_graph import (
    N_CHANNELS,
    add_within_convolutions,
    is_fresh,
    lay_out,
    layer_of,
    overwrite,
    split_concatenations,
)
from alseg.networks.cpu_layout import LaidOut, pays
from alseg.networks.dropout import active_dropout_layers
from alseg.networks.features import BottleneckFeatures, depth
from alseg.networks.low_precision import (
    MOST_SIZES,
    autocast_dtype,
    check_low_precision,
    checked_forward,
)

log = logging.getLogger(__name__)

# BasicUNet's decoder asks for the type of its input, which a traced one answers wrongly.
OPAQUE = (UpCat,)


# Of the logits' norm, that two ways of computing them in bfloat16 may differ by: 0.003 in a
# network of 28 convolutions, 0.7 where one of them was wrong.
ROUNDED = 0.05


class TwoParts(Protocol):
    """A network as a head and a tail.

    Attributes:
        exclusive: dropout layers whose input nothing else reads, so that it may be overwritten.
        leaves_input: whether the tail is known to leave its activations as they are.
    """

    exclusive: frozenset[nn.Module]
    leaves_input: bool

    def head(self, windows: Tensor) -> tuple[Tensor, ...]:
        """Windows [B, channels, d, h, w] to the activations that the tail needs, [B, ...] each."""

    def tail(self, activations: tuple[Tensor, ...], features: BottleneckFeatures | None) -> Tensor:
        """Activations to logits [B, C, d, h, w]; shows ``features`` the pass."""


class WholeNetwork:
    """A network that could not be split: its head is empty and its tail does all."""

    exclusive: frozenset[nn.Module] = frozenset()
    leaves_input = False

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def head(self, windows: Tensor) -> tuple[Tensor, ...]:
        """The windows themselves."""
        return (windows,)

    def tail(self, activations: tuple[Tensor, ...], features: BottleneckFeatures | None) -> Tensor:
        """The network's logits."""
        with features.watching(self.network) if features else nullcontext():
            logits: Tensor = self.network(*activations)
        return logits


class SplitNetwork:
    """A traced network, split before its first active dropout.

    Args:
        network: in eval mode.
        example: windows [B, channels, d, h, w], to find the bottleneck by.
    """

    leaves_input = False  # until it has been seen

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        traced = fx.GraphModule(network, _Tracer().trace(network))
        (output,) = (node for node in traced.graph.nodes if node.op == "output")
        bottleneck = _bottleneck_of(traced, example)
        output.args = ((output.args[0], *([bottleneck] if bottleneck is not None else [])),)
        layers: set[nn.Module] = set(active_dropout_layers(network))
        if example.device.type == "cpu" and pays(network):
            lay_out(traced)
            split_concatenations(traced, _depends_on(traced, layers))
            add_within_convolutions(traced)
        random = [node for node in _depends_on(traced, layers) if node is not output]
        wanted = output.args[0]
        crossing = [
            node
            for node in traced.graph.nodes
            if node not in random and (node in wanted or any(user in random for user in node.users))
        ]
        (inputs,) = (node for node in traced.graph.nodes if node.op == "placeholder")
        before = [n for n in traced.graph.nodes if n not in random and n is not output]
        self._head = _part(traced, [inputs], before, crossing)
        self._tail = _part(traced, crossing, list(random), wanted)
        for part in (self._head, self._tail):
            overwrite(part)
        self.exclusive = _exclusive(self._tail)
        self._laid_out = [
            layer
            for part in (self._head, self._tail)
            for layer in part.modules()
            if isinstance(layer, LaidOut)
        ]

    def refresh(self) -> None:
        """Take in the network's weights as they are now."""
        for layer in self._laid_out:
            layer.refresh()

    def head(self, windows: Tensor) -> tuple[Tensor, ...]:
        """The activations that no dropout has touched."""
        activations: tuple[Tensor, ...] = self._head(windows)
        return activations

    def tail(self, activations: tuple[Tensor, ...], features: BottleneckFeatures | None) -> Tensor:
        """The network's logits."""
        logits, *bottleneck = self._tail(*activations)
        if features is not None:
            if not bottleneck:
                raise RuntimeError("the network has no layer with a spatial output")
            features.add(bottleneck[0], logits)
        return logits  # type: ignore[no-any-return]


_Key = tuple[Any, ...]
_known: WeakKeyDictionary[nn.Module, dict[_Key, SplitNetwork | None]] = WeakKeyDictionary()


def two_parts(network: nn.Module, example: Tensor) -> TwoParts:
    """Split a network before its first active dropout; the whole one where that fails.

    Tracing follows the one path that the example takes through the network, so the parts are
    trusted for windows of its shape and in its precision, and only after they have reproduced the
    network's own output.

    Args:
        network: in eval mode, with active dropout.
        example: windows of one volume, [B, channels, d, h, w].

    Raises:
        PrecisionError: if the network itself gives wrong numbers in autocast's precision.
    """
    known = _known.setdefault(network, {})
    precision = autocast_dtype(example.device.type)
    layers = map(id, active_dropout_layers(network))
    key = (example.shape[1:], example.device, precision, *layers)
    if key not in known:
        check_low_precision(network, example, with_gradients=False)
        known[key] = _checked_split(network, example)
    elif (parts := known[key]) is not None:
        parts.refresh()
    return known[key] or WholeNetwork(network)


def plain_forward(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """A network in eval mode as a function of windows, laid out for a CPU where it is on one.

    Hooks on its convolutions and batch norms then do not fire. Make it anew when weights change.
    The function raises a PrecisionError where the network gives wrong numbers in autocast's
    precision.
    """
    network = reported_network(network)
    is_laid_out = pays(network)
    parts: dict[tuple[torch.Size, torch.dtype | None], TwoParts] = {}

    def forward(windows: Tensor) -> Tensor:
        size = windows.shape[1:]
        key = size, autocast_dtype(windows.device.type)
        seen = {known[0] for known in _known.get(network, {})}
        is_new = size not in seen and len(seen) >= MOST_SIZES
        if not is_laid_out or windows.device.type != "cpu" or is_new:
            return checked_forward(network, windows)
        if key not in parts:
            parts[key] = two_parts(network, windows)
        return parts[key].tail(parts[key].head(windows), None)

    return forward


def _checked_split(network: nn.Module, example: Tensor) -> SplitNetwork | None:
    try:
        parts = SplitNetwork(network, example)
        activations = parts.head(example)
        if not all(isinstance(a, Tensor) and len(a) == len(example) for a in activations):
            raise RuntimeError("what crosses the first dropout is not one tensor a window")
        with torch.autocast(example.device.type, enabled=False):  # its rounding is not a difference
            activations = parts.head(example)
            before = [a.clone() for a in activations]
            logits, expected = parts.tail(activations, None), network(example)
        parts.leaves_input = all(map(torch.equal, before, activations))
        # 1e-3: some convolutions of a GPU round in another way in each call
        if not torch.allclose(logits, expected, rtol=0, atol=1e-3 * float(expected.abs().max())):
            raise RuntimeError("the traced network gives other numbers")
        if precision := autocast_dtype(example.device.type):
            logits, expected = parts.tail(parts.head(example), None).float(), network(example)
            if not (logits - expected).norm() <= ROUNDED * expected.norm():
                raise RuntimeError(f"the traced network gives other numbers in {precision}")
    except Exception as error:  # tracing lets errors of all kinds through
        log.info(
            f"{type(network).__name__} cannot be split at its first dropout, so all of it runs in "
            f"each pass: {error}"
        )
        return None
    return parts


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, OPAQUE) or not list(module.children())


def _depends_on(traced: fx.GraphModule, layers: set[nn.Module]) -> dict[fx.Node, None]:
    """The nodes that some of the layers, or what they contain, have a part in, in their order."""
    found: dict[fx.Node, None] = {}
    for node in traced.graph.nodes:
        called = layer_of(node, traced)
        own = called is not None and layers & set(called.modules())
        if own or found.keys() & set(node.all_input_nodes):
            found[node] = None
    return found


def _exclusive(tail: fx.GraphModule) -> frozenset[nn.Module]:
    """The dropout layers that are the only readers of what is made in the tail."""
    found: dict[bool, set[nn.Module]] = {True: set(), False: set()}
    for node in tail.graph.nodes:
        layer = layer_of(node, tail)
        if isinstance(layer, _DropoutNd):
            found[is_fresh(node.all_input_nodes[0], tail)].add(layer)
    return frozenset(found[True] - found[False])  # one layer may stand in several places


def _bottleneck_of(traced: fx.GraphModule, example: Tensor) -> fx.Node | None:
    """The node whose activation ``BottleneckFeatures`` would take."""
    recorder = _Recorder(traced)
    recorder.run(example)
    return recorder.deepest


class _Recorder(fx.Interpreter):
    deepest: fx.Node | None = None
    _depth: tuple[int, int] | None = None

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor) and value.dim() > 1:
            node.meta[N_CHANNELS] = value.shape[1]
        is_leaf = node.op == "call_module" and not list(
            self.module.get_submodule(str(node.target)).children()
        )
        if is_leaf and (found := depth(value)) and (self._depth is None or found >= self._depth):
            self.deepest, self._depth = node, found
        return value


def _part(
    traced: fx.GraphModule,
    inputs: Sequence[fx.Node],
    nodes: Iterable[fx.Node],
    outputs: Sequence[fx.Node],
) -> fx.GraphModule:
    """A network of some of the nodes, from inputs to a tuple of outputs."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    part = fx.GraphModule(traced, graph)
    graph.eliminate_dead_code()
    part.recompile()
    return part
