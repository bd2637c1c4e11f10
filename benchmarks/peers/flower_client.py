"""Flower's client. In a module of its own, so that Ray's actors import it and keep what it caches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.peers import work


def train(message: Any, context: Any) -> Any:
    """Train a client on the model that the message brings, and answer with the result."""
    config = message.content["config"]
    torch.set_num_threads(config["threads"])
    loop = work.plain(config["J"], config["batch-size"])  # its model and optimizer are reused by all clients of this process
    loop.model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    client = context.node_config["partition-id"]
    for images, labels in work.batches(loop, client):
        loss = F.cross_entropy(loop.model(images), labels)
        loop.optimizer.zero_grad()
        loss.backward()
        loop.optimizer.step()
    answer = {
        "arrays": ArrayRecord(loop.model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(loop.shards[client])}),  # the weight of this client in the average
    }
    return Message(content=RecordDict(answer), reply_to=message)


app = ClientApp()
app.train()(train)
