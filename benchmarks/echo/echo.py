"""Flower's own FedAvg over clients that send back what they get; writes when each round ended."""

import json
import time
from pathlib import Path

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedser_utils.core.seeding import generator
from fedser_utils.federated.client_app import as_record
from fedser_utils.learning import vgg

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    time.sleep(float(context.run_config["training"]))
    content = RecordDict(
        {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    config, ends = context.run_config, []
    model = vgg.build(7, width=float(config["width"]), generator=generator(0, "init"))

    def after_round(number, arrays):
        ends.append(time.time())

    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=int(config["clients"]),
        min_available_nodes=int(config["clients"]),
    )
    weights = as_record(vgg.state_arrays(model))
    strategy.start(grid, weights, int(config["rounds"]), evaluate_fn=after_round)
    Path(str(config["result"])).write_text(json.dumps(ends))
