"""A wire without a network: Flower's grid over clients in this process, and their mishaps."""

from copy import deepcopy

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedser_utils.federated.client_app import client_app


class Wire(Grid):
    """Nodes 101, 102, ... are clients with folders of their own. mishap: (partition, message) ->
    None, or what becomes of the reply: a function of it, which may return None (lost)."""

    def __init__(self, settings_json, shares, states):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.contexts = {
            101 + i: Context(
                1, 101 + i,
                {"partition-id": i, "num-partitions": len(shares), "data": str(share),
                 "state": str(states / f"{i:02d}")},
                RecordDict(), {"settings": settings_json},
            )
            for i, share in enumerate(shares)
        }  # fmt: skip
        self.offline = set()
        self.mishap = lambda place, message: None
        self.replies, self.received, self.asked, self.count = {}, [], [], 0

    def get_node_ids(self):
        return [node for node in self.contexts if node not in self.offline]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            self.count += 1
            message.metadata.__dict__["_message_id"] = f"{self.count}"
            ids.append(message.metadata.message_id)
            context = self.contexts[message.metadata.dst_node_id]
            place = context.node_config["partition-id"]
            self.asked.append((message.metadata.message_type, place))
            fate = self.mishap(place, message)
            if fate == "lost":
                continue
            try:
                reply = client_app(message, context)
            except Exception as error:
                reply = Message(Error(1, f"{type(error).__name__}: {error}"), reply_to=message)
            reply = fate(reply) if fate else reply
            self.received.append(deepcopy(reply.content) if reply.has_content() else None)
            self.replies[message.metadata.message_id] = reply
        return ids

    def pull_messages(self, message_ids):
        return [self.replies.pop(i) for i in message_ids if i in self.replies]

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def create_message(self, *arguments, **options):
        raise NotImplementedError

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError
