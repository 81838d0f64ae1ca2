"""The reply with which a client joins: which one it is, and in a deployment its counts and sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from flwr.app import Message, MetricRecord

from fedser_utils.core.front_end import SPEECH
from fedser_utils.core.settings import client_name
from fedser_utils.data.log_mel import Sums
from fedser_utils.federated.grids.reply_checks import fault_of_count, fault_of_sums


class Joined(NamedTuple):
    """A client's reply to the join message. place: its index among ``places`` clients; counts:
    class -> [training clips, test clips]; sums: for the standardisation. The last two are None in
    a simulation."""

    node: int
    place: int
    places: int
    counts: Mapping[str, list[int]] | None
    sums: Sums | None

    @property
    def examples(self) -> int:
        return sum(train for train, _ in self.counts.values())


def read_join(node: int, reply: Message, *, bands: int = SPEECH.bands) -> Joined:
    """Return a node's reply to the join message. Raises ValueError for an impossible one."""
    measures, counts = reply.content["metrics"], reply.content.get("counts")
    place, places = int(measures["partition-id"]), int(measures["num-partitions"])
    if counts is None:
        return Joined(node, place, places, None, None)
    if {*reply.content} != {"metrics", "counts", "sums"} or not isinstance(counts, MetricRecord):
        raise ValueError(f"records {', '.join(reply.content)}")
    flat = [count for pair in counts.values() for count in pair]
    if any(not isinstance(c, int) or c < 0 for c in flat) or len(flat) != 2 * len(counts):
        raise ValueError("counts that are none")
    first, second = (reply.content["sums"][name].numpy() for name in ("first", "second"))
    sums = Sums(int(measures["frames"]), first, second)
    joined = Joined(node, place, places, {k: [*v] for k, v in counts.items()}, sums)
    fault = fault_of_count(joined.examples, None) or fault_of_sums(*sums, (bands,))
    if fault:
        raise ValueError(f"{client_name(place)} has {fault}")
    return joined
